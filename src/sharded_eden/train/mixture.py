"""`Mixture`: a stream of several weighted datasets. Samplers and trainers use it as a `Stream`.

position -> (source, position in that source's own endless stream) -> (epoch, window) -> example. The first step is
`sharded_eden.train.schedule`, the second the order of each source, as of a `Stream` over it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sharded_eden.errors import UsageError, shown
from sharded_eden.format.geometry import integer
from sharded_eden.load.mixed import Item, MixedRows
from sharded_eden.load.tensors import ShardedEdenDataset
from sharded_eden.shuffle import derive_keys, permute_each
from sharded_eden.train.array_stream import KEPT_ORDERS, Columns, by_epoch
from sharded_eden.train.mixture_state import Past, make_mixture_state, position_of_mixture
from sharded_eden.train.order import Order, keep
from sharded_eden.train.schedule import Phase, Schedule, Skips, Weights, integer_weights
from sharded_eden.train.state import MAX_POSITION, AcceptOtherData
from sharded_eden.train.stream import Stream

Sources = Sequence[tuple[ShardedEdenDataset, Any]] | Mapping[str, tuple[ShardedEdenDataset, Any]]


class Mixture(Stream):
    """The rows of several datasets, each in its own shuffled order, in exact proportion to their weights.

    Position p shows a row of the source that `sharded_eden.train.schedule` gives it. Weights count rows, whatever
    their number of bases. A source that is smaller than its share is repeated, in another order in each of its passes. A
    mixture of one source gives the rows of `Stream(dataset)`.

    Args:
        sources: [(dataset, weight), ...], or {name: (dataset, weight)}. Weights are numbers from 0 on; their ratio counts.
        num_samples: where the stream ends; None for an endless stream, whose `len()` is the number of rows of all sources.
        seed: decides the order; None is the seed of the first dataset.
        phases: [(position, weights), ...]: the weights from a position on, in the order of the sources or {name: weight}.
            Before the first, the weights of `sources` apply. Names that are left out have weight 0.
        skip: [(first, last), ...]: ranges of positions that are left out, both ends included. Positions of phases and of these
            ranges count what is left out.

    Raises:
        UsageError: weights, phases or ranges that are invalid, no source, a source without windows, or sources whose rows
            cannot be in one batch: another `seq_length`, tokenizer or special ids, or only some packed or compact.

    Example:
        >>> from sharded_eden import Mixture, ShardedEdenDataset
        >>> train = ShardedEdenDataset.open("sequence_db_dir", "windows/train_windows.db")
        >>> val = ShardedEdenDataset.open("sequence_db_dir", "windows/val_windows.db")
        >>> mixture = Mixture({"a": (train, 0.75), "b": (val, 0.25)}, phases=[(100, {"a": 0.5, "b": 0.5})])
        >>> [source for source, epoch, window in mixture.windows_at(range(4))]
        [0, 0, 0, 0]
    """

    dataset: MixedRows  # type: ignore[assignment]

    def __init__(
        self,
        sources: Sources,
        num_samples: int | None = None,
        *,
        seed: int | None = None,
        phases: Sequence[tuple[int, Weights]] = (),
        skip: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.names, datasets, weights = _sources(sources)
        super().__init__(MixedRows(datasets, self.names), num_samples, seed=seed)  # type: ignore[arg-type]
        first = Phase(0, integer_weights(weights))
        later = [Phase(_begin(begin), integer_weights(self._in_order(each))) for begin, each in map(_phase, phases)]
        self.schedule = Schedule([first, *later], self.seed)
        self.skips = Skips(skip)
        self._lengths = np.array([len(dataset) for dataset in datasets], dtype=np.int64)
        self._seeds = [
            self.seed if k == 0 else derive_keys(1, "source", self.seed, k)[0] for k in range(len(self.names))
        ]
        self._orders_of: OrderedDict[tuple[int, int], Order] = OrderedDict()

    def _in_order(self, weights: Any) -> Sequence[Any]:
        """Return the weights of a phase in the order of the sources."""
        if isinstance(weights, Mapping):
            if unknown := [name for name in weights if name not in self.names]:
                raise UsageError(f"there is no source {shown(unknown[0])}: the sources are {shown(self.names, 400)}")
            return [weights.get(name, 0) for name in self.names]
        if (
            isinstance(weights, str)
            or not isinstance(weights, Sequence | np.ndarray)
            or len(weights) != len(self.names)
        ):
            raise UsageError(
                f"a phase takes one weight for each of the {len(self.names)} sources, or a dict of names, not {shown(weights)}"
            )
        return list(weights)

    @property
    def identity(self) -> dict[str, Any]:
        """The stream that a saved position belongs to: `seed`, `sources`, `phases` and `skip`, as states hold them."""
        return {
            "seed": self.seed,
            "sources": [_identity_of(dataset) for dataset in self.dataset.datasets],
            "phases": [[phase.begin, list(phase.weights)] for phase in self.schedule.phases],
            "skip": [list(each) for each in self.skips.ranges],
        }

    def state(self, consumed_samples: int) -> dict[str, Any]:
        """Return the state to save at a position: the same on every rank."""
        return make_mixture_state(self.identity, self.names, consumed_samples, self.epoch, self._samples_of_an_epoch)

    def position_of(self, state: Mapping[str, Any], accept_other_data: AcceptOtherData = False) -> tuple[int, int]:
        """Return the consumed samples and the epoch in a saved state.

        What the job has not reached may differ: a phase or a range to skip that begins at or after its position, and sources
        without a weight until then, after all others. A state of `Stream` is one of a mixture of one source.

        Raises:
            StateError: it is not a state, or the past differs; the message names both values.
        """
        return position_of_mixture(
            state,
            Past(self.identity, self.names, self._samples_of_an_epoch),
            accept_other_data=accept_other_data,
        )

    def _items(self, positions: Sequence[int]) -> list[Item]:
        """Return (source, epoch, index) at each position of the endless stream."""
        if not positions:
            return []
        if max(positions) >= MAX_POSITION:
            raise IndexError(f"position {shown(max(positions))} of a mixture is not below 2**62")
        source, nth = self.schedule.locate(self.skips.place(positions))
        epoch, place = np.divmod(nth, self._lengths[source])
        visits = list(zip(source.tolist(), epoch.tolist(), strict=True))
        index = permute_each([self._order_of(visit) for visit in visits], place)
        return [(k, epoch, window) for (k, epoch), window in zip(visits, index.tolist(), strict=True)]

    def _columns(self, positions: range) -> Columns:
        """Return (source, epoch, index) at positions of the endless stream: `_items` for many."""
        source, nth = self.schedule.locate(self.skips.place(positions))
        epoch, place = np.divmod(nth, self._lengths[source])
        index = np.empty_like(place)
        for k in np.unique(source).tolist():
            own = source == k
            index[own] = by_epoch(
                epoch[own],
                place[own],
                lambda number, part, k=k: self._order_of((k, number))(part),  # type: ignore[misc]
            )
        return Columns(source, epoch, index)

    def _order_of(self, visit: tuple[int, int]) -> Order:
        order = self._orders_of.get(visit)
        if order is None:
            source, epoch = visit
            order = Order(int(self._lengths[source]), self._seeds[source], epoch)
            keep(self._orders_of, visit, order, KEPT_ORDERS * len(self.names))
        return order


def _sources(sources: Any) -> tuple[list[str], list[ShardedEdenDataset], list[Any]]:
    """Return names, datasets and weights."""
    is_named = isinstance(sources, Mapping)
    if not (is_named or isinstance(sources, Sequence)) or isinstance(sources, str) or not len(sources):
        raise UsageError(
            f"a mixture takes [(dataset, weight), ...] or {{name: (dataset, weight)}}, not {shown(sources)}"
        )
    named = dict(sources) if is_named else {f"source {k}": pair for k, pair in enumerate(sources)}
    names, pairs = [str(name) for name in named], list(named.values())
    if twice := [name for k, name in enumerate(names) if name in names[:k]]:
        raise UsageError(f"two sources of a mixture are called {shown(twice[0])}: give each a name of its own")
    for name, pair in zip(names, pairs, strict=True):
        is_pair = isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], ShardedEdenDataset)
        if not is_pair:
            raise UsageError(f"{name} of a mixture must be (ShardedEdenDataset, weight), not {shown(pair)}")
    return names, [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _phase(phase: Any) -> tuple[Any, Any]:
    if not isinstance(phase, Sequence) or isinstance(phase, str) or len(phase) != 2:
        raise UsageError(f"a phase must be (position, weights), not {shown(phase)}")
    return phase[0], phase[1]


def _begin(begin: Any) -> int:
    number = integer(begin, "the position of a phase")
    if number < 1:
        raise UsageError(
            f"a phase begins at position 1 or later, not {number}: the weights of the sources hold from 0 on"
        )
    if number >= MAX_POSITION:
        raise UsageError(f"a phase begins below position 2**62, not at {shown(number)}")
    return number


def _identity_of(dataset: ShardedEdenDataset) -> dict[str, Any]:
    """Return what decides the rows of a source."""
    identity = Stream(dataset).identity
    return {
        **{name: value for name, value in identity.items() if name not in {"seed", "rows", "shuffle"}},
        "rows": dict(identity["rows"][0]),
        "strand_seed": dataset.random_seed,
    }
