"""Reads random windows of a split as training reads them. Costs one read a window."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from sharded_eden.checks.findings import UNREADABLE, Findings, Tally
from sharded_eden.checks.sample import strange_letter
from sharded_eden.checks.windows import WindowsReport
from sharded_eden.errors import InputError, MissingSequence
from sharded_eden.format.commands import build_command, split_command
from sharded_eden.load.encode.example import RowFormat
from sharded_eden.load.encode.tokenizer import encoding_of
from sharded_eden.load.locate.windows import Row, WindowIndex
from sharded_eden.load.read.databases import SequenceReader
from sharded_eden.load.read.fetch import WindowFetcher


def read_windows(
    findings: Findings, report: WindowsReport, paths: Mapping[str, Path], broken: Collection[str], count: int, seed: int
) -> int:
    """Read the first, the last and `count` random windows of a split; return how many were read.

    Windows of samples that are missing or `broken` are skipped: they have findings already.
    """
    with (
        findings.checking("file", report.path, report.fix),
        closing(WindowIndex(report.path, io="read")) as index,
        closing(SequenceReader(paths, io="read")) as reader,
    ):
        total = index.total_windows
        chosen = random.Random(seed).sample(range(total), min(count, total))
        ends = [0, total - 1] if chosen else []
        return _Reading(index, reader, broken, report).read(sorted({*chosen, *ends}), findings)
    return 0


class _Reading:
    """Reads windows of one split with the loader."""

    def __init__(
        self, index: WindowIndex, reader: SequenceReader, broken: Collection[str], report: WindowsReport
    ) -> None:
        self._index, self._reader, self._broken, self._report = index, reader, set(broken), report
        # Without special tokens a row holds all bases of its window.
        row = RowFormat(
            index.geometry.window_size, encoding_of(None), include_bos=False, include_sep=False, include_eos=False
        )
        self._letters = np.empty((1, row.seq_length), dtype=np.uint8)
        self._fetcher = WindowFetcher(index, reader, None, row, tags=None, split=str(report.path), seed=0, rc_aug=False)

    def read(self, window_indices: Sequence[int], findings: Findings) -> int:
        """Read windows and add a finding for each problem; return how many were read."""
        wrong: dict[tuple[str, Path], Tally] = {}
        empty: dict[Path, Tally] = {}
        read = 0
        rows: list[Row] = []
        with findings.checking("gap", self._report.path, self._report.fix):
            rows = self._index.locate_many(window_indices)
        for window_idx, row in zip(window_indices, rows, strict=False):
            try:
                sample = self._reader.sample_of(row[0])
            except InputError:
                continue  # reported before, as are samples that are missing or broken
            if sample in self._broken or sample not in self._reader.paths:
                continue
            read += 1
            where = f"window {window_idx} of {self._report.path} is window {row[1]} of {row[0]!r}"
            try:
                placed = self._fetcher.fill([(0, window_idx)], [1], self._letters)
                bases = self._letters[0, placed.first[0] : placed.end[0]].tobytes()
                if not bases:
                    empty.setdefault(self._reader.paths[sample], Tally()).add(repr(row[0]))
                check, what = "alphabet", strange_letter(bases) and f"holds {strange_letter(bases)} after its start"
            except MissingSequence:
                contig = self._reader.contig(row[0])
                check = "contig" if contig is None else "length"
                what = "is not here" if contig is None else f"has only {contig.length} bases"
            except UNREADABLE as error:
                self._broken.add(sample)  # the next window would fail in the same way
                if findings.disk_fails(self._reader.paths[sample]):
                    continue
                check, what = "file", f"cannot be read: {error}"
            if what:
                wrong.setdefault((check, self._reader.paths[sample]), Tally()).add(f"{where}, which {what}")
        for path, tally in empty.items():
            findings.without_bases(path, tally, self._report.path, self._index.geometry)
        for (check, path), tally in wrong.items():
            folder = path.parent.parent
            again = f"{split_command(folder)}, then {self._report.fix}"
            rebuild = build_command(folder, force=True)
            findings.error(check, path, str(tally), again if check in {"contig", "length"} else rebuild)
        return read
