"""One sequence database, checked against the windows that name it. One task: it can be pickled and run anywhere.

Input: the database, and where its IDs are in each window database. Output: findings, counts, and a file of digests that finds
copies. Costs an open and five pragmas; with `full` one JOIN for each window database, and every base is read once (twice where
a contig of more than 16 Mb is hashed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from shlex import quote

import apsw
import numpy as np
from numpy.typing import NDArray

from sharded_eden.build.manifest import rows_hash
from sharded_eden.checks.digests import PIECE_BASES, Bases, DigestFile, Pieces, canonical_digest
from sharded_eden.checks.findings import Finding, Findings, Tally, scans
from sharded_eden.checks.window_ranges import Range
from sharded_eden.errors import shown
from sharded_eden.format.commands import build_command, quoted, split_command
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.schema import CONTIGS_FILE, CREATE_SEQUENCES, NUCLEOTIDES, STITCH_MARKS
from sharded_eden.format.sequence_db import blob_obstacle, sequence_db_problems
from sharded_eden.format.sqlite import attach_read_only, open_read_only
from sharded_eden.jobs import Say
from sharded_eden.load.read.databases import SequenceReader

LETTERS = (NUCLEOTIDES + NUCLEOTIDES.lower() + STITCH_MARKS).encode()
WHOLE_BYTES = 1 << 24
"""Contigs up to this length are read at once, longer ones in pieces."""
CHUNK_ROWS = 50_000
REPORT_BASES = 1 << 22
"""Bases read between two reports of progress."""
INTEGRITY_SHARE = 0.3
"""The approximate share of a full check's time that SQLite's integrity check takes."""

TEMPORARY = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI

_WINDOWS = """
SELECT sequence_id, count(*) AS n, min(window_in_seq_idx) AS first, max(window_in_seq_idx) AS last,
       count(DISTINCT window_in_seq_idx) AS different, min(window_idx) AS window_idx
FROM windows.window_mappings WHERE sequence_id >= ?1 AND sequence_id < ifnull(?2, x'') GROUP BY sequence_id"""
"""The windows of the contigs in a range of IDs; every text is below the BLOB x''."""

_JOIN = """
SELECT w.sequence_id, w.n, w.first, w.last, w.different, ifnull({recorded}, -1), c.contig_id IS NOT NULL,
       ifnull(c.length, 0)
FROM ({windows}) AS w LEFT JOIN {contigs} AS c ON c.contig_id = w.sequence_id {lengths}"""

_CONTIGS = """
(SELECT contig_id, octet_length(nt_sequence) / iif(typeof(nt_sequence) = 'text', {unit}, 1) AS length FROM sequences)"""


@dataclass(frozen=True, kw_only=True)
class WindowsOfSample:
    """Where the windows of a sample are in one window database."""

    split: int
    """The number of the window database, from 0."""
    path: Path
    joined: Path
    """The file to join with: the database, or an indexed copy of it."""
    ranges: tuple[Range, ...]
    geometry: WindowGeometry
    has_lengths: bool
    has_holes: bool
    """Whether ambiguous windows were left out."""
    fix: str


@dataclass(frozen=True, kw_only=True)
class SampleTask:
    """What to check."""

    number: int
    """The number of the sample, from 0."""
    sample_id: str
    path: Path
    full: bool
    windows: tuple[WindowsOfSample, ...] = ()
    listed: tuple[int, int] | None = None
    """Its numbers of contigs and bases in `contigs.parquet`."""
    digests: Path | None = None
    """The file for the digests of its contigs; None where copies are not searched for."""
    rows_hash: str | None = None
    """The hash of its rows in the manifest; None where `build` recorded none."""


@dataclass(kw_only=True)
class SampleReport:
    """What was found."""

    task: SampleTask
    findings: list[Finding] = field(default_factory=list)
    contigs: int = 0
    """Contigs read, with `full`."""
    bases: int = 0


def verify_sample(task: SampleTask, say: Say) -> SampleReport:
    """Check one sequence database; `say` is called with the share that is done."""
    report = SampleReport(task=task)
    findings = Findings(report.findings)
    fix = build_command(task.path.parent.parent, force=True)
    connection = findings.opened(task.path, fix)
    if connection is not None:
        with closing(connection), findings.checking("file", task.path, fix):
            _Check(task, report, findings, connection, fix, say).run()
    return report


class _Check:
    """The checks of one open sequence database."""

    def __init__(
        self,
        task: SampleTask,
        report: SampleReport,
        findings: Findings,
        connection: apsw.Connection,
        fix: str,
        say: Say,
    ) -> None:
        self._task, self._report, self._findings, self._db, self._fix = task, report, findings, connection, fix
        self._path = task.path
        self._say = say
        self._encoding = str(connection.pragma("encoding"))
        self._unit = 1 if self._encoding == "UTF-8" else 2
        self._is_plain = True  # BLOB I/O works

    def run(self) -> None:
        if self._task.full:
            self._findings.integrity(self._db, self._path, self._fix)
            self._say(INTEGRITY_SHARE)
        if not self._tables() or not self._task.full:
            return
        for windows in self._task.windows:
            # The window database was checked before: an error here comes from this database.
            with self._findings.checking("file", self._path, self._fix):
                self._join(windows)
        with self._findings.checking("file", self._path, self._fix):
            self._read()
            self._compare_hash()

    # ---- its schema ----

    def _tables(self) -> bool:
        problems = list(sequence_db_problems(self._db, self._path))
        for problem in problems:
            self._findings.error(problem.check, self._path, problem.what, self._fix)
        if any(problem.check == "schema" for problem in problems):
            return False
        slow = "each window is read with substr(), which loads its whole contig first"
        if self._unit == 2:
            what = f"its encoding is {self._encoding} instead of UTF-8: {slow}"
            self._findings.warning("encoding", self._path, what, self._copy_command())
            self._is_plain = False
        obstacle = blob_obstacle(self._db)
        if obstacle and self._unit == 1:
            self._findings.warning("layout", self._path, f"{obstacle}: {slow}", self._copy_command())
            self._is_plain = False
        if scans(self._db, "SELECT nt_sequence FROM sequences WHERE contig_id = ?"):
            what = "contig_id has no index: each window is looked for in the whole table"
            self._findings.warning("index", self._path, what, self._copy_command())
        return True

    def _copy_command(self) -> str:
        """Return the command that writes the rows into a table as specified, in a new file, and puts it in place."""
        old, new = quoted(self._path), quoted(f"{self._path}.new")
        if self._unit == 2:
            return f"sqlite3 {old} .dump | sqlite3 {new} && mv {new} {old}"
        rows = (
            f"ATTACH {apsw.format_sql_value(str(self._path))} AS old; {' '.join(CREATE_SEQUENCES.split())}; "
            "INSERT INTO sequences SELECT contig_id, nt_sequence FROM old.sequences"
        )
        return f"sqlite3 {new} {quote(rows)} && mv {new} {old}"

    # ---- its windows ----

    def _join(self, windows: WindowsOfSample) -> None:
        """Check that the contigs of one split are in this database, with the right lengths."""
        absent, short, other, empty = Tally(), Tally(), Tally(), Tally()
        for ids, columns in self._joined(windows):
            _compare(windows, ids, columns, absent, short, other, empty)
        self._findings.without_bases(self._path, empty, windows.path, windows.geometry)
        fix = f"{split_command(self._path.parent.parent)}, then {windows.fix}"
        for check, tally, what in (
            ("contig", absent, f"contigs that have windows in {windows.path} are not here"),
            ("length", short, f"contigs are not as long as their windows in {windows.path} say"),
            ("windows", other, f"contigs have other windows in {windows.path} than their lengths make"),
        ):
            if tally.count:
                self._findings.error(check, self._path, f"{what}: {tally}", fix)

    def _joined(self, windows: WindowsOfSample) -> Iterator[tuple[list[str], NDArray[np.int64]]]:
        """Yield, in chunks, the contigs that have windows: IDs, and (7, n) int64 from the JOIN."""
        with ExitStack() as stack:
            database, contigs = self._beside(windows.joined, stack)
            query = _JOIN.format(
                windows=_WINDOWS,
                contigs=contigs,
                # The check of the window database names lengths that are not integers.
                recorded="iif(typeof(l.length) = 'integer', l.length, NULL)" if windows.has_lengths else "NULL",
                lengths="LEFT JOIN windows.contig_lengths AS l ON l.first_window_idx = w.window_idx"
                if windows.has_lengths
                else "",
            )
            for span in windows.ranges:
                rows = database.execute(query, span)
                while chunk := list(islice(rows, CHUNK_ROWS)):
                    yield [row[0] for row in chunk], np.array([row[1:] for row in chunk], dtype=np.int64).T

    def _beside(self, windows: Path, stack: ExitStack) -> tuple[apsw.Connection, str]:
        """Return a connection with both databases, and the SQL for (contig_id, length) in it.

        SQLite attaches no database of another encoding; then IDs and lengths are copied into a temporary one first.
        """
        with closing(open_read_only(windows, io="read")) as other:
            encoding = str(other.pragma("encoding"))
        contigs = _CONTIGS.format(unit=self._unit)
        if encoding == self._encoding:
            database = stack.enter_context(closing(open_read_only(self._path, io="read")))
        else:
            database = stack.enter_context(closing(apsw.Connection("", flags=TEMPORARY)))
            database.execute(f"PRAGMA encoding = '{encoding}'")
            database.execute("CREATE TABLE contigs (contig_id TEXT PRIMARY KEY, length INTEGER)")
            with database:
                rows = self._db.execute(f"SELECT contig_id, length FROM {contigs}")
                database.executemany("INSERT OR IGNORE INTO contigs VALUES (?, ?)", rows)
            contigs = "contigs"
        attach_read_only(database, windows, "windows")
        return database, contigs

    # ---- its bases ----

    def _read(self) -> None:
        """Read every base: letters, digests, totals."""
        no_text, letters = Tally(), Tally()
        task = self._task
        size_bytes, next_report = max(1, self._path.stat().st_size), REPORT_BASES
        with ExitStack() as stack:
            digests = None if task.digests is None else stack.enter_context(DigestFile(task.digests))
            splits = [] if digests is None else [(w.split, self._membership(w.joined, stack)) for w in task.windows]
            for ordinal, (contig_id, kind, bases) in enumerate(self._contigs(stack)):
                if bases is None:
                    no_text.add(f"{shown(contig_id)} holds {kind}")
                    continue
                self._report.contigs += 1
                self._report.bases += len(bases)
                if self._report.bases >= next_report:
                    next_report = self._report.bases + REPORT_BASES
                    self._say(min(1.0, INTEGRITY_SHARE + (1 - INTEGRITY_SHARE) * self._report.bases / size_bytes))
                if strange := strange_letter(bases):
                    letters.add(f"{shown(contig_id)} holds {strange}")
                found_in = [split for split, has in splits if has(contig_id)]
                if digests is not None and found_in and len(bases):
                    digest = canonical_digest(bases)
                    for split in found_in:
                        digests.add(digest, ordinal=ordinal, sample=task.number, split=split)
        if no_text.count:
            self._findings.error("contig", self._path, f"sequences that are not text: {no_text}", self._fix)
        if letters.count:
            what = f"characters that are not IUPAC nucleotide letters: {letters}"
            self._findings.error("alphabet", self._path, what, self._fix)
        listed, counted = task.listed, (self._report.contigs, self._report.bases)
        if listed not in {None, counted}:
            self._findings.error(
                "table",
                self._path,
                f"{CONTIGS_FILE} lists {listed[0]} contigs of {listed[1]} bases, here are {counted[0]} of {counted[1]}",
                f"{self._fix}; or rm {quoted(self._path.parent.parent / CONTIGS_FILE)}, which only split reads",
            )

    def _compare_hash(self) -> None:
        """Compare all rows with the hash that `build` recorded: it finds a changed base that is still a valid letter."""
        recorded = self._task.rows_hash
        if recorded is None or not self._is_plain:
            return
        found = rows_hash(self._db)
        if found != recorded:
            what = f"its rows are not those that build wrote: their hash is {found}, the manifest has {shown(recorded)}"
            self._findings.error("content", self._path, what, self._fix)

    def _membership(self, windows: Path, stack: ExitStack) -> Callable[[object], bool]:
        """Return a function that returns whether a contig has windows in a window database."""
        cursor = stack.enter_context(closing(open_read_only(windows, io="read"))).cursor()
        query = "SELECT EXISTS (SELECT 1 FROM window_mappings WHERE sequence_id = ?)"
        return lambda contig_id: bool(cursor.execute(query, (contig_id,)).get)

    def _contigs(self, stack: ExitStack) -> Iterator[tuple[str, str, Bases | None]]:
        """Yield (contig ID, type, bases) of every row, long contigs in pieces."""
        reader = SequenceReader({self._task.sample_id: self._path}, io="read")
        stack.callback(reader.close)
        most = WHOLE_BYTES if self._is_plain else 1 << 40
        rows = self._db.execute(
            f"SELECT contig_id, typeof(nt_sequence), "
            f"iif(octet_length(nt_sequence) <= {most}, CAST(nt_sequence AS BLOB), NULL) FROM sequences"
        )
        for contig_id, kind, data in rows:
            if kind not in {"text", "blob"}:
                yield contig_id, kind, None
            elif data is not None:
                yield contig_id, kind, self._as_letters(data) if kind == "text" and self._unit == 2 else data
            else:
                contig = reader.contig(contig_id)
                yield contig_id, "an ID that finds nothing", None if contig is None else Pieces(contig)

    def _as_letters(self, data: bytes) -> bytes:
        """Return UTF-16 text as one byte a letter, 255 for letters that are not ASCII."""
        units = np.frombuffer(data, dtype=np.dtype("<u2" if self._encoding == "UTF-16le" else ">u2"))
        return np.minimum(units, 0xFF).astype(np.uint8).tobytes()


def _compare(
    windows: WindowsOfSample,
    ids: list[str],
    columns: NDArray[np.int64],
    absent: Tally,
    short: Tally,
    other: Tally,
    empty: Tally,
) -> None:
    """Compare the windows of contigs with those that the loader derives from their lengths."""
    geometry = windows.geometry
    n, first, last, different, recorded, present, length = columns
    start = last * geometry.stride
    # Recorded lengths are exact.
    with_a_base = (last > 0).astype(np.int64)
    needed = np.where(recorded >= 0, np.maximum(recorded, start + with_a_base), geometry.least_lengths(last))
    is_short = np.where(recorded >= 0, length != needed, length < needed) & (present != 0)
    expected = geometry.counts(length)
    if windows.has_holes:
        is_other = (last >= expected) | (different != n)
    else:
        is_other = (n != expected) | (first != 0) | (last != n - 1) | (different != n)
    absent.add_rows(present == 0, lambda row: shown(ids[row]))
    empty.add_rows((present != 0) & (length == 0), lambda row: shown(ids[row]))
    short.add_rows(is_short, lambda row: f"{shown(ids[row])} has {length[row]} bases instead of {needed[row]}")
    other.add_rows(
        is_other & (present != 0) & ~is_short,
        lambda row: (
            f"{shown(ids[row])} of {length[row]} bases has {n[row]} up to number {last[row]} instead of {expected[row]}"
        ),
    )


def strange_letter(bases: Bases) -> str:
    """Return the first character that is not a nucleotide letter, and its position; empty where there is none."""
    for start in range(0, len(bases), PIECE_BASES):
        piece = bases[start : start + PIECE_BASES]
        if strange := piece.translate(None, LETTERS):
            return f"{chr(strange[0])!r} at base {start + piece.index(strange[:1])}"
    return ""
