"""`WINDOWS.db.index`, checked against the window database and against what SQLite itself reads.

Input: a window database with an index beside it. Output: findings. Cost of a quick check: two reads of each of some hundred
random windows. With `full`, all windows are listed once, and all bases from the first window of each contig to its last are
read twice: by address, as training reads them, and by SQLite. Without an index there is nothing to check, and no finding.
"""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sharded_eden.checks.findings import EXAMPLES, UNREADABLE, Findings, Tally
from sharded_eden.checks.windows import WindowsReport
from sharded_eden.errors import EdenError, shown
from sharded_eden.format.commands import index_command
from sharded_eden.format.index import index_path
from sharded_eden.format.schema import control_name
from sharded_eden.jobs import Say
from sharded_eden.load.locate.addresses import WindowAddresses
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.read.databases import SequenceReader
from sharded_eden.load.read.plan import Address
from sharded_eden.load.read.unchanged import file_identity

WINDOWS_PER_TASK = 1 << 20
"""Windows of one task with `full`."""
WINDOWS_AT_ONCE = 4096
"""Windows whose rows are read together."""
PIECE_BASES = 1 << 20
"""Bases that are compared at once. `substr` loads a whole contig: longer ones are read by BLOB I/O."""


@dataclass(frozen=True, kw_only=True)
class AddressesTask:
    """Windows of one split whose addresses are to be compared."""

    window_db: Path
    paths: Mapping[str, Path]
    """{sample: its sequence database}."""
    broken: frozenset[str]
    """Samples with errors that were found before: their bases are not compared."""
    stride: int
    window_size: int
    total: int
    """Windows of the window database."""
    windows: Sequence[int]


@dataclass
class AddressesReport:
    """What comparing gave."""

    compared: int = 0
    """Windows whose bases were read by address."""
    wrong: Tally = field(default_factory=Tally)
    error: str = ""
    """Why comparing ended early; nothing where it did not."""


def address_tasks(
    findings: Findings,
    report: WindowsReport,
    paths: Mapping[str, Path],
    broken: Collection[str],
    folder: Path,
    count: int | None,
    seed: int,
) -> list[AddressesTask]:
    """Add what is wrong with an index as a whole; return the tasks that compare its addresses, none where it is not used.

    Args:
        findings: receives what is wrong.
        report: of the window database.
        paths: {sample: its sequence database}.
        broken: samples with errors that were found before.
        folder: of the sequence databases.
        count: random windows that are compared; None for all.
        seed: chooses them.
    """
    path, fix = index_path(report.path), index_command(folder, report.path)
    if not os.path.lexists(path) or not report.is_open or report.geometry is None or not report.windows:
        return []
    task = AddressesTask(
        window_db=report.path,
        paths=paths,
        broken=frozenset(broken),
        stride=report.geometry.stride,
        window_size=report.geometry.window_size,
        total=report.windows,
        windows=[],
    )
    try:
        with closing(_opened(task)) as addresses:
            changed = [name for name in addresses.changed_samples if name in paths]
    except (*UNREADABLE, KeyError) as error:
        if not findings.disk_fails(path):
            what = f"it is not used, and windows are read by SQLite: {_text(error, path)}"
            findings.warning("addresses", path, what, fix)
        return []
    if changed:
        tally = Tally()
        for name in changed:
            tally.add(repr(name))
        what = f"{len(changed)} sequence databases are not the files that were indexed, and are read by SQLite: {tally}"
        findings.warning("addresses", path, what, fix)
    parts: list[Sequence[int]]
    if count is None:
        parts = [
            range(first, min(first + WINDOWS_PER_TASK, task.total)) for first in range(0, task.total, WINDOWS_PER_TASK)
        ]
    else:
        chosen = {*random.Random(seed).sample(range(task.total), min(count, task.total)), 0, task.total - 1}
        parts = [sorted(chosen)] if count else []
    return [replace(task, windows=part) for part in parts]


def add_findings(findings: Findings, report: WindowsReport, folder: Path, compared: Sequence[AddressesReport]) -> int:
    """Add what the tasks of one window database found; return how many windows they compared."""
    path, fix = index_path(report.path), index_command(folder, report.path)
    wrong = Tally()
    for each in compared:
        wrong.count += each.wrong.count
        wrong.examples = (wrong.examples + each.wrong.examples)[:EXAMPLES]
    if wrong.count:
        findings.error("addresses", path, f"{wrong.count:,} of its entries are wrong: {wrong}", fix)
    for error in dict.fromkeys(each.error for each in compared if each.error):
        findings.error("addresses", path, error, fix)
    return sum(each.compared for each in compared)


def compare_addresses(task: AddressesTask, say: Say) -> AddressesReport:
    """Compare the addresses of some windows with the window database and with what SQLite reads."""
    report = AddressesReport()
    path = index_path(task.window_db)
    try:
        with (
            closing(_opened(task)) as addresses,
            closing(WindowIndex(task.window_db, io="read")) as index,
            closing(SequenceReader(task.paths, io="read")) as reader,
        ):
            Comparison(task, report, addresses, index, reader).run(say)
    except IndexError:
        report.error = "it names a sample that it does not list"
    except UNREADABLE as error:
        report.error = _text(error, path)
    return report


def _opened(task: AddressesTask) -> WindowAddresses:
    return WindowAddresses(
        task.window_db,
        file_identity(task.window_db),
        task.paths,
        {name: file_identity(path) for name, path in task.paths.items()},
        stride=task.stride,
        total_windows=task.total,
        read_ahead=False,
    )


def _text(error: BaseException, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ") or type(error).__name__


@dataclass
class Span:
    """Consecutive windows of one contig, whose bases are compared together."""

    first: int
    """The first of the windows."""
    contig_id: str
    address: Address
    """Of the first one."""
    in_contig: int
    """The number of the last window within its contig."""
    windows: int = 1


class Comparison:
    """The windows of one task."""

    def __init__(
        self,
        task: AddressesTask,
        report: AddressesReport,
        addresses: WindowAddresses,
        index: WindowIndex,
        reader: SequenceReader,
    ) -> None:
        self._task, self._report = task, report
        self._addresses, self._index, self._reader = addresses, index, reader
        self._broken = set(task.broken)
        self._by_address = np.empty(PIECE_BASES, dtype=np.uint8)
        self._by_sqlite = np.empty(PIECE_BASES, dtype=np.uint8)

    def run(self, say: Say) -> None:
        """Compare all windows; `say` is called with the share that is done."""
        for span in self.spans(say):
            try:
                self._compare(span)
            except UNREADABLE as error:
                self.failed(span, error)

    def failed(self, span: Span, error: BaseException) -> None:
        """Add that windows cannot be read; the others of their sample would fail in the same way and are left out."""
        self._broken.add(self._addresses.names[span.address[0]])
        self.wrong(span, f"cannot be read: {_text(error, self._addresses.path)}")

    def is_broken(self, span: Span) -> bool:
        """Whether windows of the same sample could not be read."""
        return self._addresses.names[span.address[0]] in self._broken

    def spans(self, say: Say) -> Iterator[Span]:
        """Check where windows lie in their contigs, and yield those that have addresses."""
        windows, last = self._task.windows, None
        for start in range(0, len(windows), WINDOWS_AT_ONCE):
            some = windows[start : start + WINDOWS_AT_ONCE]
            found = self._addresses.find(some)
            for window, row, address in zip(some, self._index.locate_many(some), found, strict=True):
                contig_id, in_contig = row[0], row[1]
                if not self._is_in_place(Span(window, contig_id, address, in_contig)):
                    continue
                if (
                    last is not None
                    and window == last.first + last.windows
                    and contig_id == last.contig_id
                    and in_contig == last.in_contig + 1
                    and _contig(address) == _contig(last.address)
                ):
                    last.in_contig, last.windows = in_contig, last.windows + 1
                    continue
                if last is not None:
                    yield last
                last = Span(window, contig_id, address, in_contig)
            say((start + len(some)) / len(windows))
        if last is not None:
            yield last

    def _is_in_place(self, span: Span) -> bool:
        """Compare what is known of a window without reading its bases; return whether to read them."""
        sample, _, _, _, start, _, tag = span.address
        names, tags = self._addresses.names, self._addresses.tags
        try:
            belongs_to = self._reader.sample_of(span.contig_id)
        except EdenError:
            return False  # reported before
        what = ""
        if start != span.in_contig * self._task.stride:
            what = f"begins at base {span.in_contig * self._task.stride:,}, here at {start:,}"
        elif tag < len(tags) and tags[tag] != control_name(span.contig_id):
            what = f"has the control tag {control_name(span.contig_id)!r}, here {tags[tag]!r}"
        elif sample >= len(names):
            what = f"is of sample {belongs_to!r}, here of number {sample:,} of {len(names):,}"
        elif sample >= 0 and names[sample] != belongs_to:
            what = f"is of sample {belongs_to!r}, here of {names[sample]!r}"
        if what:
            self.wrong(span, what)
        return not what and sample >= 0 and belongs_to not in self._broken

    def _compare(self, span: Span) -> None:
        sample, at, local, overflow, start, length, _ = span.address
        if self.is_broken(span):
            return
        contig = self._reader.contig(span.contig_id)
        if contig is None:
            return  # reported by the checks of samples
        if contig.length != length:
            self.wrong(span, f"is of a contig of {contig.length:,} bases, here of {length:,}")
            return
        end = min(length, span.in_contig * self._task.stride + self._task.window_size)
        substr = self._reader.connection(self._addresses.names[sample]).cursor() if length <= PIECE_BASES else None
        for first in range(start, end, PIECE_BASES):
            bases = min(PIECE_BASES, end - first)
            request = (sample, at, local, overflow, first, length, bases, 0)
            self._addresses.read([request], memoryview(self._by_address))  # type: ignore[arg-type]  # a buffer
            if substr is None:
                contig.read(first, self._by_sqlite, 0, bases)
                by_sqlite = self._by_sqlite[:bases]
            else:
                found = substr.execute(_SUBSTR, (first + 1, bases, span.contig_id)).get
                by_sqlite = np.frombuffer(found, dtype=np.uint8)
            if not np.array_equal(self._by_address[:bases], by_sqlite):
                other = np.flatnonzero(self._by_address[: len(by_sqlite)] != by_sqlite)
                base = first + (int(other[0]) if len(other) else len(by_sqlite))
                self.wrong(span, f"has another base {base:,} at its address than SQLite reads")
                return
        self._report.compared += span.windows

    def wrong(self, span: Span, what: str) -> None:
        """Add what is wrong with windows."""
        contig = f"window {span.in_contig - span.windows + 1} of {shown(span.contig_id)}"
        self._report.wrong.add(f"window {span.first:,}, which is {contig}, {what}")


_SUBSTR = "SELECT substr(CAST(nt_sequence AS BLOB), ?, ?) FROM sequences WHERE contig_id = ? COLLATE BINARY"


def _contig(address: Address) -> tuple[int, ...]:
    """Return what the addresses of all windows of a contig share."""
    sample, at, local, overflow, _, length, tag = address
    return sample, at, local, overflow, length, tag
