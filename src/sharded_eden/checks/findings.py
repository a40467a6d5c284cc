"""The findings of `verify`. An error while a file is read becomes a finding too.

One `Finding` is made for each file and check, however many rows are wrong.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import apsw
import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, EdenError, MissingDatabase
from sharded_eden.format.commands import precompute_command, quoted, sibling
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.sqlite import is_mutable_now, open_read_only, unreadable

Severity = Literal["error", "warning"]

CHECKS = {
    "file": "it is there, whole, and SQLite reads it",
    "leftover": "no -wal or -journal is beside it",
    "schema": "it has the specified tables and columns",
    "encoding": "its text is UTF-8",
    "layout": "its tables are ordinary ones: no view, not WITHOUT ROWID",
    "index": "rows are found by an index",
    "integrity": "PRAGMA integrity_check reports ok",
    "metadata": "the metadata are integers and do not contradict each other",
    "totals": "total_windows and distinct_sequences are what the table holds",
    "gap": "windows are numbered 0, 1, 2, ... without a gap",
    "order": "windows are in the order of their contigs' IDs, and those of a contig in theirs",
    "fingerprint": "the fingerprint is that of these contigs and lengths",
    "packs": "every window is in one pack, each pack fits into a row, and total_packs, "
    "pack_useful_tokens and pack_fingerprint are theirs",
    "sample": "every sample that windows name has a sequence database",
    "contig": "every contig that has windows is in the database of its sample, as text",
    "length": "contigs are as long as their windows and contig_lengths say",
    "empty": "every contig that has windows has bases",
    "windows": "contigs have the windows that their lengths make",
    "addresses": "WINDOWS.db.index is of these files, and its addresses lead to the bases that SQLite reads",
    "alphabet": "sequences are IUPAC nucleotide letters, in either case, or @ and #",
    "content": "a sequence database contains what build wrote, by the hash in the manifest",
    "opening": "the loader opens the split",
    "mixture": "the sources of a mixture can be trained on together",
    "table": "contigs.parquet lists what the sequence databases hold",
    "shared-sample": "no sample is in two splits",
    "copied-contig": "no contig is in two splits, neither as a copy nor as its other strand",
    "near-duplicate": "with --near-duplicates: no contig resembles one of another split",
}
"""{name of a check: the condition that it checks}."""

UNREADABLE = (
    apsw.Error,
    EdenError,
    OSError,
    ValueError,  # text that is no UTF-8 among them
    TypeError,  # a value of another type than its column declares
    OverflowError,
    MemoryError,  # an impossible size, which only damage explains
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
)
"""The exceptions that reading a damaged file may raise."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with one file."""

    check: str
    """One of `CHECKS`."""
    severity: Severity
    """`error`: training would stop, or use wrong data. `warning`: training works, at a cost that `what` names."""
    file: str
    what: str
    """What is wrong, with both values."""
    fix: str
    """The command that fixes it."""


@dataclass
class Findings:
    """A list of findings that grows."""

    found: list[Finding] = field(default_factory=list)
    _disk_fails: dict[str, bool] = field(default_factory=dict, repr=False)

    def error(self, check: str, file: str | Path, what: str, fix: str) -> None:
        """Add a finding that would stop training or change its data."""
        self.found.append(Finding(check=check, severity="error", file=str(file), what=what, fix=fix))

    def warning(self, check: str, file: str | Path, what: str, fix: str) -> None:
        """Add a finding that only has a cost."""
        self.found.append(Finding(check=check, severity="warning", file=str(file), what=what, fix=fix))

    @property
    def has_errors(self) -> bool:
        """Whether any of them is an error."""
        return any(finding.severity == "error" for finding in self.found)

    def has(self, check: str) -> bool:
        """Whether any of them is of this check."""
        return any(finding.check == check for finding in self.found)

    def checking(self, check: str, file: str | Path, fix: str) -> Checking:
        """Turn any error while a file is read into a finding of this check, and continue after the block."""
        return Checking(self, check, file, fix)

    def without_bases(self, path: Path, contigs: Tally, window_db: Path, geometry: WindowGeometry) -> None:
        """Warn of contigs that have windows and no bases.

        Args:
            path: their sequence database.
            contigs: them.
            window_db: the window database.
            geometry: how its windows are cut.
        """
        if contigs.count:
            without = replace(geometry, min_length=max(1, geometry.min_length))
            self.warning(
                "empty",
                path,
                f"contigs that have windows in {window_db} have no bases, so their rows hold only special tokens: {contigs}",
                precompute_command(sibling(window_db, "without-empty"), geometry=without),
            )

    def disk_fails(self, file: str | Path) -> bool:
        """Return whether the disk cannot read a file, and add a finding then: SQLite would report the file as damaged.

        Reads the whole file, once: call it only after an error.
        """
        if str(file) not in self._disk_fails:
            what = disk_failure(file)
            self._disk_fails[str(file)] = bool(what)
            if what:
                fix = "check the disk and the log of the system; then verify again, or restore the file from a copy"
                self.error("file", file, what, fix)
        return self._disk_fails[str(file)]

    def opened(self, path: Path, fix: str) -> apsw.Connection | None:
        """Open a database for reading, without mapping it; None where it cannot be opened, which is then a finding."""
        for suffix in ("-wal", "-journal"):
            beside = path.resolve().with_name(path.resolve().name + suffix)
            if beside.exists():
                self.warning(
                    "leftover",
                    path,
                    f"{beside} ({beside.stat().st_size:,} bytes) is beside it: a program has it open or was stopped "
                    "while writing it. Every reader must lock the file, and a copy without this one may have other contents",
                    f"close that program, then: sqlite3 {quoted(path)} 'PRAGMA journal_mode = DELETE' && "
                    f"rm -f {quoted(beside)}",
                )
        with self.checking("file", path, fix):
            if path.is_file() and path.stat().st_size == 0 and not is_mutable_now(path):
                raise MissingDatabase(f"{path}: it is empty: 0 bytes; the smallest database has 512")
            return open_read_only(path, io="read", cache_kib=CACHE_KIB)
        return None

    def integrity(self, connection: apsw.Connection, path: Path, fix: str) -> None:
        """Run SQLite's integrity check over every page and every row of an index."""
        with self.checking("integrity", path, fix):
            said = [row[0] for row in connection.execute(f"PRAGMA integrity_check({EXAMPLES})")]
            if said != ["ok"] and not self.disk_fails(path):
                self.error("integrity", path, f"integrity_check reports {'; '.join(said)!r} instead of 'ok'", fix)


EXAMPLES = 3
"""The number of examples that a finding names."""

PIECE_BYTES = 1 << 16
"""Bytes read at once to find the place that a disk cannot read."""

CACHE_KIB = 8192
"""Page cache of one connection."""


class Checking:
    """The context of one check, see `Findings.checking`."""

    def __init__(self, findings: Findings, check: str, file: str | Path, fix: str) -> None:
        self._findings, self._check, self._file, self._fix = findings, check, file, fix

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if not isinstance(error, UNREADABLE):
            return False
        if isinstance(error, (apsw.Error, DatabaseError, OSError)) and self._findings.disk_fails(self._file):
            return True
        what = str(unreadable(self._file, error) if isinstance(error, apsw.Error) else error)
        self._findings.error(
            self._check, self._file, what.removeprefix(f"{self._file}: ") or type(error).__name__, self._fix
        )
        return True


@dataclass
class Tally:
    """Counts problems of one kind, and keeps the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)

    def add_rows(self, wrong: NDArray[np.bool_], describe: Callable[[int], str]) -> None:
        """Count the true ones of (n,) bool; `describe` is called for the few that are kept."""
        rows = np.flatnonzero(wrong)
        self.examples += [describe(int(row)) for row in rows[: EXAMPLES - len(self.examples)]]
        self.count += len(rows)

    def __str__(self) -> str:
        more = self.count - len(self.examples)
        return "; ".join(self.examples) + (f" and {more:,} more" if more else "")


def disk_failure(path: str | Path) -> str:
    """Return where the disk cannot read a file; empty where it can, or where there is no such file."""
    position = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while piece := os.pread(file.fileno(), PIECE_BYTES, position):
                position += len(piece)
    except OSError as error:
        if error.errno == errno.EIO:
            return f"the disk fails to read it after byte {position:,} ({error.strerror}); the database itself may be whole"
    return ""


def scans(connection: apsw.Connection, query: str) -> bool:
    """Return whether SQLite would scan a whole table for a query with one parameter."""
    plan = connection.execute(f"EXPLAIN QUERY PLAN {query}", (0,))
    return any(str(row[3]).startswith("SCAN") for row in plan)
