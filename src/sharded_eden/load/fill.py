"""Windows -> rows of arrays, a block of rows at once: read as rows of codes, which one pass over the block turns into tensors.

Enters: located windows, and how many go into each row. Leaves: rows of codes, or of tokens, labels and loss masks, and where
each window ends. A row with letters that the tokenizer's table does not know, and every row of a tokenizer without a table, is
made by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, starmap

import numpy as np
from numpy.typing import NDArray

from sharded_eden.load.codes import (
    BLOCK_BYTES,
    SENT,
    CodeEncoder,
    CodeTables,
    Specials,
    reverse_complement_in_place,
    specials_as_ids,
)
from sharded_eden.load.connections import PerThread
from sharded_eden.load.example import RowEncoder, RowFormat
from sharded_eden.load.fetch import Located, Window, WindowFetcher

Placed = tuple[int, int, int, int, NDArray[np.int64], Located]
"""Where a window lies in rows of codes: (row, where its header begins, where its letters begin and end, header, window)."""


class CodeRows:
    """Fills rows of codes.

    Args:
        row_format: the layout of a row; its tokenizer is a table.
        fetcher: reads the windows.
        specials: the codes of what is no base.
    """

    def __init__(self, row_format: RowFormat, fetcher: WindowFetcher, specials: Specials = SENT) -> None:
        self._encoder = CodeEncoder(row_format, specials)
        self._pad = specials.pad
        self._has_eos = int(row_format.include_eos)
        self._fetcher = fetcher

    def fill(self, located: Iterator[Located], sizes: Sequence[int], codes: NDArray[np.uint8]) -> list[Placed]:
        """Read so many windows into each row; return where they are.

        Args:
            located: as many as the rows need are taken.
            sizes: windows of each row.
            codes: (B, T) uint8, written.

        Raises:
            MissingSequence: a contig is absent, or too short.
            DatabaseError: a database cannot be read, or the windows of a row do not fit into it.
        """
        place, has_eos = self._fetcher.place, self._has_eos
        placed: list[Placed] = []
        codes.fill(self._pad)
        for k, size in enumerate(sizes):
            row, at = codes[k], 0
            for window in islice(located, size):
                epoch, window_idx, where = window
                header, first, end, reverse = place(epoch, window_idx, where, row, at)
                if reverse:
                    reverse_complement_in_place(row[first:end])
                placed.append((k, at, first, end, header, window))
                at = end + has_eos
        if placed:
            self._encoder.frame(codes, *np.array([each[:4] for each in placed]).T)
        return placed

    def knows_all(self, codes: NDArray[np.uint8], placed: Sequence[Placed]) -> bool:
        """Tell whether the tokenizer's table knows every letter of these rows."""
        return self._encoder.knows_all(codes, sum([end - first for _, _, first, end, _, _ in placed]))

    def check(self, codes: NDArray[np.uint8], placed: Sequence[Placed]) -> None:
        """Refuse rows with letters that the tokenizer's table does not know.

        Raises:
            DatabaseError: with the contig and the letter.
        """
        if self.knows_all(codes, placed):
            return
        for row, _, first, end, _, (_, _, (sequence_id, window_in_seq_idx, _)) in placed:
            try:
                self._encoder.check(codes[row, first:end])
            except UnicodeError as error:
                raise self._fetcher.unreadable_letters(sequence_id, window_in_seq_idx, error) from error


class RowFiller:
    """Fills rows of int64 tokens, int64 labels and float32 loss masks.

    Args:
        row_format: the layout of a row.
        fetcher: reads the windows.
    """

    def __init__(self, row_format: RowFormat, fetcher: WindowFetcher) -> None:
        self._format = row_format
        self._fetcher = fetcher
        self._encoder = RowEncoder(row_format)
        self._untagged = row_format.include_bos + row_format.include_sep
        self._block_rows = max(1, BLOCK_BYTES // row_format.seq_length)
        self._scratch = PerThread(self._make_scratch, _forget)
        self._weighs_letters = row_format.weighs_letters
        self._has_table = row_format.encoding.table is not None
        if self._has_table:
            specials = specials_as_ids(row_format)
            self._codes = CodeRows(row_format, fetcher, specials)
            self._tables = CodeTables(row_format, specials)

    def _make_scratch(self) -> NDArray[np.uint8]:
        return np.empty((self._block_rows, self._format.seq_length), dtype=np.uint8)

    def fill(
        self,
        located: Iterable[Located],
        sizes: Sequence[int],
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
    ) -> list[list[int]]:
        """Fill rows with so many windows each, and return where each window of each row ends.

        Args:
            located: as many windows as the rows need.
            sizes: windows of each row.
            tokens: (B, T) int64, written.
            labels: (B, T) int64, written.
            loss_mask: (B, T) float32, written.

        Raises:
            MissingSequence: a contig is absent, or too short.
            DatabaseError: a database cannot be read, letters cannot be encoded, or windows do not fit into their row.
        """
        coming = iter(located)
        ends = []
        for first in range(0, len(sizes), self._block_rows):
            block = slice(first, first + self._block_rows)
            arrays = tokens[block], labels[block], loss_mask[block]
            if self._has_table:
                ends += self._by_table(coming, sizes[block], *arrays)
            else:
                ends += [
                    self._row(starmap(self._fetcher.read, islice(coming, size)), *(array[k] for array in arrays))
                    for k, size in enumerate(sizes[block])
                ]
        if self._weighs_letters:
            self._fetcher.check_loss(bool(loss_mask.any()))
        return ends

    def fill_one(
        self, located: Located, tokens: NDArray[np.int64], labels: NDArray[np.int64], loss_mask: NDArray[np.float32]
    ) -> None:
        """Fill one row, (T,) each, with one window: see `fill`. For a single row that is faster than codes."""
        epoch, window_idx, where = located
        letters = self._scratch.get()[0]
        header, first, end, reverse = self._fetcher.place(epoch, window_idx, where, letters, 0)
        try:
            self._encoder.fill(letters[first:end], reverse, header, tokens, labels, loss_mask)
        except UnicodeError as error:
            raise self._fetcher.unreadable_letters(where[0], where[1], error) from error
        if self._weighs_letters:
            self._fetcher.check_loss(bool(loss_mask.any()))

    def _by_table(
        self,
        located: Iterator[Located],
        sizes: Sequence[int],
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
    ) -> list[list[int]]:
        codes = self._scratch.get()[: len(sizes)]
        placed = self._codes.fill(located, sizes, codes)
        knows_all = self._codes.knows_all(codes, placed)  # now, while the codes are in the cache
        self._tables.expand(codes, tokens, labels, loss_mask)
        has_eos = self._format.include_eos
        ends: list[list[int]] = [[] for _ in sizes]
        for k, start, _, end, header, _ in placed:
            if ends[k]:  # the label of the last token before a window is none of its own
                labels[k, start - 1] = self._format.encoding.pad
                loss_mask[k, start - 1] = 0
            ends[k].append(end + has_eos)
            if len(header) > self._untagged:
                tokens[k, start : start + len(header)] = header
                labels[k, start : start + len(header) - 1] = header[1:]
        if not knows_all:
            for k in range(len(sizes)):
                of_row = [each for each in placed if each[0] == k]
                if not self._codes.knows_all(codes[k : k + 1], of_row):
                    ends[k] = self._row(map(partial(_as_shown, codes), of_row), tokens[k], labels[k], loss_mask[k])
        return ends

    def _row(
        self,
        windows: Iterable[Window],
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
    ) -> list[int]:
        """Fill one row by itself; return where each window ends."""
        at, ends = 0, []
        seq_length, has_eos = len(tokens), self._format.include_eos
        for window in windows:
            limit = seq_length
            if self._format.packed_bases is not None:
                limit = at + len(window.header) + len(window.bases) + has_eos
                if limit > seq_length:
                    raise self._fetcher.overfull_pack(limit, seq_length)
            try:
                at = self._encoder.add(
                    at, limit, window.bases, window.reverse, window.header, tokens, labels, loss_mask
                )
            except UnicodeError as error:
                raise self._fetcher.unreadable_letters(window.sequence_id, window.window_in_seq_idx, error) from error
            ends.append(at)
        self._encoder.pad(at, tokens, labels, loss_mask)
        return ends


def _as_shown(codes: NDArray[np.uint8], placed: Placed) -> Window:
    """Return a window that lies in rows of codes, on the strand on which it lies there."""
    row, _, first, end, header, (epoch, window_idx, (sequence_id, window_in_seq_idx, _)) = placed
    return Window(codes[row, first:end], False, header, window_idx, sequence_id, window_in_seq_idx, epoch)


def _forget(codes: NDArray[np.uint8]) -> None:
    """Memory needs no closing."""
