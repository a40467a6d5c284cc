"""A batch at once: rows that lie in one buffer from the moment they are made, so that collating them copies nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch.utils.data import default_collate

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
        return len(self.stacked["tokens"])

    @overload
    def __getitem__(self, k: int) -> Example: ...
    @overload
    def __getitem__(self, k: slice) -> list[Example]: ...
    def __getitem__(self, k: int | slice) -> Example | list[Example]:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        return {**{name: rows[k] for name, rows in self.stacked.items()}, **self.shared}

    def __iter__(self) -> Iterator[Example]:
        return (self[k] for k in range(len(self)))

    def collate(self) -> Example:
        """Return the batch: every tensor contiguous, with a leading dimension B, and its own to write to."""
        rows = len(self)
        repeated = {name: t.repeat(rows, *[1] * t.dim()) for name, t in self.shared.items()}
        return {**self.stacked, **repeated}


def collate(batch: Any) -> Any:
    """Collate examples into a batch; `Rows` come without a copy, anything else through PyTorch's `default_collate`."""
    return batch.collate() if isinstance(batch, Rows) else default_collate(batch)
