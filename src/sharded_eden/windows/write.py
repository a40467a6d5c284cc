"""Writes the rows of a window database: sorted contigs -> finished pages of its tables and its index.

Input: contigs sorted by ID. Output: `window_mappings`, its index on `sequence_id`, and `contig_lengths`. Windows are numbered
in the order of the sorted IDs, so rows are only appended to all three: no SQL, no sorting, no temporary file.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.format.fingerprint import Fingerprint
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.pages.btree import INDEX_LEAF, TABLE_LEAF, BTree, PageFile
from sharded_eden.format.pages.cells import (
    Field,
    Ints,
    byte,
    constant,
    decimal,
    integer,
    join,
    serial_types,
    text,
    varint,
)
from sharded_eden.format.schema import CONTIG_ID, LENGTH
from sharded_eden.windows.ambiguity import AmbiguityFilter

BATCH_WINDOWS = 1 << 17
"""The largest number of windows in one NumPy array."""
BATCH_BYTES = 1 << 23
"""The largest number of bytes of contig IDs in one array."""

NULL = 0
"""The serial type of an INTEGER PRIMARY KEY, which is stored as the rowid."""
FIRST_TEXT = 13
"""The serial type of a text of n bytes is 13 + 2n."""
THREADS = 2
"""Threads that make cells while the previous batch is written and the next one is read."""
AHEAD = 2
"""Batches that may wait to be written."""


@dataclass(frozen=True)
class _Batch:
    """The contigs whose windows are being written."""

    contigs: pl.DataFrame
    lengths: Ints  # (C,), bases
    text: Field  # (C,), IDs
    text_bytes: Ints  # (C,)
    text_types: Field  # (C,), their serial types


class WindowWriter:
    """Fills the empty tables of a window database, batch by batch. A context manager; its exit completes them.

    Args:
        file: the database, closed.
        roots: the root pages of `window_mappings`, of its index and of `contig_lengths`, by name.
        geometry: how contigs are cut.
        ambiguity: the filter that leaves out windows; None for none.
    """

    def __init__(
        self, file: PageFile, roots: dict[str, int], geometry: WindowGeometry, ambiguity: AmbiguityFilter | None = None
    ) -> None:
        self._geometry, self._ambiguity = geometry, ambiguity
        self._rows = BTree(file, roots["window_mappings"], TABLE_LEAF)
        self._index = BTree(file, roots["idx_sequence_id"], INDEX_LEAF)
        self._lengths = BTree(file, roots["contig_lengths"], TABLE_LEAF)
        self._threads = ThreadPoolExecutor(THREADS, "cells")
        self._pending: deque[Future[Made]] = deque()
        self.fingerprint = Fingerprint(geometry)
        self.contigs = self.sequences = self.windows = self.bases = self.unseen_bases = self.ambiguous_windows = 0
        self.shown_bases = 0

    def __enter__(self) -> WindowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._threads:
            while error is None and self._pending:
                self._write_oldest()
        if error is None:
            for tree in (self._rows, self._index, self._lengths):
                tree.finish()

    def add(self, contigs: pl.DataFrame) -> None:
        """Append the windows of the next contigs, which are sorted.

        Raises:
            InputError: a contig ID is too long for the index.
        """
        lengths = contigs[LENGTH].to_numpy()
        self.contigs += contigs.height
        self.bases += int(lengths.sum())
        self.unseen_bases += int(lengths.sum())
        counts = self._geometry.counts(lengths)
        if not counts.all():
            contigs = contigs.filter(pl.Series(counts > 0))
            counts = counts[counts > 0]
        self._insert(contigs, counts)

    def _insert(self, contigs: pl.DataFrame, counts: NDArray[np.int64]) -> None:
        if contigs.is_empty():
            return
        ends = np.cumsum(
            counts
        )  # (C,) int64, where each contig's windows end, counted from the first window of the batch
        total = int(ends[-1])
        text_bytes = contigs[CONTIG_ID].str.len_bytes().to_numpy().astype(np.int64)
        longest = int(text_bytes.max())
        windows_at_once = max(1, min(BATCH_WINDOWS, BATCH_BYTES // longest))
        if max(total, contigs.height) > windows_at_once and contigs.height > 1:
            half = contigs.height // 2
            self._insert(contigs[:half], counts[:half])
            self._insert(contigs[half:], counts[half:])
            return
        batch = _Batch(
            contigs,
            contigs[LENGTH].to_numpy(),
            text(contigs[CONTIG_ID].str.join("").item().encode(), text_bytes),
            text_bytes,
            varint(FIRST_TEXT + 2 * text_bytes),
        )
        last = (-1, 0)
        for first in range(0, total, windows_at_once):
            window = np.arange(first, min(first + windows_at_once, total))
            row = np.searchsorted(ends, window, side="right")
            in_contig = window - (ends - counts)[row]
            if self._ambiguity is not None:
                kept = self._unambiguous(contigs, row, in_contig)
                row, in_contig = row[kept], in_contig[kept]
            if len(row):
                last = self._write(batch, row, in_contig, last)

    def _unambiguous(
        self, contigs: pl.DataFrame, row: NDArray[np.int64], in_contig: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Return which windows to keep, and count the others."""
        assert self._ambiguity is not None  # noqa: S101 - narrows the type
        kept = np.ones(len(row), dtype=np.bool_)
        for low, high in pairwise([*np.flatnonzero(np.diff(row, prepend=-1)).tolist(), len(row)]):
            contig_id, length = contigs.row(int(row[low]))
            kept[low:high] = self._ambiguity.keep(contig_id, length, in_contig[low:high])
        self.ambiguous_windows += len(kept) - int(np.count_nonzero(kept))
        return kept

    def _write(self, batch: _Batch, row: Ints, in_contig: Ints, last: tuple[int, int]) -> tuple[int, int]:
        """Write windows: contig and number within it of each.

        Args:
            batch: the contigs.
            row: (n,) int64, the contig of each window.
            in_contig: (n,) int64, its number within the contig.
            last: the contig of the previous window, and where in it that window ended; returned for the next call.
        """
        lengths = batch.lengths[row]
        is_first = np.diff(row, prepend=last[0]) > 0
        firsts = np.flatnonzero(is_first)
        if len(self._pending) > AHEAD:
            self._write_oldest()
        self._pending.append(self._threads.submit(_cells, batch, row, in_contig, self.windows, firsts))
        starts = in_contig * self._geometry.stride
        ends = np.minimum(starts + self._geometry.usable, lengths)
        if self._ambiguity is not None:
            self.fingerprint.update_windows(self.sequences - 1 + np.cumsum(is_first), in_contig)
        # The new bases of a window begin where the previous window ended, if that is of the same contig.
        before = np.concatenate(([last[1]], ends[:-1]))
        self.shown_bases += int((ends - starts).sum())
        self.unseen_bases -= int((ends - np.maximum(starts, np.where(is_first, 0, before))).sum())
        self.windows += len(row)
        self.sequences += len(firsts)
        return int(row[-1]), int(ends[-1])

    def _write_oldest(self) -> None:
        """Write the pages of the oldest batch of cells."""
        *added, (lines, lengths) = self._pending.popleft().result()
        self.fingerprint.update_lines(lines, lengths)
        for tree, cells in zip((self._rows, self._index, self._lengths), added, strict=True):
            tree.add(*cells)


Cells = tuple[NDArray[np.uint8], Ints, Ints]
"""What `BTree.add` takes."""
Made = tuple[Cells, Cells, Cells, tuple[memoryview, Ints]]


def _cells(batch: _Batch, row: Ints, in_contig: Ints, first_window: int, firsts: Ints) -> Made:
    """Return the cells of windows in `window_mappings`, in its index and in `contig_lengths`, and the fingerprint's input.

    Args:
        batch: the contigs.
        row: (n,) int64, the contig of each window.
        in_contig: (n,) int64, its number within the contig.
        first_window: index of the first of them.
        firsts: (m,) int64, which of them begin a contig.
    """
    count = len(row)
    rowids = np.arange(first_window, first_window + count)
    names, text_types, text_bytes = batch.text.of(row), batch.text_types.of(row), batch.text_bytes[row]
    type_bytes = _bytes(text_types)
    # A record is its header (its own size, the type of each column) and then the values.
    types = serial_types(in_contig)
    number = integer(in_contig, types)
    rows = join(
        [
            varint(3 + type_bytes + text_bytes + _bytes(number)),
            varint(rowids),
            byte(3 + np.broadcast_to(type_bytes, count)),
            constant(NULL, count),
            text_types,
            byte(types),
            names,
            number,
        ]
    )
    types = serial_types(rowids)
    number = integer(rowids, types)
    index = join(
        [
            varint(2 + type_bytes + text_bytes + _bytes(number)),
            byte(2 + np.broadcast_to(type_bytes, count)),
            text_types,
            byte(types),
            names,
            number,
        ]
    )
    begun, lengths = first_window + firsts, batch.lengths[row[firsts]]
    types = serial_types(lengths)
    number = integer(lengths, types)
    contigs = join(
        [
            varint(np.broadcast_to(3 + np.asarray(_bytes(number)), len(firsts))),
            varint(begun),
            constant(3, len(firsts)),
            constant(NULL, len(firsts)),
            byte(types),
            number,
        ]
    )
    line_feed = constant(ord("\n"), len(firsts))
    lines = join([batch.text.of(row[firsts]), constant(ord("\t"), len(firsts)), decimal(lengths), line_feed])[0].data
    return (*rows, rowids), (*index, rowids), (*contigs, begun), (lines, lengths)


def _bytes(field: Field) -> Ints | int:
    """Return how many bytes a field has in each cell."""
    return field.values.shape[1] if field.widths is None else field.widths
