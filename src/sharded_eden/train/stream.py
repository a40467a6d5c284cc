"""position -> (epoch, window) -> example: one endless map-style dataset for every trainer.

The order is that of `ArrayStream` (`train/array_stream.py`); the rows are tensors. Streams for evaluation are here too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from sharded_eden.errors import warn
from sharded_eden.load.encode.batch import Example, Rows
from sharded_eden.load.encode.rows import Arrays
from sharded_eden.load.tensors import ShardedEdenDataset
from sharded_eden.train.ahead import NextBatches
from sharded_eden.train.array_stream import ArrayStream

ENDLESS = (1 << 63) - 1


class Stream(ArrayStream, Dataset[Example]):
    """The windows of a dataset in shuffled order, in an endless series of passes.

    A `DataLoader` over a stream without a sampler of this package requests the positions 0 to `len(stream) - 1` in each of its
    epochs. Call `set_epoch(epoch)` before each, otherwise all epochs give the same rows; a repeated training pass causes a
    warning.

    Args:
        dataset: the windows of a split.
        num_samples: where the stream ends; None for an endless stream, whose `len()` is one pass.
        seed: decides the order; None is the dataset's seed.
        shuffle: False visits the windows in the order of their indices, in every pass.

    Raises:
        UsageError: the dataset has no windows, or `num_samples` or `seed` is not an integer.

    Example:
        >>> from sharded_eden import ShardedEdenDataset, Stream
        >>> stream = Stream(ShardedEdenDataset.open("sequence_db_dir", "windows/train_windows.db"), seed=1)
        >>> stream[10**9]["tokens"].shape  # endless: any position
        torch.Size([1024])
    """

    dataset: ShardedEdenDataset
    _epoch_owner = 0

    def __init__(
        self,
        dataset: ShardedEdenDataset,
        num_samples: int | None = None,
        *,
        seed: int | None = None,
        shuffle: bool = True,
    ) -> None:
        super().__init__(dataset, num_samples, seed=seed, shuffle=shuffle)
        self._next_batches = NextBatches()
        self._last_pass: int | None = None
        _STREAMS.add(self)

    def __getstate__(self) -> dict[str, Any]:
        self._own()
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _STREAMS.add(self)
        if not self._epoch.is_shared():  # a deep copy, or from a file; workers get the memory of their parent
            self._share(self.epoch, int(self._end))

    def __copy__(self) -> Stream:
        copied = self.__class__.__new__(self.__class__)
        copied.__setstate__(self.__getstate__())
        copied._share(self.epoch, int(self._end))  # passes of its own, as a deep copy has
        return copied

    @property
    def epoch(self) -> int:
        """The pass that `set_epoch` chose."""
        return int(self._epoch)

    def _start_pass(self, epoch: int) -> None:
        if self._epoch_owner == os.getpid():
            self._epoch.fill_(epoch)
        else:
            self._share(epoch, int(self._end) if self._epoch_owner else ENDLESS)

    def set_end(self, position: int | None) -> None:
        """State where the sampler of a pass ends, None for one without end: nothing from there on is announced to the kernel.

        Rows do not depend on it. Samplers of this package call it when a pass begins.
        """
        end = ENDLESS if position is None else position
        if self._epoch_owner == os.getpid():
            self._end.fill_(end)
        else:
            self._share(self.epoch, end)

    def _share(self, epoch: int, end: int) -> None:
        # Workers that are already running read both from shared memory. Ranks that were started with a copy of this stream may
        # be in other epochs, so each process that sets one has its own.
        shared = torch.tensor([epoch, end], dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._epoch, self._end = shared.unbind()
        self._epoch_owner = os.getpid()

    def _own(self) -> None:
        """Before workers start: let them share the memory of this process, not of the one that it got the stream from."""
        if self._epoch_owner != os.getpid() and get_worker_info() is None:
            self._share(self.epoch, int(self._end))

    def _end_of_asking(self) -> int:
        """Return the position from which on nothing is read in this pass, as far as this stream knows."""
        return min(int(self._end), ENDLESS if self.num_samples is None else self.num_samples)

    def __len__(self) -> int:
        caller = sys._getframe(1)
        if caller.f_code.co_name == "__iter__" and caller.f_globals.get("__name__") == "torch.utils.data.sampler":
            # PyTorch's sequential sampler calls this when a pass begins; the main process has no other sign of it.
            if self._last_pass == self.epoch:
                warn_of_repeated_pass(self, "Call stream.set_epoch(epoch)")
            self._last_pass = self.epoch
        return self._samples_of_an_epoch

    def __getitem__(self, position: int) -> Example:
        (item,) = self.windows_at([position])
        return self.dataset[item]

    def __getitems__(self, positions: Sequence[int]) -> Rows:
        """Return the examples at many positions, over one buffer."""
        rows = self.dataset.__getitems__(self.windows_at(positions))
        if items_ahead := self.dataset.items_ahead:
            upcoming = self._next_batches.after(positions, self._end_of_asking(), items_ahead)
            self.dataset.announce(self.windows_at(upcoming))
        return rows

    def collate_fn(self, batch: Any) -> Any:
        """Collate examples into a batch, as the dataset does."""
        return self.dataset.collate_fn(batch)


_STREAMS: WeakSet[Stream] = WeakSet()
"""Of this process: what it forks may be workers."""


def _before_fork() -> None:
    for stream in list(_STREAMS):
        stream._own()


os.register_at_fork(before=_before_fork)


def warn_of_repeated_pass(stream: Stream, remedy: str) -> None:
    """Warn that a training pass repeats the rows of the last one; evaluations may repeat their rows."""
    is_training = (
        stream.shuffle
        and not isinstance(stream, EvaluationStream)
        and stream.dataset.split not in {"val", "validation", "test"}
    )
    if is_training and torch.is_grad_enabled():
        warn(
            f"another pass over the {stream.dataset.split} split begins with the same rows, order and strands as the last "
            f"one. {remedy} before each pass to train on other rows"
        )


class EvaluationStream(Stream):
    """One pass in a fixed random order: the same in each evaluation, and any beginning of it is a random sample of the split.

    Positions from the number of windows on repeat the pass from its start, for ranks that have fewer rows than others. Each
    example says whether it counts: `row_counts`, a bool, (B,) in a batch, false in repeated rows.
    """

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: trainers that call it for every dataset get the same rows in each evaluation."""

    def __getitem__(self, position: int) -> Example:
        rows = len(self.dataset)
        return {**super().__getitem__(position % rows), "row_counts": torch.tensor(position < rows)}

    def __getitems__(self, positions: Sequence[int]) -> Rows:
        """Return the examples at many positions, over one buffer."""
        total = len(self.dataset)
        rows = super().__getitems__([position % total for position in positions])
        rows.stacked["row_counts"] = torch.tensor([position < total for position in positions])
        return rows

    def arrays(self, positions: Sequence[int]) -> Arrays:
        """Return the rows at many positions as NumPy arrays, with `row_counts` (B,) bool."""
        total = len(self.dataset)
        rows = super().arrays([position % total for position in positions])
        return {**rows, "row_counts": np.array([position < total for position in positions])}

    def _end_of_asking(self) -> int:
        return len(self.dataset)


class RepeatedEvaluation(EvaluationStream):
    """One evaluation, repeated: for trainers that count the rows of all evaluations of a job together.

    Args:
        dataset: the windows of a split.
        num_samples: rows of all evaluations.
        rows_each: rows of one evaluation; each begins with the same rows. Rows beyond the split repeat it, and do not count.
    """

    def __init__(self, dataset: ShardedEdenDataset, num_samples: int, *, rows_each: int) -> None:
        super().__init__(dataset)
        self._total = num_samples
        self._rows_each = rows_each

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, position: int) -> Example:
        return super().__getitem__(self._within(position))

    def __getitems__(self, positions: Sequence[int]) -> Rows:
        """Return the examples at many positions, over one buffer."""
        return super().__getitems__([self._within(position) for position in positions])

    def arrays(self, positions: Sequence[int]) -> Arrays:
        """Return the rows at many positions as NumPy arrays, with `row_counts` (B,) bool."""
        return super().arrays([self._within(position) for position in positions])

    def _end_of_asking(self) -> int:
        return min(self._rows_each, super()._end_of_asking())

    def _within(self, position: int) -> int:
        if not 0 <= position < self._total:
            raise IndexError(f"position {position} is outside evaluations of {self._total} rows")
        return position % self._rows_each
