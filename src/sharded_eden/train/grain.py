"""A stream as a data source of Grain, for JAX: position -> row of NumPy arrays. Imports neither Grain nor torch.

    source = StreamSource(ArrayStream(ArrayDataset.open("seqdb", "windows/train.db")))
    rows = grain.MapDataset.source(source).to_iter_dataset()

Grain needs only `len()` and `source[k]` (https://google-grain.readthedocs.io, `RandomAccessDataSource`). The stream is shuffled
already: leave out Grain's `shuffle` and `repeat`. Cost: a row by itself takes about twice as long as a row of a batch, so
`batch_size=` is faster than Grain's `batch`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from sharded_eden.errors import StateError, UsageError, shown
from sharded_eden.format.geometry import integer
from sharded_eden.load.encode.rows import Arrays
from sharded_eden.train.array_stream import ArrayStream
from sharded_eden.train.state import AcceptOtherData

ENDLESS = 1 << 62
"""The positions of a stream without end."""


class StreamSource:
    """A `grain.sources.RandomAccessDataSource` over a stream.

    Item k is the row at position k: `tokens`, `labels`, `position_ids` (T,) int64, `loss_mask` (T,) float32, and other keys of
    `ArrayStream.arrays`. With `batch_size=B`, item k is the batch of the positions `k * B` to `k * B + B - 1`: (B, T) each.
    Threads and processes of Grain may read at the same time.

    Args:
        stream: an `ArrayStream`, a `Stream` or a `Mixture`. `num_samples` of the stream is the length; an endless stream
            has 2**62 positions.
        batch_size: rows of an item; None for single rows. An incomplete last batch is left out.

    Raises:
        UsageError: a batch size below 1, or single rows of packs: their `cu_seqlens` have different lengths, which Grain's
            `batch` cannot stack.
    """

    def __init__(self, stream: ArrayStream, *, batch_size: int | None = None) -> None:
        if batch_size is not None and integer(batch_size, "batch_size") < 1:
            raise UsageError(f"batch_size must be at least 1, but is {batch_size}")
        if batch_size is None and stream.dataset.options.packed:
            raise UsageError(
                "rows of packs differ in the length of their cu_seqlens: use StreamSource(stream, batch_size=...)"
            )
        self.stream = stream
        self.batch_size = None if batch_size is None else int(batch_size)

    @property
    def _rows_each(self) -> int:
        return self.batch_size or 1

    def __len__(self) -> int:
        samples = self.stream.num_samples
        return (ENDLESS if samples is None else samples) // self._rows_each

    def __getitem__(self, index: int) -> Arrays:
        """Return an item.

        Raises:
            IndexError: it is outside the stream.
        """
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} is outside a source of {len(self)}")
        if self.batch_size is None:
            return {name: part[0] for name, part in self.stream.arrays([index]).items()}
        return self.stream.arrays(range(index * self.batch_size, (index + 1) * self.batch_size))

    def _getitems(self, indices: Sequence[int]) -> list[Arrays]:
        """Return many items at once; Grain calls this where it reads ahead in batches."""
        each = self._rows_each
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"item {index} is outside a source of {len(self)}")
        if not len(indices):
            return []
        if self.batch_size is not None:
            return [self[index] for index in indices]
        rows = self.stream.arrays([int(index) * each for index in indices])
        return [{name: np.array(part[k]) for name, part in rows.items()} for k in range(len(indices))]

    def __repr__(self) -> str:
        """Return a text that tells streams apart: Grain's `DataLoader` compares it on resuming, and refuses another one.

        It does not tell apart the ids of letters, which `state` does.
        """
        identity = {**self.stream.identity, "epoch": self.stream.epoch}
        for part in (identity, *identity.get("sources", ())):
            # Version 0.2 had neither in its texts, and only shuffled streams.
            part.pop("letters", None)
            if part.get("shuffle") is True:
                del part["shuffle"]
        text = json.dumps(identity, sort_keys=True, default=str)
        digest = blake2b(text.encode(), digest_size=8).hexdigest()
        return f"{type(self).__name__}(stream={digest}, batch_size={self.batch_size})"

    def state(self, consumed_items: int) -> dict[str, Any]:
        """Return the state to save after a number of items of the source: that of a `StreamBatchSampler`, JSON-like.

        Trainers with torch can resume from it, and the other way round.
        """
        return self.stream.state(integer(consumed_items, "consumed_items") * self._rows_each)

    def first_item(self, state: Mapping[str, Any], accept_other_data: AcceptOtherData = False) -> int:
        """Return the item that follows a saved state, after checking that it belongs to this stream; its epoch is set.

        Args:
            state: what `state` or a sampler returned.
            accept_other_data: see `StreamBatchSampler`.

        Raises:
            StateError: it is not a state, was saved for another stream, or lies inside a batch.

        Example: `grain.MapDataset.source(source)[source.first_item(state):]`
        """
        consumed, epoch = self.stream.position_of(state, accept_other_data)
        if consumed % self._rows_each:
            raise StateError(
                f"the checkpoint has {shown(consumed)} consumed samples, no multiple of batch_size={self.batch_size}: use a "
                "batch size that divides them"
            )
        self.stream.set_epoch(epoch)
        return consumed // self._rows_each
