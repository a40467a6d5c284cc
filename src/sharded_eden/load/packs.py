"""A pack as one example: several whole windows in one row, each with positions, labels and attention of its own.

    tokens        BOS SEP A C G EOS  BOS SEP T T EOS  PAD PAD
    position_ids   0   1  2 3 4  5    0   1  2 3  4    0   1
    cu_seqlens     0                  6                11     13     (padding is a segment of its own: it ends at T)

Enters: a pack index. Leaves: what `batch.py` makes of a window, with `cu_seqlens` (S,) and `max_seqlen` (), int32, beside it;
in a batch `cu_seqlens` is (B, S), rows with fewer segments repeat T. Costs one lookup a pack beside what its windows cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import apsw
import numpy as np
import torch
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError
from sharded_eden.format.sqlite import table_columns, unreadable
from sharded_eden.load.batch import Example, Rows
from sharded_eden.load.buffers import BATCH_DTYPES, RowBuffers
from sharded_eden.load.codes import CodeTables
from sharded_eden.load.compact import across_windows, check_compact
from sharded_eden.load.connections import PerThread
from sharded_eden.load.example import RowFormat
from sharded_eden.load.fetch import Located, WindowFetcher
from sharded_eden.load.fill import CodeRows, RowFiller
from sharded_eden.load.locate import WindowIndex

_LOOKUP = "SELECT windows FROM carray(?) AS wanted LEFT JOIN packs ON pack_idx = wanted.value"


class PackIndex:
    """pack index -> the windows of a row.

    Args:
        index: the window database.

    Raises:
        DatabaseError: it has no packs, or not all of them.
    """

    def __init__(self, index: WindowIndex) -> None:
        self._index = index
        if not {"pack_idx", "windows"} <= set(table_columns(index.connection, "packs")):
            raise DatabaseError(f"{index.path} holds no packs. Add them: {self._cure}")
        try:
            first, last = index.connection.execute(
                "SELECT (SELECT min(pack_idx) FROM packs), (SELECT max(pack_idx) FROM packs)"
            ).get
        except apsw.Error as error:
            raise unreadable(index.path, error) from error
        self.total = index.metadata.get("total_packs", -1)
        self.fingerprint = index.metadata.get("pack_fingerprint", 0)
        if (first, last) != ((0, self.total - 1) if self.total else (None, None)):
            raise DatabaseError(
                f"{index.path}: its metadata speak of total_packs={self.total}, the table packs holds "
                f"{'none' if first is None else f'{first} to {last}'}. Pack it again: {self._cure}"
            )

    @property
    def _cure(self) -> str:
        return f"sharded-eden pack {self._index.path}"

    def windows(self, packs: Sequence[int]) -> list[list[int]]:
        """Return the window indices of each pack.

        Raises:
            DatabaseError: a pack is missing or damaged.
        """
        if not packs:
            return []
        wanted = apsw.carray(np.array(packs, dtype=np.int64))
        try:
            rows = self._index.connection.execute(_LOOKUP, (wanted,)).fetchall()
        except apsw.Error as error:
            raise unreadable(self._index.path, error) from error
        members = []
        for pack, (blob,) in zip(packs, rows, strict=True):
            if not isinstance(blob, bytes) or not blob or len(blob) % 8:
                raise DatabaseError(
                    f"{self._index.path}: pack {pack} is missing or damaged. Pack it again: {self._cure}"
                )
            members.append(np.frombuffer(blob, dtype="<i8").tolist())
        if not all(0 <= w < self._index.total_windows for row in members for w in row):
            raise DatabaseError(
                f"{self._index.path}: packs name windows that are not there. Pack it again: {self._cure}"
            )
        return members


class PackedRows(Rows):
    """The packs of one batch. An item's `cu_seqlens` ends where its row ends, a batch's are filled up with T."""

    def _item(self, k: int) -> Example:
        item = super()._item(k)
        cu_seqlens = item["cu_seqlens"]
        segments = int(torch.count_nonzero(cu_seqlens < cu_seqlens[-1]))
        return {**item, "cu_seqlens": cu_seqlens[: segments + 1]}


def _boundaries(ends: Sequence[Sequence[int]], seq_length: int) -> Example:
    """Return `cu_seqlens` (B, S) int32 and `max_seqlen` (B,) int32 of rows whose windows end there, ascending."""
    segments = max(map(len, ends), default=0) + 2
    cu_seqlens = np.full((len(ends), segments), seq_length, dtype=np.int32)
    cu_seqlens[:, 0] = 0
    for k, row in enumerate(ends):
        cu_seqlens[k, 1 : len(row) + 1] = row
    if len(ends) and (cu_seqlens[:, -2] == seq_length).all():  # every row is full, or has another segment to spare
        cu_seqlens = np.ascontiguousarray(cu_seqlens[:, :-1])
    return {
        "cu_seqlens": torch.from_numpy(cu_seqlens),
        "max_seqlen": torch.from_numpy(np.diff(cu_seqlens, axis=1).max(axis=1)),
    }


class PackedFullRows:
    """Rows of tokens, labels, loss mask and position ids, with the boundaries of their windows.

    Args:
        row_format: the layout of a row.
        fetcher: reads the windows.
        causal_mask: (1, T, T) bool, true where attention is not allowed; None for no masks.
    """

    def __init__(self, row_format: RowFormat, fetcher: WindowFetcher, causal_mask: torch.Tensor | None) -> None:
        self._filler = RowFiller(row_format, fetcher)
        self._seq_length = row_format.seq_length
        self._causal_mask = causal_mask
        self._positions = np.arange(row_format.seq_length)
        self._buffers = PerThread(self._make_buffers, RowBuffers.clear)

    def _make_buffers(self) -> RowBuffers:
        return RowBuffers(self._seq_length, BATCH_DTYPES)

    def many(self, located: Iterable[Located], sizes: Sequence[int]) -> PackedRows:
        """Return the items of rows with so many windows each, over one buffer."""
        tokens, labels, loss_mask, position_ids = self._buffers.get().get(len(sizes))
        ends = self._filler.fill(located, sizes, tokens, labels, loss_mask)
        # A tokenizer that makes nothing of a window leaves it no segment.
        ends = [[end for at, end in pairwise((0, *row)) if end > at] for row in ends]
        for row, row_ends in zip(position_ids, ends, strict=True):
            for start, end in pairwise((0, *row_ends, self._seq_length)):
                row[start:end] = self._positions[: end - start]
        stacked = {
            "tokens": torch.from_numpy(tokens),
            "labels": torch.from_numpy(labels),
            "loss_mask": torch.from_numpy(loss_mask),
            "position_ids": torch.from_numpy(position_ids),
            **_boundaries(ends, self._seq_length),
        }
        if self._causal_mask is not None:
            apart = across_windows(stacked["cu_seqlens"], self._seq_length)
            stacked["attention_mask"] = apart[:, None] | self._causal_mask
        return PackedRows(stacked, {})


class PackedCompactRows:
    """Rows of codes with the boundaries of their windows, see `sharded_eden.load.compact`.

    Args:
        row_format: the layout of a row.
        fetcher: reads the windows.

    Raises:
        UsageError: the tokenizer is no table.
    """

    def __init__(self, row_format: RowFormat, fetcher: WindowFetcher) -> None:
        check_compact(row_format)
        self._filler = CodeRows(row_format, fetcher)
        self._format = row_format
        self._fetcher = fetcher
        self._losses = CodeTables(row_format)

    def many(self, located: Iterable[Located], sizes: Sequence[int]) -> PackedRows:
        """Return the items of rows with so many windows each, over one buffer."""
        length = self._format.seq_length
        codes = np.empty((len(sizes), length), dtype=np.uint8)
        placed = self._filler.fill(iter(located), sizes, codes)
        self._filler.check(codes, placed)
        ends: list[list[int]] = [[] for _ in sizes]
        tags: list[list[NDArray[np.int64]]] = [[] for _ in sizes]
        for k, _, _, end, header, _ in placed:
            ends[k].append(end + self._format.include_eos)
            tags[k].append(self._format.tag_of(header))
        stacked = {"codes": torch.from_numpy(codes), **_boundaries(ends, length)}
        if self._format.weighs_letters:
            self._fetcher.check_loss(self._losses.any_loss(codes, stacked["cu_seqlens"].numpy()))
        longest = max((len(tag) for row in tags for tag in row), default=0)
        if longest:
            ids = np.full((len(sizes), max(map(len, tags)), longest), -1, dtype=np.int64)
            for k, row in enumerate(tags):
                for w, tag in enumerate(row):
                    ids[k, w, : len(tag)] = tag
            stacked["tags"] = torch.from_numpy(ids)
        return PackedRows(stacked, {})


def flatten_rows(batch: Example) -> Example:
    """Return the rows of a packed batch one behind the other, as one row: what kernels for variable lengths take.

    Args:
        batch: (B, T) tensors, `cu_seqlens` (B, S), `max_seqlen` (B,). An `attention_mask` is left out: boundaries say the same.

    Returns:
        `tokens`, `labels`, `loss_mask`, `position_ids` (1, B * T); `cu_seqlens` (segments + 1,) int32, strictly increasing from
        0 to B * T; `max_seqlen` () int32.
    """
    rows, length = batch["tokens"].shape
    offsets = torch.arange(rows, dtype=torch.int32, device=batch["tokens"].device) * length
    starts = batch["cu_seqlens"]
    begins = (starts + offsets[:, None])[starts < length]
    end = torch.full((1,), rows * length, dtype=torch.int32, device=starts.device)
    flat = {
        name: tensor.reshape(1, rows * length)
        for name, tensor in batch.items()
        if name in {"tokens", "labels", "loss_mask", "position_ids"}
    }
    return {**flat, "cu_seqlens": torch.cat([begins, end]), "max_seqlen": batch["max_seqlen"].max()}
