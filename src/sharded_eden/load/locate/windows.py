"""window_idx -> (sequence_id, window_in_seq_idx): the window database of one split.

Opening reads the metadata and a few rows, whatever the number of windows; the tags and samples of the windows are found by
seeks in the index on `sequence_id`, one for each.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import apsw
import numpy as np

from sharded_eden.errors import DatabaseError, GeometryMismatch, MissingDatabase, shown
from sharded_eden.format.commands import precompute_command, sibling
from sharded_eden.format.fingerprint import fingerprint_of_rows
from sharded_eden.format.geometry import WindowGeometry, default_stride
from sharded_eden.format.index import FileIdentity
from sharded_eden.format.kinds import expect
from sharded_eden.format.sqlite import READ_ERRORS, IOMode, open_read_only, unreadable
from sharded_eden.format.window_db import WindowDatabase, has_id_index, row_problem
from sharded_eden.load.read.connections import PerThread
from sharded_eden.load.read.unchanged import Unchanged

logger = logging.getLogger(__name__)

Row = tuple[str, int, int | None]
"""(sequence_id, window_in_seq_idx, length of the contig in bases or None: then `WindowIndex.contig_length` may know it)."""

_LENGTH = "SELECT length FROM contig_lengths WHERE first_window_idx <= {} ORDER BY first_window_idx DESC LIMIT 1"

FEW_WINDOWS = 2
"""With fewer windows a contig than this, most windows end with their contig: its length is looked up with each window."""

WINDOW_CACHE_KIB = 2048
"""Page cache of the window database: every lookup reads its interior pages."""


class WindowCursor:
    """One thread's connection to the window database, with its prepared lookup."""

    def __init__(self, unchanged: Unchanged, io: IOMode) -> None:
        unchanged.check([""])
        self.connection = open_read_only(unchanged.paths[""], io=io, cache_kib=WINDOW_CACHE_KIB)
        self.cursor = self.connection.cursor()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


class WindowIndex:
    """The windows of one split.

    Args:
        path: the window database.
        io: see `sharded_eden.format.sqlite.open_read_only`.

    Raises:
        MissingDatabase: there is no such file.
        DatabaseError: it is not a window database, or its windows are not numbered densely from 0.
    """

    def __init__(self, path: str | os.PathLike[str], *, io: IOMode = "auto") -> None:
        self.path = Path(path)
        if not self.path.is_file():
            expect(self.path, "window_db_path", "a window database")
            raise MissingDatabase(f"{self.path}: no such window database. Make it: {precompute_command(self.path)}")
        self._unchanged = Unchanged({"": self.path})
        self._connections = PerThread(partial(WindowCursor, self._unchanged, io), WindowCursor.close)
        try:
            stated = WindowDatabase(self.connection, self.path)
            for problem in stated.problems():
                raise problem.error(self.path)
        except READ_ERRORS as error:
            self.close()
            raise unreadable(self.path, error) from error
        except BaseException:
            self.close()
            raise
        self.metadata = stated.metadata
        self.max_ambiguous = stated.max_ambiguous
        self.geometry = cast("WindowGeometry", stated.geometry)
        self.total_windows = stated.total_windows
        self._has_lengths = stated.has_lengths
        self._write_lookups()

    @property
    def identity(self) -> FileIdentity:
        """Distinguishes this file from another one at the same path."""
        return self._unchanged.identities[""]

    @property
    def connection(self) -> apsw.Connection:
        """This thread's connection to the window database."""
        return self._connections.get().connection

    def rebuild_command(self, geometry: WindowGeometry) -> str:
        """Return the command that makes this window database again, or one of another geometry under a new name.

        Checkpoints are tied to the windows that they were trained on, so another geometry does not replace them.
        """
        is_same = geometry == self.geometry
        path = self.path if is_same else sibling(self.path, str(geometry.window_size))
        return precompute_command(
            path, geometry=geometry, max_ambiguous=self.max_ambiguous, metadata=self.metadata, force=is_same
        )

    def pack_again_command(self) -> str:
        """Return the command that packs windows of another number of special tokens under a new name.

        Its last option, `--special-tokens`, is for the caller to add.
        """
        return precompute_command(
            sibling(self.path, str(self.geometry.window_size)),
            geometry=replace(self.geometry, special_tokens=WindowGeometry.special_tokens),
            max_ambiguous=self.max_ambiguous,
            metadata=self.metadata,
        )

    def _write_lookups(self) -> None:
        with_rows = self._has_lengths and self.total_windows < FEW_WINDOWS * self.metadata.get("distinct_sequences", 0)
        length = f"({_LENGTH.format('w.window_idx')})" if with_rows else "NULL"
        # The outer loop of a LEFT JOIN is its left side: rows are in the order of the array, missing ones are NULL.
        many = "carray(?) AS wanted LEFT JOIN window_mappings AS w ON window_idx = wanted.value"
        self._lookup = f"SELECT sequence_id, window_in_seq_idx, {length} FROM window_mappings AS w WHERE window_idx = ?"
        self._lookup_many = f"SELECT sequence_id, window_in_seq_idx, {length} FROM {many}"
        self._lookup_names = f"SELECT sequence_id, window_in_seq_idx FROM {many}"

    def check_geometry(
        self, *, window_size: int, stride: int | None, min_length: int | None, called: str = "seq_length"
    ) -> None:
        """Raise an error for a database whose geometry differs from the dataset's.

        Args:
            window_size: the dataset's `seq_length`.
            stride: the dataset's stride, in bases; None accepts that of the database.
            called: the argument that gave `window_size`, for the error.
            min_length: the dataset's `window_min_length_threshold`; None accepts that of the database.

        Raises:
            GeometryMismatch: with both values and the command that rebuilds it.
        """
        asked = {"window_size": window_size}
        if stride is not None:
            asked["stride"] = stride
        if min_length is not None:
            asked["window_min_length_threshold"] = min_length
        built = self.geometry.as_metadata()
        names = {"window_size": called}
        differing = [key for key in asked if built[key] != asked[key]]
        if not differing:
            return
        wanted = WindowGeometry(
            window_size=window_size,
            stride=default_stride(window_size, self.geometry.special_tokens) if stride is None else stride,
            min_length=self.geometry.min_length if min_length is None else min_length,
            special_tokens=self.geometry.special_tokens,
            keep_tail=self.geometry.keep_tail,
        )
        raise GeometryMismatch(
            f"{self.path}: mismatch: it was built with "
            + ", ".join(f"{key}={built[key]}" for key in differing)
            + "; the dataset asks for "
            + ", ".join(f"{names.get(key, key)}={asked[key]}" for key in differing)
            + f". Pass the dataset the database's values, or derive_windows=True to derive these windows on first use; or make "
            f"another window database: {self.rebuild_command(wanted)}"
        )

    def locate(self, window_idx: int) -> Row:
        """Return which window of which contig has this index.

        Raises:
            DatabaseError: the table has no such row, or cannot be read.
        """
        try:
            row: Row | None = self._connections.get().cursor.execute(self._lookup, (window_idx,)).get
        except READ_ERRORS as error:
            raise unreadable(self.path, error) from error
        wrong = (
            f"window {window_idx} of {self.total_windows} is missing" if row is None else row_problem(window_idx, row)
        )
        if row is None or wrong:
            raise DatabaseError(f"{self.path}: {wrong}. Rebuild: {self.rebuild_command(self.geometry)}")
        return row

    def contig_length(self, window_idx: int) -> int | None:
        """Return the length of the contig of a window, in bases; None where the database does not hold it.

        Raises:
            DatabaseError: the table cannot be read.
        """
        if not self._has_lengths:
            return None
        try:
            length: int | None = self._connections.get().cursor.execute(_LENGTH.format("?"), (window_idx,)).get
        except READ_ERRORS as error:
            raise unreadable(self.path, error) from error
        if not (length is None or type(length) is int):
            what = row_problem(window_idx, ("", 0, length))
            raise DatabaseError(f"{self.path}: contig_lengths: {what}. Rebuild: {self.rebuild_command(self.geometry)}")
        return length

    def locate_many(self, window_indices: Sequence[int]) -> list[Row]:
        """Return which window of which contig each of these indices has, by one query.

        Raises:
            DatabaseError: the table lacks a row, or cannot be read.
        """
        rows = self._rows(self._lookup_many, window_indices)
        if len(rows) != len(window_indices) or any(
            type(row[0]) is not str or type(row[1]) is not int or not (row[2] is None or type(row[2]) is int)
            for row in rows
        ):
            # One of them raises.
            return [self.locate(window_idx) for window_idx in window_indices]
        return cast("list[Row]", rows)

    def names(self, window_indices: Sequence[int]) -> list[tuple[str, int]]:
        """Return (sequence_id, window_in_seq_idx) of windows: `locate_many` without lengths, which cost as much again.

        Raises:
            DatabaseError: the table lacks a row, or cannot be read.
        """
        rows = self._rows(self._lookup_names, window_indices)
        ids, numbers = (set(map(type, map(itemgetter(column), rows))) for column in range(2))
        if len(rows) != len(window_indices) or not (ids <= {str} and numbers <= {int}):
            # One of them raises.
            return [self.locate(window_idx)[:2] for window_idx in window_indices]
        return cast("list[tuple[str, int]]", rows)

    def _rows(self, query: str, window_indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """Return the rows of a query that takes an array of windows."""
        if not window_indices:
            return []
        wanted = apsw.carray(np.array(window_indices, dtype=np.int64))
        try:
            rows = self._connections.get().cursor.execute(query, (wanted,)).fetchall()
        except READ_ERRORS as error:
            raise unreadable(self.path, error) from error
        self.check_unchanged()
        return rows

    def check_unchanged(self) -> None:
        """Raise an error if the file has changed since it was opened.

        Raises:
            DatabaseError: names both identities.
        """
        self._unchanged.check([""])

    def sequence_ids_by_prefix(self, parts: int) -> Iterator[str]:
        """Yield one sequence ID, the first, for each distinct prefix of `parts` parts between double underscores.

        One index seek for each, so that the tags or samples of 100 million windows are found in microseconds. Without an index
        all windows are read, once.

        Raises:
            DatabaseError: the index is damaged, or the table cannot be read.
        """
        has_index = has_id_index(self.connection)
        if not has_index:
            logger.warning("%s has no index on sequence_id; its windows are scanned once", self.path)
        # Seeks all over a mapped file would map most of it into memory: this connection reads instead.
        with closing(open_read_only(self.path, io="read", cache_kib=WINDOW_CACHE_KIB)) as connection:
            try:
                yield from self._leap(connection, parts) if has_index else _scan(connection, parts)
            except UnicodeError as error:
                raise self._damaged_index(str(error)) from error
            except apsw.Error as error:
                raise unreadable(self.path, error) from error

    def _damaged_index(self, what: str) -> DatabaseError:
        return DatabaseError(
            f"{self.path}: its sequence_id, or the index on it, is damaged: {what}. "
            f"Rebuild: {self.rebuild_command(self.geometry)}"
        )

    def _leap(self, connection: apsw.Connection, parts: int) -> Iterator[str]:
        """Find the first ID of each prefix by seeks in the index."""
        encoding = _TEXT_BYTES[connection.pragma("encoding")]  # SQLite orders texts by the bytes that it stores
        least = ""
        while (found := _next_sequence_id(connection, least)) is not None:
            if not isinstance(found, str) or found.encode(encoding) < least.encode(encoding):
                raise self._damaged_index(f"{shown(found)} is where IDs from {shown(least)} on should be")
            yield found
            prefix = _prefix(found, parts)
            # The smallest string above every string with this prefix: '_' is followed by '`'.
            least = found + "\0" if prefix is None else prefix[:-1] + "`"

    @cached_property
    def distinct_sequences(self) -> int:
        """Contigs with at least one window; counted where the metadata does not tell."""
        if "distinct_sequences" in self.metadata:
            return self.metadata["distinct_sequences"]
        try:
            return int(self.connection.execute("SELECT count(DISTINCT sequence_id) FROM window_mappings").get)
        except READ_ERRORS as error:
            raise unreadable(self.path, error) from error

    @cached_property
    def fingerprint(self) -> int:
        """The integer that ties checkpoints to this window database."""
        if "fingerprint" in self.metadata:
            return self.metadata["fingerprint"]
        try:
            return fingerprint_of_rows(self.connection, self.metadata, self.total_windows)
        except READ_ERRORS as error:
            raise unreadable(self.path, error) from error

    def close(self) -> None:
        """Close every connection of this process."""
        self._connections.close()


_TEXT_BYTES = {"UTF-8": "utf-8", "UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}


def _prefix(sequence_id: str, parts: int) -> str | None:
    """Return the first `parts` parts with their underscores; None where nothing follows them."""
    pieces = sequence_id.split("__")
    return "__".join(pieces[:parts]) + "__" if len(pieces) > parts else None


def _scan(connection: apsw.Connection, parts: int) -> list[str]:
    """Return the first ID of each prefix, sorted, by reading all of them."""
    first: dict[str, str] = {}
    last = None
    for (sequence_id,) in connection.execute("SELECT sequence_id FROM window_mappings"):
        if sequence_id != last and isinstance(sequence_id, str):
            last = sequence_id
            prefix = _prefix(sequence_id, parts) or sequence_id
            first[prefix] = min(sequence_id, first.get(prefix, sequence_id))
    return sorted(first.values())


def _next_sequence_id(connection: apsw.Connection, least: str) -> str | bytes | None:
    found: str | bytes | None = connection.execute(
        "SELECT sequence_id FROM window_mappings WHERE sequence_id COLLATE BINARY >= ? "
        "ORDER BY sequence_id COLLATE BINARY LIMIT 1",
        (least,),
    ).get
    return found
