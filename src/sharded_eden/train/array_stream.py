"""position -> (epoch, window) -> example as NumPy arrays: the endless stream that every trainer reads, without torch.

Position p of the stream is window `order(seed, epoch = p // N, p mod N)`. Samplers only count. A worker computes the window of
a position from (seed, position). `Stream` (`train/stream.py`) makes tensors of the same rows.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import UsageError, shown
from sharded_eden.format.geometry import integer
from sharded_eden.load.dataset import ArrayDataset
from sharded_eden.load.encode.rows import Arrays
from sharded_eden.train.order import Order, keep
from sharded_eden.train.state import AcceptOtherData, make_state, position_of

KEPT_ORDERS = 4
MAX_EPOCH = 1 << 31


class Columns(NamedTuple):
    """Items of a stream, (n,) int64 each."""

    source: NDArray[np.int64]
    """The number of the source of a mixture; 0 without one."""
    epoch: NDArray[np.int64]
    item: NDArray[np.int64]
    """The index of the window, or of the pack."""


class ArrayStream:
    """The windows of a dataset in shuffled order, in an endless series of passes. Rows are NumPy arrays.

    Args:
        dataset: the windows of a split.
        num_samples: where the stream ends; None for an endless stream, whose `len()` is one pass.
        seed: decides the order; None is the dataset's seed.
        shuffle: False visits the windows in the order of their indices, in every pass.

    Raises:
        UsageError: the dataset has no windows, or `num_samples` or `seed` is not an integer.

    Example:
        >>> from sharded_eden import ArrayDataset, ArrayStream
        >>> stream = ArrayStream(ArrayDataset.open("sequence_db_dir", "windows/train_windows.db"))
        >>> stream.arrays([0, 1])["tokens"].shape
        (2, 1024)
    """

    def __init__(
        self,
        dataset: ArrayDataset,
        num_samples: int | None = None,
        *,
        seed: int | None = None,
        shuffle: bool = True,
    ) -> None:
        if len(dataset) == 0:
            raise UsageError(
                f"{dataset.window_db_path} holds no window, so there is nothing to stream. Precompute it with a lower "
                "--window-min-length-threshold, or from a split that has contigs"
            )
        if num_samples is not None and (num_samples := integer(num_samples, "num_samples")) < 0:
            raise UsageError(f"num_samples must not be negative, but is {num_samples}")
        self.dataset = dataset
        self.num_samples = num_samples
        self.seed = dataset.seed if seed is None else integer(seed, "seed")
        self.shuffle = shuffle
        self._orders: OrderedDict[int, Order] = OrderedDict()
        self._start_pass(0)

    @property
    def identity(self) -> dict[str, Any]:
        """The stream that a saved position belongs to.

        `seed`, `fingerprint`, `geometry`, `rows` (now and in 0.1), `letters` (a digest of their ids) and `shuffle`.

        Where strands, masks or tags depend on another seed than the order, `rows` has it as `seed`.
        """
        data = self.dataset
        now, of_0_1 = data.rows
        if data.random_seed not in {None, self.seed}:
            now = {**now, "seed": data.random_seed}
        return {
            "seed": self.seed,
            "fingerprint": data.fingerprint,
            "geometry": data.geometry,
            "rows": (now, of_0_1),
            "letters": data.letters,
            "shuffle": bool(self.shuffle),
        }

    def state(self, consumed_samples: int) -> dict[str, Any]:
        """Return the state to save at a position: the same on every rank."""
        length = self._samples_of_an_epoch
        return make_state(
            consumed_samples=consumed_samples, epoch=self.epoch, samples_of_an_epoch=length, **self.identity
        )

    def position_of(self, state: Mapping[str, Any], accept_other_data: AcceptOtherData = False) -> tuple[int, int]:
        """Return the consumed samples and the epoch in a saved state.

        Raises:
            StateError: it is not a state, or was saved for another stream; the message names both values.
        """
        length = self._samples_of_an_epoch
        return position_of(state, **self.identity, samples_of_an_epoch=length, accept_other_data=accept_other_data)

    @property
    def epoch(self) -> int:
        """The pass that `set_epoch` chose."""
        return self._pass

    def set_epoch(self, epoch: int) -> None:
        """Let position p mean position `epoch * len(self) + p` of the endless stream; of a `Stream`, in running workers too.

        Raises:
            UsageError: a negative epoch.
        """
        if not 0 <= (number := integer(epoch, "epoch")) < MAX_EPOCH:
            raise UsageError(f"epoch must lie in [0, {MAX_EPOCH}), but is {shown(epoch)}")
        self._start_pass(number)

    def _start_pass(self, epoch: int) -> None:
        self._pass = epoch

    def __len__(self) -> int:
        return self._samples_of_an_epoch

    def arrays(self, positions: Sequence[int]) -> Arrays:
        """Return the rows at many positions as NumPy arrays, bit-identical to the tensors of a `Stream`.

        Returns:
            `tokens`, `labels`, `position_ids` (B, T) int64 and `loss_mask` (B, T) float32; see `ArrayDataset.arrays` for
            other keys.

        Raises:
            IndexError: a position below 0, or at or beyond `num_samples`.
            MissingSequence: a contig is absent, or too short.
            DatabaseError: a database cannot be read, or letters cannot be encoded.
        """
        return self.dataset.arrays(self.windows_at(positions))

    def windows_at(self, positions: Sequence[int]) -> list[Any]:
        """Return the item of the dataset at each position: (epoch, window index); (source, epoch, index) of a mixture.

        Raises:
            IndexError: a position below 0, or at or beyond `num_samples`.
        """
        return self._items(self._checked(positions))

    def columns(self, first: int, end: int, epoch: int | None = None) -> Columns:
        """Return the items at the positions from `first` to before `end`, as `windows_at` does, in a third of the time.

        Args:
            first: the first position.
            end: the position after the last.
            epoch: of the positions; None is the one that `set_epoch` chose.

        Raises:
            IndexError: a position below 0, or at or beyond `num_samples`.
        """
        if end <= first:
            return Columns(*np.zeros((3, 0), dtype=np.int64))
        begin, last = self._checked([first, end - 1], epoch)
        self._items([last])  # raises the error of a position that no epoch has
        return self._columns(range(begin, last + 1))

    def _columns(self, positions: range) -> Columns:
        """Return the items at positions of the endless stream, of which there is at least one."""
        first, place = divmod(positions.start, len(self.dataset))  # of any size: integers of Python
        epoch, places = np.divmod(np.arange(place, place + len(positions), dtype=np.int64), len(self.dataset))
        index = by_epoch(epoch, places, lambda number, part: self._visit(first + number, part))
        return Columns(np.zeros(len(places), dtype=np.int64), epoch + first, index)

    def _checked(self, positions: Sequence[int], epoch: int | None = None) -> list[int]:
        """Return positions of the endless stream, after checking them; None is the epoch that `set_epoch` chose."""
        try:
            checked = [operator.index(p) for p in positions]
        except TypeError as error:
            raise IndexError(f"a stream is asked for integer positions: {error}") from None
        for position in checked:
            if position < 0 or (self.num_samples is not None and position >= self.num_samples):
                end = "without end" if self.num_samples is None else f"of {self.num_samples} samples"
                raise IndexError(f"position {position} is outside a stream {end}")
        if shift := (self.epoch if epoch is None else epoch) * self._samples_of_an_epoch:
            checked = [position + shift for position in checked]
        return checked

    @property
    def _samples_of_an_epoch(self) -> int:
        return len(self.dataset) if self.num_samples is None else self.num_samples

    def _items(self, positions: Sequence[int]) -> list[Any]:
        """Return the item of the dataset at each position of the endless stream."""
        length = len(self.dataset)
        windows: list[tuple[int, int]] = [(-1, -1)] * len(positions)
        by_epoch: dict[int, list[int]] = {}
        for k, position in enumerate(positions):
            by_epoch.setdefault(position // length, []).append(k)
        for epoch, places in by_epoch.items():
            found = self._visit(epoch, np.array([positions[k] % length for k in places], dtype=np.int64))
            for k, window_idx in zip(places, found.tolist(), strict=True):
                windows[k] = (epoch, window_idx)
        return windows

    def _visit(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.shuffle:
            return places
        order = self._orders.get(epoch)
        if order is None:
            order = keep(self._orders, epoch, Order(len(self.dataset), self.seed, epoch), KEPT_ORDERS)
        return order(places)


def by_epoch(
    epochs: NDArray[np.int64], places: NDArray[np.int64], visit: Callable[[int, NDArray[np.int64]], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Return the index at each place of its epoch, (n,) int64.

    Args:
        epochs: (n,), ascending, at least one.
        places: (n,).
        visit: (epoch, places of it) -> their indices.
    """
    ends = np.flatnonzero(np.diff(epochs)) + 1
    starts = [0, *ends.tolist()]
    parts = np.split(places, ends)
    return np.concatenate([visit(int(epochs[start]), part) for start, part in zip(starts, parts, strict=True)])
