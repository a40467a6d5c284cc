"""The metadata of a window database, and what is wrong with it.

The loader raises the first problem, `verify` reports all. Costs a few pragmas, the metadata and four seeks, whatever the
number of windows.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from sharded_eden.errors import UsageError, shown
from sharded_eden.format.commands import precompute_command
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.sequence_db import columns_found
from sharded_eden.format.sqlite import READ_ERRORS, Problem, open_read_only, table_columns, table_kind, unreadable

TABLES = {
    "metadata": {"key", "value"},
    "window_mappings": {"window_idx", "sequence_id", "window_in_seq_idx"},
}
OPTIONAL_TABLES = {
    "contig_lengths": {"first_window_idx", "length"},
    "packs": {"pack_idx", "windows"},
}
METADATA_KEYS = frozenset({*WindowGeometry().as_metadata(), "total_windows", "distinct_sequences", "fingerprint"})
"""The keys whose values must be integers."""


def metadata_rows(values: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the rows of the `metadata` table; NumPy numbers, which SQLite would store as BLOBs, become Python's."""
    return [
        (key, float(value) if isinstance(value, float | np.floating) else operator.index(value))
        for key, value in values.items()
    ]


class WindowDatabase:
    """The metadata of a window database. `problems` fills in the attributes.

    Args:
        connection: to the window database.
        path: its file.
    """

    def __init__(self, connection: apsw.Connection, path: Path) -> None:
        self._db = connection
        self.path = path
        self.metadata: dict[str, int] = {}
        """Every value of the metadata that is an integer."""
        self.max_ambiguous: float | None = None
        """The share of ambiguous letters above which windows were left out; None where none were."""
        self.geometry: WindowGeometry | None = None
        self.total_windows = 0
        self.has_lengths = False

    @property
    def fix(self) -> str:
        """The command that makes it again, with the settings known so far."""
        return precompute_command(
            self.path, geometry=self.geometry, max_ambiguous=self.max_ambiguous, metadata=self.metadata, force=True
        )

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that make the database unusable. After a problem, later attributes may be missing.

        Raises:
            apsw.Error: it cannot be read.
            UnicodeError: its text cannot be decoded.
        """
        found = list(self._tables())
        yield from found
        if found:
            return
        found = list(self._metadata())
        yield from found
        if found or self.geometry is None:
            return
        yield from self._numbering()
        yield from self._ids()

    def _tables(self) -> Iterator[Problem]:
        for table, columns in (TABLES | OPTIONAL_TABLES).items():
            found = table_columns(self._db, table)
            kind = table_kind(self._db, table)
            if table in TABLES and not columns <= set(found):
                what = f"not a window database: expected a table {table}({', '.join(sorted(columns))}), found "
                if table_columns(self._db, "sequences"):
                    what = what.replace("database:", "database but a sequence database:", 1)
                # Not with --force: the file may be somebody's sequence database.
                yield Problem("schema", what + columns_found(table, found), precompute_command(self.path))
            elif kind not in {"", "table", "WITHOUT ROWID table"}:
                yield Problem("schema", f"{table} is a {kind}, but must be a table", self.fix)
        self.has_lengths = OPTIONAL_TABLES["contig_lengths"] <= set(table_columns(self._db, "contig_lengths"))

    def _metadata(self) -> Iterator[Problem]:
        wrong = False
        values: dict[object, object] = {}
        for key, value in self._db.execute("SELECT key, value FROM metadata"):
            if key in values:  # the table of another program may have no key
                wrong = True
                what = f"metadata holds the key {shown(key)} more than once: {shown(values[key])} and {shown(value)}"
                yield Problem("metadata", what, self.fix)
            values[key] = value
            if key == "max_ambiguous" and isinstance(value, (int, float)):
                self.max_ambiguous = float(value)
            number = as_integer(value)
            if number is not None:
                self.metadata[key] = number
            elif key in METADATA_KEYS:  # other keys may have any value
                wrong = True
                yield Problem("metadata", f"metadata {key}={shown(value)} is not an integer", self.fix)
        missing = [key for key in ("window_size", "stride") if key not in self.metadata]
        if missing and not wrong:
            what = f"the table metadata lacks {' and '.join(missing)}, so nothing says how its windows were cut"
            yield Problem("metadata", what, self.fix)
        if missing or wrong:
            return
        try:
            self.geometry = WindowGeometry.from_metadata(self.metadata)
        except UsageError as error:
            yield Problem("metadata", f"its metadata contradicts itself: {error}", self.fix)

    def _numbering(self) -> Iterator[Problem]:
        first, last = self._db.execute(
            # Two subqueries are two seeks; both in one SELECT would be a scan.
            "SELECT (SELECT min(window_idx) FROM window_mappings), (SELECT max(window_idx) FROM window_mappings)"
        ).get
        total = self.metadata.get("total_windows")
        if total is None:
            total = int(self._db.execute("SELECT count(*) FROM window_mappings").get)
        self.total_windows = total
        if (first, last) != ((0, total - 1) if total else (None, None)):
            held = "no row" if first is None else f"{shown(first)} to {shown(last)}"
            yield Problem(
                "totals" if first == 0 and "total_windows" in self.metadata else "gap",
                f"{total} windows should be numbered 0 to {total - 1}, but the table holds {held}. It is incomplete",
                self.fix,
            )

    def _ids(self) -> Iterator[Problem]:
        """Check that no ID is NULL or a number: two seeks where IDs have an index."""
        if not has_id_index(self._db):
            return
        for condition, kind in (("IS NULL", "NULL"), ("< ''", "a number")):
            found = self._db.execute(
                f"SELECT window_idx FROM window_mappings WHERE sequence_id {condition} LIMIT 1"
            ).get
            if found is not None:
                yield Problem("schema", f"the sequence_id of window {shown(found)} is {kind} instead of text", self.fix)


def window_geometry(path: Path) -> WindowGeometry:
    """Return how the windows of a database were cut.

    Raises:
        DatabaseError: it is not a window database, or a damaged one.
    """
    try:
        with closing(open_read_only(path, io="read")) as database:
            state = WindowDatabase(database, path)
            for problem in state.problems():
                raise problem.error(path)
    except READ_ERRORS as error:
        raise unreadable(path, error) from error
    assert state.geometry is not None  # noqa: S101 - narrows the type
    return state.geometry


def has_id_index(database: apsw.Connection) -> bool:
    """Return whether an index has all IDs in the order of their bytes."""
    return bool(
        database.execute(
            "SELECT count(*) FROM pragma_index_list('window_mappings') AS i, pragma_index_xinfo(i.name) AS c "
            "WHERE c.seqno = 0 AND c.name = 'sequence_id' AND c.coll = 'BINARY' COLLATE NOCASE AND NOT i.partial"
        ).get
    )


def as_integer(value: object) -> int | None:
    """Return a value of the metadata as an integer that SQLite can hold; None where it is none."""
    if isinstance(value, float) and not value.is_integer():
        return None
    try:
        number = int(value)  # type: ignore[call-overload]  # a TypeError is caught
    except (TypeError, ValueError):
        return None
    return number if -(2**63) <= number < 2**63 else None


def row_problem(window_idx: int, row: Sequence[object]) -> str:
    """Return what is wrong with a row (sequence_id, window_in_seq_idx, length or None); empty where it is valid.

    `row` is a list of rows where the index is there more than once.
    """
    if isinstance(row, list):
        return f"window {window_idx} is in the table {len(row)} times"
    sequence_id, in_contig, length = row
    for name, value, kind in (
        ("sequence_id", sequence_id, str),
        ("window_in_seq_idx", in_contig, int),
        ("length", 0 if length is None else length, int),
    ):
        if type(value) is not kind:
            expected = "text" if kind is str else "an integer"
            return f"window {window_idx}: {name} is {shown(value)} instead of {expected}"
    return ""
