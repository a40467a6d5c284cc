"""The windows of contigs in one window database.

Input: an open window database. Output: the windows of given contigs, or of all contigs in the order of their IDs. Costs one
search in the index on `sequence_id` for each contig, and one row for each window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import apsw
import numpy as np
from numpy.typing import NDArray

from sharded_eden.describe.windows import WindowCounts
from sharded_eden.errors import DatabaseError, printable, shown
from sharded_eden.format.commands import verify_command
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.sqlite import READ_ERRORS, open_read_only, unreadable
from sharded_eden.format.window_db import WindowDatabase

CHUNK_CONTIGS = 50_000

_LENGTH = "LEFT JOIN contig_lengths AS l ON l.first_window_idx = w"

_SOME = """
SELECT place, n, first, last, different, {length}, odd FROM (
SELECT c.rowid - 1 AS place, count(*) AS n, min(m.window_in_seq_idx) AS first, max(m.window_in_seq_idx) AS last,
       count(DISTINCT m.window_in_seq_idx) AS different, min(m.window_idx) AS w,
       total(typeof(m.window_in_seq_idx) <> 'integer') AS odd
FROM carray(?) AS c CROSS JOIN window_mappings AS m ON m.sequence_id = c.value GROUP BY c.rowid) {lengths}"""
_ALL = """
SELECT sequence_id, n, first, last, different, {length}, odd FROM (
SELECT sequence_id, count(*) AS n, min(window_in_seq_idx) AS first, max(window_in_seq_idx) AS last,
       count(DISTINCT window_in_seq_idx) AS different, min(window_idx) AS w,
       total(typeof(window_in_seq_idx) <> 'integer') AS odd
FROM window_mappings GROUP BY sequence_id) {lengths}"""
_WINDOWS = "SELECT window_in_seq_idx FROM window_mappings WHERE sequence_id = ? ORDER BY window_in_seq_idx"


@dataclass(frozen=True, kw_only=True)
class Split:
    """A window database, as its metadata describe it."""

    path: Path
    geometry: WindowGeometry
    windows: int
    has_lengths: bool
    max_ambiguous: float | None
    packs: int | None
    pack_useful_tokens: int | None
    pack_row_tokens: int | None
    """Tokens of a packed row, where another tokenizer counted them."""

    @classmethod
    def of(cls, path: Path) -> Split:
        """Read the metadata of a window database.

        Raises:
            DatabaseError: it is not a window database, or is incomplete.
        """
        with closing(open_read_only(path)) as database:
            state = WindowDatabase(database, path)
            try:
                for problem in state.problems():
                    raise problem.error(path)
            except READ_ERRORS as error:
                raise unreadable(path, error) from error
        return cls(
            path=path,
            geometry=cast("WindowGeometry", state.geometry),
            windows=state.total_windows,
            has_lengths=state.has_lengths,
            max_ambiguous=state.max_ambiguous,
            packs=state.metadata.get("total_packs"),
            pack_useful_tokens=state.metadata.get("pack_useful_tokens"),
            pack_row_tokens=state.metadata.get("pack_row_tokens"),
        )


@dataclass(frozen=True, eq=False)
class WindowsOfContigs:
    """The windows of some contigs."""

    places: NDArray[np.int64]
    """(n,) int64: which of the contigs have windows."""
    windows: NDArray[np.int64]
    """(n,) int64: the number of windows of each."""
    listed: dict[int, NDArray[np.int64]]
    """By row in `places`: the windows of contigs that do not have just the windows that their lengths make."""

    def add_to(self, counts: WindowCounts, lengths: NDArray[np.int64], where: NDArray[np.bool_] | slice) -> None:
        """Add the windows of some of the contigs.

        Args:
            counts: where to add them.
            lengths: (n,) int64, bases.
            where: (n,) bool, which of them.
        """
        chosen = np.zeros(len(self.places), dtype=np.bool_)
        chosen[where] = True
        for row, windows in self.listed.items():
            if chosen[row]:
                counts.add_listed(int(lengths[row]), windows)
                chosen[row] = False
        counts.add(lengths[chosen], self.windows[chosen])


class OpenSplit:
    """A window database that is open for reading.

    Args:
        split: the database.
        stack: closes it.
    """

    def __init__(self, split: Split, stack: ExitStack) -> None:
        self.split = split
        self._database = stack.enter_context(closing(open_read_only(split.path)))
        length, join = ("ifnull(l.length, -1)", _LENGTH) if split.has_lengths else ("-1", "")
        self._some, self._all = (query.format(length=length, lengths=join) for query in (_SOME, _ALL))

    def windows_of(self, ids: Sequence[str], lengths: NDArray[np.int64]) -> WindowsOfContigs:
        """Return the windows of contigs.

        Args:
            ids: sequence IDs, each once.
            lengths: (C,) int64, their bases in the sequence database.

        Raises:
            DatabaseError: windows begin after the end of their contig, or were made for contigs of other lengths.
        """
        try:
            rows = self._database.execute(self._some, (apsw.carray(tuple(ids)),)).fetchall()
            columns = self._columns(rows)
            places = columns[0]
            return self._checked([ids[k] for k in places.tolist()], places, lengths[places], columns[1:])
        except READ_ERRORS as error:
            raise unreadable(self.split.path, error) from error

    def all_windows(self) -> Iterator[tuple[list[str], NDArray[np.int64], WindowsOfContigs]]:
        """Yield, in chunks, the IDs and lengths of all contigs that have windows, and their windows; needs `has_lengths`.

        Raises:
            DatabaseError: the length of a contig is unknown, or windows begin after its end.
        """
        try:
            rows = self._database.execute(self._all)
            while chunk := list(islice(rows, CHUNK_CONTIGS)):
                ids = [row[0] for row in chunk]
                columns = self._columns([(k, *row[1:]) for k, row in enumerate(chunk)])
                lengths = columns[5]
                if (lengths < 0).any():
                    raise self._error(ids[int(np.argmin(lengths))], "has no row in contig_lengths")
                yield ids, lengths, self._checked(ids, columns[0], lengths, columns[1:])
        except READ_ERRORS as error:
            raise unreadable(self.split.path, error) from error

    def _columns(self, rows: Sequence[Sequence[Any]]) -> NDArray[np.int64]:
        if any(row[6] or type(row[5]) is not int for row in rows):
            raise DatabaseError(
                f"{printable(self.split.path)}: a window_in_seq_idx or a length is not an integer. Check it: {self._check()}"
            )
        return np.array([row[:6] for row in rows], dtype=np.int64).reshape(len(rows), 6).T

    def _checked(
        self,
        ids: Sequence[str],
        places: NDArray[np.int64],
        lengths: NDArray[np.int64],
        columns: NDArray[np.int64],
    ) -> WindowsOfContigs:
        n, first, last, different, recorded = columns
        expected = self.split.geometry.counts(lengths)
        wrong = np.flatnonzero((recorded >= 0) & (recorded != lengths))
        if len(wrong):
            k = int(wrong[0])
            raise self._error(ids[k], f"has {lengths[k]} bases, but its windows were made for {recorded[k]}")
        wrong = np.flatnonzero((first < 0) | (last >= np.maximum(expected, 1)))
        if len(wrong):
            k = int(wrong[0])
            what = f"of {lengths[k]} bases has window number {last[k]}, but its length makes {expected[k]} windows"
            raise self._error(ids[k], what if first[k] >= 0 else f"has window number {first[k]}")
        is_prefix = (n == expected) & (different == n)
        listed = {
            row: np.array([k for (k,) in self._database.execute(_WINDOWS, (ids[row],))], dtype=np.int64)
            for row in np.flatnonzero(~is_prefix).tolist()
        }
        return WindowsOfContigs(places, n, listed)

    def _error(self, contig_id: str, what: str) -> DatabaseError:
        return DatabaseError(
            f"{printable(self.split.path)}: contig {shown(contig_id)} {what}. Check it: {self._check()}"
        )

    def _check(self) -> str:
        return verify_command("SEQDB", self.split.path, full=True)
