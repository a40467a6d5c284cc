"""`verify` for a mixture: each source by itself, and whether all of them can be trained on together.

Input: the file of a mixture. Output: the findings of all sources. Sources may share samples: they are not compared as splits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from sharded_eden.checks.findings import Finding, Findings
from sharded_eden.checks.result import VerifyResult
from sharded_eden.errors import EdenError
from sharded_eden.train.mixture_file import mixture_config

OF_SEQUENCES = frozenset({"samples", "contigs", "bases"})
"""Counts of sequence databases, which sources may share."""


def verify_mixture(
    path: Path, sequence_db_dir: Path | str, verify: Callable[..., VerifyResult], **options: Any
) -> VerifyResult:
    """Check the sources of a mixture.

    Args:
        path: its file.
        sequence_db_dir: the folder or URL for sources without one of their own.
        verify: checks one window database, see `sharded_eden.checks.run.verify`.
        options: passed on to it.

    Raises:
        UsageError: the mixture is invalid, or a path is of another kind than expected.
        InputError: the file cannot be read.
    """
    config = mixture_config(path)
    folders = [source.sequence_db_dir or sequence_db_dir for source in config.sources.values()]
    results = [
        verify(folder, [source.window_db_path], **options)
        for folder, source in zip(folders, config.sources.values(), strict=True)
    ]
    real = list(map(os.path.realpath, folders))
    whole = results[0]
    for number, other in enumerate(results[1:], start=1):
        for field in fields(whole):
            own, its = getattr(whole, field.name), getattr(other, field.name)
            if field.name in OF_SEQUENCES and real[number] in real[:number]:
                continue
            if isinstance(own, int | list) and not isinstance(own, bool):
                setattr(whole, field.name, own + its)
    if not Findings(whole.findings).has_errors:
        try:
            config.open(
                tokenizer=None, sequence_db_dir=str(sequence_db_dir), seed=42, seq_length=config.window_size()
            ).dataset.close()
        except EdenError as error:
            fix = "change the mixture, or precompute its sources with the same window size"
            whole.findings.append(Finding(check="mixture", severity="error", file=str(path), what=str(error), fix=fix))
    return whole
