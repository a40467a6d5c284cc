"""Compares the samples and the contigs of splits. Input: the reports of window databases, digests. Output: findings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from sharded_eden.checks.digests import contig_at, find_copies
from sharded_eden.checks.findings import EXAMPLES, Findings, Tally
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


def copied_contigs(
    findings: Findings, windows: Sequence[WindowsReport], paths: Sequence[Path], digests: Sequence[Path], scratch: Path
) -> None:
    """Add a finding for each two splits that share contigs, as they are or as the other strand.

    Args:
        findings: they are added here.
        windows: the splits.
        paths: the sequence databases, in the order of their tasks.
        digests: the files of digests that the tasks have written.
        scratch: a folder for temporary files.
    """
    for (one, other), copies in sorted(find_copies(digests, scratch, EXAMPLES).items()):
        tally = Tally(count=copies.count)
        for first, second in copies.examples:
            names = [repr(contig_at(paths[number], ordinal)) for number, ordinal in (first, second)]
            tally.examples.append(" is ".join(names))
        findings.error(
            "copied-contig",
            windows[other].path,
            f"{copies.count} contigs, or their other strands, are in {windows[one].path} as well: {tally}",
            f"leave them out of one of the two split files, then {windows[other].fix}",
        )
