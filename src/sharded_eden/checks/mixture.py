"""`verify` for a mixture: each source by itself, and whether all of them can be trained on together.

Input: the file of a mixture. Output: the findings of all sources. Sources may share samples: they are not compared as splits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from sharded_eden.checks.findings import Finding
from sharded_eden.checks.result import VerifyResult
from sharded_eden.errors import EdenError
from sharded_eden.train.mixture_file import mixture_config


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
    results = [
        verify(source.sequence_db_dir or sequence_db_dir, [source.window_db_path], **options)
        for source in config.sources.values()
    ]
    whole = results[0]
    for other in results[1:]:
        for field in fields(whole):
            own, its = getattr(whole, field.name), getattr(other, field.name)
            if isinstance(own, int | list) and not isinstance(own, bool):
                setattr(whole, field.name, own + its)
    if whole.is_clean:
        try:
            config.open(
                tokenizer=None, sequence_db_dir=str(sequence_db_dir), seed=42, seq_length=config.window_size()
            ).dataset.close()
        except EdenError as error:
            fix = "change the mixture, or precompute its sources with the same window size"
            whole.findings.append(Finding(check="mixture", severity="error", file=str(path), what=str(error), fix=fix))
    return whole
