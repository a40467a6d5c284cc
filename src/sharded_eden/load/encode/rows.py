"""Windows -> rows of NumPy arrays. One path for single items, batches, compact and packed rows.

    wanted windows -> letters in rows of codes -> framed with special tokens -> codes as they are (compact)
                                                                            -> tokens, labels, loss mask (a table lookup)

Input: (epoch, window index) pairs, and the number of windows in each row. Output: arrays of rows. Cost: one table
lookup per token. A row with letters that are not in the tokenizer's table, and every row of a tokenizer without a table, is
encoded on its own, which is slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharded_eden.load.encode.buffers import BATCH_DTYPES, RowBuffers, positions
from sharded_eden.load.encode.codes import (
    BLOCK_BYTES,
    SENT,
    CodeEncoder,
    CodeTables,
    check_compact,
    lift_odd,
    reverse_complement_in_place,
    specials_as_ids,
)
from sharded_eden.load.encode.example import RowEncoder, RowFormat
from sharded_eden.load.encode.stitch_marks import marks_alone_are_below
from sharded_eden.load.read.connections import PerThread
from sharded_eden.load.read.fetch import Placed, Wanted, WindowFetcher

Ends = list[list[int]]
"""Where each window of each row ends."""

Arrays = dict[str, NDArray[Any]]
"""The parts of rows by name, each with a leading dimension B: those of an example, see `ShardedEdenDataset`, or `codes`."""


class RowMaker:
    """Makes rows of windows.

    Args:
        row_format: the layout of a row.
        fetcher: reads the windows.
        compact: make rows of codes, one byte per token.
        packed: put several windows into a row, and return where each of them begins.
        reuse: return memory again once nothing refers to the arrays. Views of arrays do not count as references: True only
            where the arrays become tensors, which do.

    Raises:
        UsageError: `compact` with a tokenizer that is not a table.
    """

    def __init__(
        self,
        row_format: RowFormat,
        fetcher: WindowFetcher,
        *,
        compact: bool,
        packed: bool,
        reuse: bool,
    ) -> None:
        self._reuse = reuse
        self._format = row_format
        self._fetcher = fetcher
        self._compact = compact
        self._packed = packed
        self._length = row_format.seq_length
        self._letters = row_format.buffer_bases
        self._untagged_header = row_format.header([])
        self._block_rows = max(1, BLOCK_BYTES // row_format.seq_length)
        self._buffers = PerThread(self._make_buffers, RowBuffers.clear)
        self._single_buffers = PerThread(self._make_single_buffers, RowBuffers.clear)
        self._scratch = PerThread(self._make_scratch, _forget)
        self._encoder = RowEncoder(row_format)
        if compact:
            check_compact(row_format)
        self._has_table = row_format.encoding.table is not None
        if self._has_table:
            # Codes of masked rows tell padding from other tokens, whatever the ids.
            self._specials = SENT if compact or row_format.masking is not None else specials_as_ids(row_format)
            self._codes = CodeEncoder(row_format, self._specials)
            self._tables = CodeTables(row_format, self._specials)
        least_header = 0 if row_format.packed_bases is not None else row_format.room(row_format.header([]))
        self._tag_length = max(0, least_header - fetcher.least_room)

    def _make_buffers(self) -> RowBuffers:
        return RowBuffers(self._length, (np.uint8,) if self._compact else BATCH_DTYPES, reuse=self._reuse)

    def _make_single_buffers(self) -> RowBuffers:
        return RowBuffers(self._length, reuse=self._reuse)

    def _make_scratch(self) -> NDArray[np.uint8]:
        return np.empty((self._block_rows, self._letters), dtype=np.uint8)

    def make(self, wanted: Sequence[Wanted], sizes: Sequence[int]) -> Arrays:
        """Return rows, (B, T) each.

        Args:
            wanted: the windows of all rows.
            sizes: windows of each row.

        Raises:
            MissingSequence: a contig is absent, or too short.
            DatabaseError: a database cannot be read, letters cannot be encoded, or windows do not fit into their row.
        """
        return self._compact_rows(wanted, sizes) if self._compact else self._full_rows(wanted, sizes)

    def one(self, wanted: Wanted) -> Arrays:
        """Return the row of one window, (T,) each, without its `position_ids`; for rows neither compact nor packed."""
        tokens, labels, loss_mask = self._single_buffers.get().get(None)
        if self._format.masking is not None:
            padding = np.empty(self._length, dtype=np.bool_)
            self._fill_masked([wanted], [1], tokens[None], labels[None], loss_mask[None], padding[None])
            return {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "padding_mask": padding}
        self._fill_full([wanted], [1], tokens[None], labels[None], loss_mask[None])
        return {"tokens": tokens, "labels": labels, "loss_mask": loss_mask}

    # ---- rows of codes ----

    def _fill(self, wanted: Sequence[Wanted], sizes: Sequence[int], codes: NDArray[np.uint8]) -> Placed:
        """Read windows into rows of codes, on their strands, with the special tokens around them."""
        codes.fill(self._specials.pad)
        placed = self._fetcher.fill(wanted, sizes, codes)
        for k, is_reversed in enumerate(placed.reverse):
            if is_reversed:
                reverse_complement_in_place(codes[placed.row[k], placed.first[k] : placed.end[k]])
        if wanted:
            self._codes.frame(codes, placed.row, placed.at, placed.first, placed.end, tagged=placed.headers is not None)
        return placed

    def _fill_checked(self, wanted: Sequence[Wanted], sizes: Sequence[int], codes: NDArray[np.uint8]) -> Placed:
        """Do what `_fill` does, refuse letters that the tokenizer's table lacks, and mask bases where rows are masked."""
        placed = self._fill(wanted, sizes, codes)
        letters = sum(placed.end) - sum(placed.first)
        is_plain = self._codes.is_plain(codes, letters)
        if not is_plain and not self._codes.knows_all(codes, letters):
            self._refuse_unknown(wanted, codes, placed)
        if (masking := self._format.masking) is not None:
            for k, (epoch, window_idx) in enumerate(wanted):
                masking.mask(codes[placed.row[k], placed.first[k] : placed.end[k]], epoch, window_idx)
        elif not is_plain:
            lift_odd(codes)
        return placed

    def _compact_rows(self, wanted: Sequence[Wanted], sizes: Sequence[int]) -> Arrays:
        (codes,) = self._buffers.get().get(len(sizes))
        placed = self._fill_checked(wanted, sizes, codes)
        stacked: Arrays = {"codes": codes}
        if self._packed:
            ends = [ends_with_tokens(row) for row in self._ends(placed, len(sizes))]
            stacked.update(boundaries(ends, self._length))
        if self._format.weighs_labels:
            segments = stacked["cu_seqlens"] if self._packed else None
            any_loss = self._tables.any_loss(codes, segments)
            self._fetcher.check_loss(any_loss, masked=self._format.masking is not None)
        tags = self._tags(placed, sizes)
        return stacked if tags is None else {**stacked, "tags": tags}

    def _refuse_unknown(self, wanted: Sequence[Wanted], codes: NDArray[np.uint8], placed: Placed) -> None:
        for (_, window_idx), row, first, end in zip(wanted, placed.row, placed.first, placed.end, strict=True):
            try:
                self._codes.check(codes[row, first:end])
            except UnicodeError as error:
                raise self._fetcher.unreadable_letters(window_idx, error) from error

    def _tags(self, placed: Placed, sizes: Sequence[int]) -> NDArray[np.int64] | None:
        """Return the ids of control tags, -1 after shorter ones: (B, G) int64, or (B, windows of a row, G) where packed."""
        if placed.headers is None:
            return None
        tags = [self._format.tag_of(header) for header in placed.headers]
        longest = max(max(map(len, tags), default=0), 0 if self._packed else self._tag_length)
        if not longest:
            return None
        ids = np.full((len(sizes), max(sizes, default=1), longest), -1, dtype=np.int64)
        numbers = (number for size in sizes for number in range(size))
        for row, number, tag in zip(placed.row, numbers, tags, strict=True):
            ids[row, number, : len(tag)] = tag
        return ids if self._packed else ids[:, 0]

    # ---- rows of tokens, labels and loss masks ----

    def _full_rows(self, wanted: Sequence[Wanted], sizes: Sequence[int]) -> Arrays:
        tokens, labels, loss_mask, position_ids = self._buffers.get().get(len(sizes))
        stacked: Arrays = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "position_ids": position_ids}
        if self._format.masking is None:
            ends = self._fill_full(wanted, sizes, tokens, labels, loss_mask)
        else:
            padding = stacked["padding_mask"] = np.empty(tokens.shape, dtype=np.bool_)
            ends = self._fill_masked(wanted, sizes, tokens, labels, loss_mask, padding)
            self._fetcher.check_loss(bool(loss_mask.any()), masked=True)
        if not self._packed:
            position_ids[...] = positions(self._length)
            return stacked
        ends = [ends_with_tokens(row) for row in ends]
        for row, row_ends in zip(position_ids, ends, strict=True):
            for start, end in pairwise((0, *row_ends, self._length)):
                row[start:end] = positions(self._length)[: end - start]
        stacked.update(boundaries(ends, self._length))
        return stacked

    def _fill_full(
        self,
        wanted: Sequence[Wanted],
        sizes: Sequence[int],
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
    ) -> Ends:
        """Fill rows, (B, T) each, a block at a time; return where their windows end."""
        # One row by itself costs half of a block of one row.
        is_one = len(wanted) == 1 and not self._packed
        is_filled = is_one and self._fill_one(wanted[0], tokens[0], labels[0], loss_mask[0])
        make, at = self._by_table if self._has_table and len(wanted) > 1 else self._one_by_one, 0
        ends: Ends = []
        for first in range(0, 0 if is_filled else len(sizes), self._block_rows):
            block = slice(first, first + self._block_rows)
            windows = sum(sizes[block])
            ends += make(wanted[at : at + windows], sizes[block], tokens[block], labels[block], loss_mask[block])
            at += windows
        if self._format.weighs_letters:
            self._fetcher.check_loss(bool(loss_mask.any()))
        return ends

    def _fill_one(
        self,
        wanted: Wanted,
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
    ) -> bool:
        """Fill one row, (T,) each, with a window that has an address; return whether it has one."""
        window = self._fetcher.one(wanted, self._scratch.get()[0])
        if window is None:
            return False
        try:
            self._encoder.fill(window.bases, window.reverse, window.header, tokens, labels, loss_mask)
        except UnicodeError as error:
            raise self._fetcher.unreadable_letters(wanted[1], error) from error
        return True

    def _ends(self, placed: Placed, rows: int) -> Ends:
        ends: Ends = [[] for _ in range(rows)]
        if self._packed:
            for row, end in zip(placed.row, placed.end, strict=True):
                ends[row].append(end + self._format.include_eos)
        return ends

    def _by_table(
        self,
        wanted: Sequence[Wanted],
        sizes: Sequence[int],
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
    ) -> Ends:
        """Fill a block of rows by way of codes."""
        codes = self._scratch.get()[: len(sizes)]
        placed = self._fill(wanted, sizes, codes)
        count = sum(placed.end) - sum(placed.first)
        is_plain = self._codes.is_plain(codes, count)  # now, while the codes are in the cache
        knows_all = is_plain or self._codes.knows_all(codes, count)
        self._tables.expand(codes, tokens, labels, loss_mask, is_plain=is_plain or marks_alone_are_below(codes))
        if self._packed:
            for row, at in zip(placed.row, placed.at, strict=True):
                if at:  # no label of a window belongs to the one before it
                    labels[row, at - 1] = self._format.encoding.pad
                    loss_mask[row, at - 1] = 0
        for k, header in enumerate(placed.headers or ()):
            row, at = placed.row[k], placed.at[k]
            tokens[row, at : at + len(header)] = header
            if len(header):
                labels[row, at : at + len(header) - 1] = header[1:]
        ends = self._ends(placed, len(sizes))
        if not knows_all:
            for row in range(len(sizes)):
                of_row = [k for k, each in enumerate(placed.row) if each == row]
                letters = sum(placed.end[k] - placed.first[k] for k in of_row)
                if not self._codes.knows_all(codes[row : row + 1], letters):
                    windows = [codes[row, placed.first[k] : placed.end[k]] for k in of_row]
                    forward = placed._replace(reverse=[False] * len(wanted))
                    ends[row] = self._encode(wanted, forward, of_row, windows, tokens[row], labels[row], loss_mask[row])
        return ends

    def _fill_masked(
        self,
        wanted: Sequence[Wanted],
        sizes: Sequence[int],
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
        padding: NDArray[np.bool_],
    ) -> Ends:
        """Fill rows, (B, T) each, for masked language modelling, a block at a time; return where their windows end."""
        ends: Ends = []
        at = 0
        for first in range(0, len(sizes), self._block_rows):
            block = slice(first, first + self._block_rows)
            of_block = wanted[at : at + sum(sizes[block])]
            at += len(of_block)
            codes = self._scratch.get()[: len(sizes[block])]
            placed = self._fill_checked(of_block, sizes[block], codes)
            self._tables.expand(codes, tokens[block], labels[block], loss_mask[block])
            np.equal(codes, self._specials.pad, out=padding[block])
            for k, header in enumerate(placed.headers or ()):
                place = first + placed.row[k], slice(placed.at[k], placed.at[k] + len(header))
                tokens[place] = labels[place] = header
            ends += self._ends(placed, len(codes))
        return ends

    def _one_by_one(
        self,
        wanted: Sequence[Wanted],
        sizes: Sequence[int],
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
    ) -> Ends:
        """Fill a block of rows by calling the tokenizer on each window."""
        rows = self._scratch.get()[: len(wanted)]
        if len(rows) < len(wanted):
            rows = np.empty((len(wanted), self._letters), dtype=np.uint8)
        placed = self._fetcher.fill(wanted, [1] * len(wanted), rows)
        ends: Ends = []
        at = 0
        for k, size in enumerate(sizes):
            numbers = range(at, at + size)
            windows = [rows[number, placed.first[number] : placed.end[number]] for number in numbers]
            ends.append(self._encode(wanted, placed, numbers, windows, tokens[k], labels[k], loss_mask[k]))
            at += size
        return ends

    def _encode(
        self,
        wanted: Sequence[Wanted],
        placed: Placed,
        numbers: Sequence[int],
        windows: Sequence[NDArray[np.uint8]],
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
    ) -> list[int]:
        """Fill one row, (T,) each, by itself with the windows of these numbers; return where each of them ends."""
        at, ends = 0, []
        for k, letters in zip(numbers, windows, strict=True):
            header = self._untagged_header if placed.headers is None else placed.headers[k]
            limit = self._length
            if self._format.packed_bases is not None and self._format.window_bases is None:
                limit = at + len(header) + len(letters) + self._format.include_eos
                self._fetcher.check_fits(limit, self._length)
            elif self._format.packed_bases is not None:
                self._fetcher.check_fits(at + len(header) + self._format.include_eos, self._length)
            try:
                at = self._encoder.add(at, limit, letters, placed.reverse[k], header, tokens, labels, loss_mask)
            except UnicodeError as error:
                raise self._fetcher.unreadable_letters(wanted[k][1], error) from error
            ends.append(at)
        self._encoder.pad(at, tokens, labels, loss_mask)
        return ends


def ends_with_tokens(ends: Sequence[int]) -> list[int]:
    """Return where the windows of a row end that have tokens: without special tokens, one without bases has none."""
    return [end for at, end in pairwise((0, *ends)) if end > at]


def boundaries(ends: Sequence[Sequence[int]], seq_length: int) -> Arrays:
    """Return `cu_seqlens` (B, S) int32 and `max_seqlen` (B,) int32 of rows whose windows end there, ascending."""
    segments = max(map(len, ends), default=0) + 2
    cu_seqlens = np.full((len(ends), segments), seq_length, dtype=np.int32)
    cu_seqlens[:, 0] = 0
    for k, row in enumerate(ends):
        cu_seqlens[k, 1 : len(row) + 1] = row
    if len(ends) and (cu_seqlens[:, -2] == seq_length).all():  # every row is full, or has another segment to spare
        cu_seqlens = np.ascontiguousarray(cu_seqlens[:, :-1])
    return {"cu_seqlens": cu_seqlens, "max_seqlen": np.diff(cu_seqlens, axis=1).max(axis=1)}


def _forget(codes: NDArray[np.uint8]) -> None:
    """Memory needs no closing."""
