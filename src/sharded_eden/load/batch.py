"""A batch at once: rows that lie in one buffer from the moment they are made, so that collating them copies nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, overload

import numpy as np
import torch
from torch.utils.data import default_collate, get_worker_info

from sharded_eden.load.buffers import BATCH_DTYPES, RowBuffers
from sharded_eden.load.codes import CodeTables
from sharded_eden.load.compact import check_compact
from sharded_eden.load.connections import PerThread
from sharded_eden.load.example import RowFormat
from sharded_eden.load.fetch import Located, WindowFetcher
from sharded_eden.load.fill import CodeRows, RowFiller
from sharded_eden.load.sent import SentBatch

Example = dict[str, torch.Tensor]
"""`tokens`, `labels`, `position_ids` (T,) int64, `loss_mask` (T,) float32, perhaps `attention_mask` (1, T, T) bool."""


class Rows(Sequence[Example]):
    """The examples of one batch: a sequence of items whose tensors are rows of shared (B, T) buffers.

    Any collate function can take it; `collate` hands the buffers on without a copy.

    Args:
        stacked: {name: (B, T) tensor}, whose rows differ from item to item.
        shared: {name: tensor}, the same for every item.
    """

    def __init__(self, stacked: Example, shared: Example) -> None:
        self.stacked = stacked
        self.shared = shared

    def __len__(self) -> int:
        return len(next(iter(self.stacked.values())))

    @overload
    def __getitem__(self, k: int) -> Example: ...
    @overload
    def __getitem__(self, k: slice) -> list[Example]: ...
    def __getitem__(self, k: int | slice) -> Example | list[Example]:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        return self._item(k)

    def _item(self, k: int) -> Example:
        return {**{name: rows[k] for name, rows in self.stacked.items()}, **self.shared}

    def __iter__(self) -> Iterator[Example]:
        return (self[k] for k in range(len(self)))

    def collate(self) -> Example:
        """Return the batch: every tensor contiguous, with a leading dimension B."""
        # repeat() copies even a single row: a batch is its user's to write to, what items share is not.
        repeated = {name: t.repeat(len(self), *(1 for _ in t.shape)) for name, t in self.shared.items()}
        return {**self.stacked, **repeated}


def collate(batch: Any) -> Any:
    """Collate examples into a batch; `Rows` come without a copy, anything else through PyTorch's `default_collate`.

    Packed rows that come as a list get `cu_seqlens` of one length, filled up with T, and `tags` of one shape.
    In a worker the batch is made to travel, see `sharded_eden.load.sent`.
    """
    if isinstance(batch, Rows):
        collated: Any = batch.collate()
    else:
        if batch and isinstance(batch[0], Mapping):
            for name in {"cu_seqlens", "tags"} & batch[0].keys():
                batch = _of_one_shape(batch, name)
        collated = default_collate(batch)
    return SentBatch(collated) if type(collated) is dict and get_worker_info() is not None else collated


def _of_one_shape(items: Sequence[Example], name: str) -> list[Example]:
    """Return items whose tensors of this name are filled up to one shape: boundaries with T, tags with -1."""
    shapes = [item[name].shape for item in items]
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    filled = []
    for item in items:
        tensor = item[name]
        value = tensor.reshape(-1)[-1] if name == "cu_seqlens" else -1
        whole = torch.full(largest, int(value), dtype=tensor.dtype, device=tensor.device)
        whole[tuple(map(slice, tensor.shape))] = tensor
        filled.append({**item, name: whole})
    return filled


class RowMaker(Protocol):
    """Makes rows of windows."""

    def many(self, located: Iterable[Located], sizes: Sequence[int]) -> Rows:
        """Return the items of rows with so many windows each, over one buffer."""


class FullRows:
    """Rows of tokens, labels, loss mask and position ids.

    Args:
        row_format: the layout of a row.
        fetcher: reads the windows.
        position_ids: (T,) int64; single items share it, a batch has its own.
        attention_mask: (1, T, T) bool, added to each item; None for none.
    """

    def __init__(
        self,
        row_format: RowFormat,
        fetcher: WindowFetcher,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> None:
        self._filler = RowFiller(row_format, fetcher)
        self._seq_length = row_format.seq_length
        self._masks = {} if attention_mask is None else {"attention_mask": attention_mask}
        self._shared = {"position_ids": position_ids, **self._masks}
        # Not a view of the tensor: sending that to another process moves its memory away.
        self._positions = np.arange(row_format.seq_length)
        self._buffers = PerThread(self._make_buffers, RowBuffers.clear)
        self._single_buffers = PerThread(self._make_single_buffers, RowBuffers.clear)

    def _make_buffers(self) -> RowBuffers:
        return RowBuffers(self._seq_length, BATCH_DTYPES)

    def _make_single_buffers(self) -> RowBuffers:
        return RowBuffers(self._seq_length)

    def one(self, located: Located) -> Example:
        """Return the item of a window: for a single row that is faster than `many`."""
        tokens, labels, loss_mask = self._single_buffers.get().get(None)
        self._filler.fill_one(located, tokens, labels, loss_mask)
        return {
            "tokens": torch.from_numpy(tokens),
            "labels": torch.from_numpy(labels),
            "loss_mask": torch.from_numpy(loss_mask),
            **self._shared,
        }

    def many(self, located: Iterable[Located], sizes: Sequence[int]) -> Rows:
        """Return the items of rows with one window each, over one buffer."""
        tokens, labels, loss_mask, position_ids = self._buffers.get().get(len(sizes))
        self._filler.fill(located, sizes, tokens, labels, loss_mask)
        position_ids[...] = self._positions
        stacked = {
            "tokens": torch.from_numpy(tokens),
            "labels": torch.from_numpy(labels),
            "loss_mask": torch.from_numpy(loss_mask),
            "position_ids": torch.from_numpy(position_ids),
        }
        return Rows(stacked, self._masks)


class CompactRows:
    """Rows of codes, see `sharded_eden.load.compact`.

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
        room_without_tag = row_format.room(row_format.header([]))
        self._tag_length = room_without_tag - fetcher.least_room

    def many(self, located: Iterable[Located], sizes: Sequence[int]) -> Rows:
        """Return the items of rows with one window each, over one buffer."""
        codes = np.empty((len(sizes), self._format.seq_length), dtype=np.uint8)
        placed = self._filler.fill(iter(located), sizes, codes)
        self._filler.check(codes, placed)
        if self._format.weighs_letters:
            self._fetcher.check_loss(self._losses.any_loss(codes))
        stacked = {"codes": torch.from_numpy(codes)}
        tags = [self._format.tag_of(header) for *_, header, _ in placed]
        longest = max(map(len, tags), default=0)
        if longest or self._tag_length:
            ids = np.full((len(sizes), max(longest, self._tag_length)), -1, dtype=np.int64)
            for k, tag in enumerate(tags):
                ids[k, : len(tag)] = tag
            stacked["tags"] = torch.from_numpy(ids)
        return Rows(stacked, {})
