"""Rows, windows, bases and useful tokens of positions of a stream, without reading a window.

Input: a range of positions. Output: counts. The order is a function of the position; bases follow from the lengths of contigs,
in the index, or in the window database where there is no index or it does not know a contig. Positions are counted thousands
at once, also ahead of the job, because a call of NumPy on a hundred of them costs nearly as much.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import apsw
import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, shown
from sharded_eden.format.sqlite import READ_ERRORS, table_columns, unreadable
from sharded_eden.load.encode.tag_table import TableTags
from sharded_eden.train.array_stream import ArrayStream

POSITIONS_AT_ONCE = 1 << 14

_PLACES = """
SELECT w.sequence_id, w.window_in_seq_idx,
(SELECT length FROM contig_lengths WHERE first_window_idx <= w.window_idx ORDER BY first_window_idx DESC LIMIT 1)
FROM carray(?) AS c LEFT JOIN window_mappings AS w ON w.window_idx = c.value"""

Counts = NDArray[np.int64]


class _Counted(NamedTuple):
    """A range of positions; sums are (n + 1,) int64 each, from 0 on."""

    pass_: int
    """The pass of `set_epoch`: it decides what a position means."""
    first: int
    end: int
    source: NDArray[np.int64]
    """(n,)."""
    sums: Counts
    """(3, n + 1): windows, bases and useful tokens before each position."""


class Totals:
    """Rows, windows, bases and useful tokens of positions of a stream.

    Args:
        stream: the stream; also a mixture.
    """

    def __init__(self, stream: ArrayStream) -> None:
        self._stream = stream
        dataset: Any = stream.dataset
        self._datasets: list[Any] = list(getattr(dataset, "datasets", [dataset]))
        self._names: list[str] = list(getattr(dataset, "names", [])) if len(self._datasets) > 1 else []
        self._has_lengths = [
            {"first_window_idx", "length"} <= set(table_columns(each.window_db_conn, "contig_lengths"))
            for each in self._datasets
        ]
        self.rows = self.windows = self.bases = self.tokens = 0
        self.knows_bases = all(self._has_lengths)
        """Whether the lengths of all contigs are known."""
        self.knows_tokens = self.knows_bases and all(each.has_table for each in self._datasets)
        """Whether a base is a token, so that lengths give the useful tokens."""
        self.rows_of: dict[str, int] = dict.fromkeys(self._names, 0)
        self._counted: _Counted | None = None

    def add(self, first: int, end: int, pass_: int | None = None) -> None:
        """Add the positions from `first` to `end`, which is not included, of a pass; None is the one `set_epoch` chose.

        Raises:
            IndexError: a position at or beyond the end of the stream.
            DatabaseError: a window database or its index cannot be read.
        """
        pass_ = self._stream.epoch if pass_ is None else pass_
        while first < end:
            counted = self._counted
            if counted is None or counted.pass_ != pass_ or not counted.first <= first < counted.end:
                counted = self._counted = self._count(first, end, pass_)
            low, high = first - counted.first, min(end, counted.end) - counted.first
            windows, bases, tokens = (counted.sums[:, high] - counted.sums[:, low]).tolist()
            self.rows += high - low
            self.windows += windows
            self.bases += bases
            self.tokens += tokens
            if self._names:
                found = np.bincount(counted.source[low:high], minlength=len(self._names))
                for name, count in zip(self._names, found.tolist(), strict=True):
                    self.rows_of[name] += count
            first += high - low

    def _count(self, first: int, needed: int, pass_: int) -> _Counted:
        """Count positions from `first` on: those before `needed`, or more, up to a pass."""
        end = first + min(POSITIONS_AT_ONCE, max(needed - first, len(self._stream.dataset)))
        if self._stream.num_samples is not None:
            end = max(needed, min(end, self._stream.num_samples))
        source, epoch, index = self._stream.columns(first, end, pass_)
        sums = np.zeros((3, len(index) + 1), dtype=np.int64)
        for k, dataset in enumerate(self._datasets):
            own = np.flatnonzero(source == k)
            if len(own):
                sums[:, own + 1] = _of_rows(dataset, epoch[own], index[own], has_lengths=self._has_lengths[k])
        np.cumsum(sums, axis=1, out=sums)
        return _Counted(pass_, first, end, source, sums)


def _of_rows(dataset: Any, epoch: Counts, index: Counts, *, has_lengths: bool) -> Counts:
    """Return windows, bases and useful tokens of rows of a dataset, (3, n) int64; only windows without lengths."""
    sizes = np.ones(len(index), dtype=np.int64)
    windows = index
    if dataset._packs is not None:
        packs = dataset._packs.windows(index.tolist())
        sizes = np.array([len(pack) for pack in packs], dtype=np.int64)
        windows = np.fromiter(chain.from_iterable(packs), dtype=np.int64, count=int(sizes.sum()))
        epoch = np.repeat(epoch, sizes)
    found = np.zeros((3, len(index)), dtype=np.int64)
    found[0] = sizes
    if has_lengths:
        order = np.argsort(windows)  # neighbours share pages of the files
        of_windows = np.empty((2, len(windows)), dtype=np.int64)
        of_windows[:, order] = _of_windows(dataset, epoch[order], windows[order])
        found[1:] = np.add.reduceat(of_windows, np.cumsum(sizes) - sizes, axis=1)
    return found


def _of_windows(dataset: Any, epoch: Counts, windows: Counts) -> Counts:
    """Return bases and useful tokens of ascending windows, (2, n) int64."""
    tags, row_format, addresses = dataset._fetcher.tags, dataset._format, dataset._addresses
    remaining = np.empty(len(windows), dtype=np.int64)
    known = np.zeros(len(windows), dtype=np.bool_)
    tag = np.zeros(len(windows), dtype=np.uint32)
    by_table = isinstance(tags, TableTags)
    if addresses is not None:
        remaining, tag, known = addresses.lengths(windows)
        if tags is not None and not by_table:
            known &= tag < len(addresses.tags)  # of others, the sequence ID has it
    room, header = np.empty((2, len(windows)), dtype=np.int64)
    if tags is None:
        ids = row_format.header([])
        header[:], room[:] = len(ids), row_format.room(ids)
    elif by_table:
        each = tags.of_windows(list(zip(epoch.tolist(), windows.tolist(), strict=True)))
        header[:], room[:] = [len(ids) for ids, _ in each], [bases for _, bases in each]
    else:
        for number in np.unique(tag[known]).tolist():
            ids, bases = tags.header(addresses.tags[number])
            own = known & (tag == number)
            header[own], room[own] = len(ids), bases
    rest = np.flatnonzero(~known)
    if len(rest):
        ids_of, remaining[rest] = _by_sqlite(dataset, windows[rest])
        if tags is not None and not by_table:
            each = [tags.header(sequence_id) for sequence_id in ids_of]
            header[rest], room[rest] = [len(ids) for ids, _ in each], [bases for _, bases in each]
    bases = np.minimum(remaining, room)
    return np.stack([bases, bases + header + int(dataset.options.include_eos)])


def _by_sqlite(dataset: Any, windows: Counts) -> tuple[list[str], Counts]:
    """Return the sequence ID of windows, and the bases from their start to the end of the contig, from the window database."""
    try:
        found = dataset.window_db_conn.execute(_PLACES, (apsw.carray(windows),)).fetchall()
    except READ_ERRORS as error:
        raise unreadable(dataset.window_db_path, error) from error
    for window, (sequence_id, number, length) in zip(windows.tolist(), found, strict=True):
        if type(sequence_id) is not str or type(number) is not int or type(length) is not int:
            dataset._index.locate(window)  # raises an error for a row that is missing or damaged
            raise DatabaseError(
                f"{dataset.window_db_path}: window {window}: contig_lengths holds {shown(length)} as the length of its contig. "
                f"Rebuild: {dataset._index.rebuild_command(dataset._index.geometry)}"
            )
    ids, numbers, lengths = zip(*found, strict=True)
    return list(ids), np.array(lengths, dtype=np.int64) - np.array(numbers, dtype=np.int64) * dataset.stride
