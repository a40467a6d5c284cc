"""Batches whose rows are made in one shared buffer, so that collating copies nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch.utils.data import default_collate, get_worker_info

from sharded_eden.load.encode.sent import SentBatch

Example = dict[str, torch.Tensor]
"""`tokens`, `labels`, `position_ids` (T,) int64, `loss_mask` (T,) float32, perhaps `attention_mask` (1, T, T) bool."""


class Rows(Sequence[Example]):
    """The examples of one batch: a sequence of items whose tensors are rows of shared (B, T) buffers.

    Any collate function accepts it; `collate` returns the buffers without a copy.

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
        item = {**{name: rows[k] for name, rows in self.stacked.items()}, **self.shared}
        if "cu_seqlens" in item:  # in a batch, rows are padded with T; in an item, they end with the row
            cu_seqlens = item["cu_seqlens"]
            segments = int(torch.count_nonzero(cu_seqlens < cu_seqlens[-1]))
            item["cu_seqlens"] = cu_seqlens[: segments + 1]
        return item

    def __iter__(self) -> Iterator[Example]:
        return (self[k] for k in range(len(self)))

    def collate(self) -> Example:
        """Return the batch: every tensor contiguous, with a leading dimension B."""
        # repeat() copies even a single row: users may write to a batch, but not to tensors that items share.
        repeated = {name: t.repeat(len(self), *(1 for _ in t.shape)) for name, t in self.shared.items()}
        return {**self.stacked, **repeated}


def collate(batch: Any) -> Any:
    """Collate examples into a batch; `Rows` come without a copy, anything else through PyTorch's `default_collate`.

    Packed rows that come as a list get `cu_seqlens` of one length, filled up with T, and `tags` of one shape.
    In a worker, the batch is prepared for sending, see `sharded_eden.load.encode.sent`.
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
    """Return items whose tensors of this name are padded to one shape: boundaries with T, tags with -1."""
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
