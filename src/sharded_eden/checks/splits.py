"""Compares the samples of splits. Input: the reports of window databases. Output: findings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations

from sharded_eden.checks.findings import Findings, Tally
from sharded_eden.checks.windows import WindowsReport
from sharded_eden.format.commands import split_command, verify_command


def shared_samples(findings: Findings, windows: Sequence[WindowsReport], sequences: str | os.PathLike[str]) -> None:
    """Add a finding for each two splits that share samples.

    Args:
        findings: they are added here.
        windows: the splits.
        sequences: the sequence databases, for the commands.
    """
    for one, other in combinations(windows, 2):
        shared = Tally()
        for sample in sorted(one.ranges.keys() & other.ranges.keys()):
            shared.add(repr(sample))
        if shared.count:
            findings.error(
                "shared-sample",
                other.path,
                f"{shared.count} samples are in {one.path} as well: {shared}",
                f"{split_command(sequences)}, then {other.fix} and the same for the others; where contigs were divided "
                f"on purpose (split --by contig): {verify_command(sequences, *(each.path for each in windows))} --by contig",
            )
