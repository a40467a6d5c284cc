"""Checks of one window database: tables, metadata, totals, gaps, order, recorded lengths, fingerprint, packs.

Input: its path. Output: findings, and the samples that its windows name, each with its ranges of the index. Costs a few seeks
and one for each sample; with `full` four passes over the table and SQLite's own check (1.5 µs a window together).
"""

from __future__ import annotations

import random
from collections.abc import Set
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from sharded_eden.checks.findings import Finding, Findings, scans
from sharded_eden.checks.lengths import check_lengths
from sharded_eden.checks.packs import PacksCheck
from sharded_eden.checks.window_ranges import EVERYTHING, Range, copy_with_index, prefixes
from sharded_eden.errors import InputError
from sharded_eden.format import schema
from sharded_eden.format.commands import precompute_command, quoted
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.sqlite import open_read_only
from sharded_eden.format.window_db import WindowDatabase
from sharded_eden.jobs import Say

PLACES = 64
"""The number of places at which a quick check reads adjacent windows."""
NEIGHBOURS = 64
"""Windows read at each place."""
_FOLLOWS = """
(b.sequence_id = a.sequence_id AND b.window_in_seq_idx = a.window_in_seq_idx + 1
 OR b.sequence_id > a.sequence_id AND b.window_in_seq_idx = 0)"""
"""SQL: window b may directly follow window a."""

_FOLLOWS_WITH_HOLES = """
(b.sequence_id = a.sequence_id AND b.window_in_seq_idx > a.window_in_seq_idx OR b.sequence_id > a.sequence_id)"""
"""The same where ambiguous windows were left out."""


@dataclass(frozen=True, kw_only=True)
class WindowsTask:
    """What to check."""

    path: Path
    full: bool
    by_sample: bool
    """Whether there are several sequence databases, so that IDs must name the one of a contig."""
    sequences: Path
    """The folder of sequence databases."""
    seed: int
    copy: Path
    """The file for a copy of tables that have no index."""


@dataclass(kw_only=True)
class WindowsReport:
    """The findings, and the input of the checks of samples."""

    path: Path
    joined: Path
    """The file to join with: the database, or an indexed copy of it."""
    findings: list[Finding] = field(default_factory=list)
    geometry: WindowGeometry | None = None
    """The geometry of its windows; None where it is unknown."""
    max_ambiguous: float | None = None
    """The share of ambiguous letters above which windows were left out; None where none were."""
    metadata: dict[str, int] = field(default_factory=dict)
    """The metadata that are integers."""
    windows: int = 0
    is_open: bool = False
    """Whether the loader can open it, according to the checks so far."""
    has_lengths: bool = False
    ranges: dict[str, list[Range]] = field(default_factory=dict)
    """{sample: where its IDs are}; {'': everything} where there is just one sequence database."""

    @property
    def fix(self) -> str:
        """The command that makes it again."""
        return precompute_command(
            self.path, geometry=self.geometry, max_ambiguous=self.max_ambiguous, metadata=self.metadata, force=True
        )


def verify_windows(task: WindowsTask, say: Say) -> WindowsReport:
    """Check one window database; `say` is called with the share that is done."""
    report = WindowsReport(path=task.path, joined=task.path)
    findings = Findings(report.findings)
    connection = findings.opened(task.path, report.fix)
    if connection is not None:
        with closing(connection), findings.checking("file", task.path, report.fix):
            _Check(task, report, findings, connection).run(say)
    return report


class _Check:
    """The checks of one open window database."""

    def __init__(
        self, task: WindowsTask, report: WindowsReport, findings: Findings, connection: apsw.Connection
    ) -> None:
        self._task, self._report, self._findings, self._db = task, report, findings, connection
        self._path = task.path
        self._follows = _FOLLOWS

    def run(self, say: Say) -> None:
        if self._task.full:
            self._findings.integrity(self._db, self._path, self._report.fix)
            say(0.3)
        stated = WindowDatabase(self._db, self._path)
        problems = list(stated.problems())
        self._report.has_lengths = stated.has_lengths
        self._report.geometry = geometry = stated.geometry
        self._report.metadata = stated.metadata
        if stated.max_ambiguous is not None:
            self._report.max_ambiguous, self._follows = stated.max_ambiguous, _FOLLOWS_WITH_HOLES
        for problem in problems:
            self._findings.error(problem.check, self._path, problem.what, problem.fix or self._report.fix)
        if geometry is None:
            return
        self._warn_of_encoding()
        has_index = self._indices()
        if not self._numbering(stated.total_windows, {problem.check for problem in problems}):
            return
        with self._findings.checking("sample", self._path, self._report.fix):
            self._samples(has_index)
        if self._task.full:
            with self._findings.checking("order", self._path, self._report.fix):
                self._order()
            say(0.5)
            with self._findings.checking("totals", self._path, self._report.fix):
                self._distinct()
            with self._findings.checking("windows", self._path, self._report.fix):
                self._recorded_lengths(geometry)
            say(0.7)
        else:
            with self._findings.checking("gap", self._path, self._report.fix):
                self._places()
        self._packs(geometry)

    def _error(self, check: str, what: str) -> None:
        self._findings.error(check, self._path, what, self._report.fix)

    def _one(self, query: str, *values: int) -> int:
        """Return a query's only value, an integer."""
        return int(self._db.execute(query, values).get or 0)

    # ---- its schema ----

    def _warn_of_encoding(self) -> None:
        encoding = str(self._db.pragma("encoding"))
        if encoding != "UTF-8":
            self._findings.warning(
                "encoding",
                self._path,
                f"its encoding is {encoding} instead of UTF-8: it cannot be attached to the sequence databases",
                self._report.fix,
            )

    def _indices(self) -> bool:
        """Return whether the IDs have an index."""
        if scans(self._db, "SELECT sequence_id FROM window_mappings WHERE window_idx = ?"):
            self._error(
                "index", "window_idx is not an INTEGER PRIMARY KEY: each window is looked for in all of window_mappings"
            )
        if not scans(self._db, "SELECT sequence_id FROM window_mappings WHERE sequence_id >= ? ORDER BY sequence_id"):
            return True
        self._findings.warning(
            "index",
            self._path,
            "sequence_id has no index: all windows are read for each sample and each control tag",
            f"sqlite3 {quoted(self._path)} '{schema.CREATE_SEQUENCE_ID_INDEX}'",
        )
        return False

    # ---- its numbers ----

    def _numbering(self, total: int, problems: Set[str]) -> bool:
        """With `full`, check that window numbers have no gaps; return whether windows can be looked up.

        Args:
            total: the number of windows that the metadata state, or that were counted.
            problems: the checks that failed before.
        """
        if problems & {"gap", "schema"} or (problems and not self._task.full):
            return False
        counted = self._one("SELECT count(*) FROM window_mappings") if self._task.full else total
        if counted != total and "totals" not in problems:
            self._error("totals", f"metadata total_windows={total}, but window_mappings holds {counted:,} windows")
        last = self._one("SELECT max(window_idx) FROM window_mappings") if counted else -1
        if last != counted - 1:
            missing = self._db.execute(
                "SELECT a.window_idx + 1 FROM window_mappings AS a LEFT JOIN window_mappings AS b "
                "ON b.window_idx = a.window_idx + 1 WHERE b.window_idx IS NULL AND a.window_idx >= -1 LIMIT 1"
            ).get
            self._error(
                "gap",
                f"{counted} windows should be numbered 0 to {counted - 1}, but they are 0 to {last}; the first one missing is "
                f"{missing}",
            )
            return False
        self._report.windows = counted
        self._report.is_open = not self._findings.has("totals")
        return True

    def _places(self) -> None:
        """Compare adjacent windows at random places."""
        choose = random.Random(self._task.seed)
        total = self._report.windows
        ordered = self._is_ordered()
        for _ in range(min(PLACES, total)):
            start = choose.randrange(max(1, total - NEIGHBOURS + 1))
            end = min(total, start + NEIGHBOURS)
            found = self._one(
                "SELECT count(*) FROM window_mappings WHERE window_idx >= ? AND window_idx < ?", start, end
            )
            if found != end - start:
                self._error("gap", f"of the windows {start} to {end - 1} there are {found}, not {end - start}")
                self._report.is_open = False
                return
            if not ordered:
                continue
            astray = self._db.execute(
                "SELECT b.window_idx FROM window_mappings AS b JOIN window_mappings AS a ON a.window_idx = b.window_idx - 1 "
                f"WHERE b.window_idx > ? AND b.window_idx < ? AND NOT {self._follows} LIMIT 1",
                (start, end),
            ).get
            if astray is not None:
                self._disorder(astray, "such windows near it")
                return

    def _is_ordered(self) -> bool:
        """Return whether windows must be sorted: `precompute` sorts them, and `contig_lengths` needs it."""
        return self._report.has_lengths or "fingerprint" in self._report.metadata

    def _order(self) -> None:
        strange = self._one(
            "SELECT count(*) FROM window_mappings WHERE typeof(sequence_id) != 'text' OR typeof(window_in_seq_idx) != 'integer'"
        )
        if strange:
            self._error("schema", f"{strange:,} rows of window_mappings hold no text as ID, or no integer as position")
        if not self._is_ordered():
            return
        count, astray = self._db.execute(
            "SELECT count(*), min(b.window_idx) FROM window_mappings AS b JOIN window_mappings AS a "
            f"ON a.window_idx = b.window_idx - 1 WHERE NOT {self._follows}"
        ).get
        if count:
            self._disorder(astray, f"{count:,} such places in all")

    def _disorder(self, window_idx: int, how_many: str) -> None:
        before, this = self._db.execute(
            "SELECT sequence_id, window_in_seq_idx FROM window_mappings WHERE window_idx IN (?, ?) ORDER BY window_idx",
            (window_idx - 1, window_idx),
        ).fetchall()
        self._error(
            "order",
            f"window {window_idx} is window {this[1]} of {this[0]!r}, after window {before[1]} of {before[0]!r}: IDs should "
            f"rise, and the windows of each be 0, 1, 2, ... ({how_many})",
        )

    def _distinct(self) -> None:
        stated = self._report.metadata.get("distinct_sequences")
        if stated is not None:
            counted = self._one("SELECT count(*) FROM (SELECT DISTINCT sequence_id FROM window_mappings)")
            if stated != counted:
                self._error(
                    "totals", f"metadata distinct_sequences={stated}, but window_mappings names {counted} contigs"
                )

    def _recorded_lengths(self, geometry: WindowGeometry) -> None:
        stated = self._report.metadata.get("fingerprint")
        if self._report.has_lengths:
            check_lengths(
                self._findings,
                self._db,
                self._path,
                self._report.fix,
                geometry=geometry,
                windows=self._report.windows,
                fingerprint=stated,
                has_holes=self._report.max_ambiguous is not None,
            )
        elif stated is not None:
            self._error("fingerprint", f"metadata has fingerprint={stated}, but no contig_lengths to compute it from")

    def _packs(self, geometry: WindowGeometry) -> None:
        with self._findings.checking("packs", self._path, self._report.fix):
            check = PacksCheck(
                self._findings,
                self._db,
                self._path,
                geometry=geometry,
                windows=self._report.windows,
                has_lengths=self._report.has_lengths,
                sequences=self._task.sequences,
                scratch=self._task.copy.parent,
            )
            with self._findings.checking("packs", self._path, check.fix):
                sound = not any(self._findings.has(of) for of in ("gap", "order", "windows", "fingerprint"))
                check.run(full=self._task.full, seed=self._task.seed, lengths_are_sound=sound)

    # ---- its samples ----

    def _samples(self, has_index: bool) -> None:
        """Find which samples its windows name, and where their IDs are."""
        if not has_index:  # without an index, the whole table would be read for each sample
            self._report.joined = self._task.copy
            copy_with_index(self._path, self._report.joined, str(self._db.pragma("encoding")), self._report.has_lengths)
        if not self._task.by_sample:
            self._report.ranges[""] = [EVERYTHING]
            return
        with closing(open_read_only(self._report.joined, io="read")) as source:
            for sequence_id, found in prefixes(source):
                try:
                    sample = schema.extract_sample_id(sequence_id)
                except InputError as error:
                    self._error("sample", str(error))
                    return
                self._report.ranges.setdefault(sample, []).append(found)
