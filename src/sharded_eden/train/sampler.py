"""Rank -> positions of the stream. Pure: rank, sizes and consumed samples are arguments, positions are integers.

A global batch is the next `global_batch_size` positions of the stream. Let m be the micro batch size and dp the data-parallel
size. Micro step t uses the positions [t * m * dp, (t + 1) * m * dp) of the global batch; rank r uses the r-th group of m:

    position      0 1 2 3 | 4 5 6 7 | 8 9 ...          m = 2, dp = 2, global batch 8
    rank          0 0 1 1 | 0 0 1 1 | 0 0 ...
    micro step      0     |    1    |   0
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch.utils.data import Sampler

from sharded_eden.errors import StateError, UsageError, shown
from sharded_eden.format.geometry import integer
from sharded_eden.train.state import AcceptOtherData, check_accept_other_data, position_in
from sharded_eden.train.stream import Stream, warn_of_repeated_pass

MOST_LISTED = 1 << 14
"""The largest micro batch size that an error lists."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The sizes of a training step.

    Raises:
        UsageError: a size below 1, or a global batch that is not a multiple of micro batch times ranks; lists sizes that fit.
    """

    micro_batch_size: int
    """Examples of one forward pass on one rank."""
    global_batch_size: int
    """Examples of one optimizer step on all ranks together."""
    data_parallel_size: int = 1
    """Ranks that see different examples."""
    rampup_batch_size: Sequence[int] | None = None
    """(first global batch size, increment, samples until the full size), as Megatron's `--rampup-batch-size`."""

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "global_batch_size", "data_parallel_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be an integer of at least 1, not {value!r}")
        self._check_fits(self.global_batch_size)
        if self.rampup_batch_size is not None:
            if not hasattr(self.rampup_batch_size, "__iter__"):
                raise UsageError(f"rampup_batch_size must be three numbers, not {shown(self.rampup_batch_size)}")
            rampup = tuple(integer(each, "each number of rampup_batch_size") for each in self.rampup_batch_size)
            object.__setattr__(self, "rampup_batch_size", rampup)  # the class is frozen
            self._check_rampup(rampup)

    def _check_fits(self, size: int) -> None:
        if size % self.per_micro_step == 0:
            return
        below = size // self.per_micro_step * self.per_micro_step
        near = " and ".join(str(fit) for fit in (below, below + self.per_micro_step) if fit)
        micro = [m for m in range(1, min(size, MOST_LISTED) + 1) if size % (m * self.data_parallel_size) == 0]
        raise UsageError(
            f"global_batch_size={size} is not a multiple of micro_batch_size={self.micro_batch_size} times data-parallel size "
            f"{self.data_parallel_size}. Nearest global batch sizes that fit: {near}; micro batch sizes that fit: "
            + (", ".join(map(str, micro)) or f"none, since {self.data_parallel_size} ranks do not divide it")
        )

    def _check_rampup(self, rampup: tuple[int, ...]) -> None:
        if len(rampup) != 3 or min(rampup) < 1 or (self.global_batch_size - rampup[0]) % rampup[1]:
            raise UsageError(
                f"rampup_batch_size={self.rampup_batch_size} does not lead to global_batch_size={self.global_batch_size}: it "
                "must be (first size, increment, samples) with whole increments between the first size and the last"
            )
        first, increment, _ = rampup
        for size in range(first, self.global_batch_size, increment)[:2]:  # where these fit, all do
            self._check_fits(size)

    @property
    def per_micro_step(self) -> int:
        """Examples of one micro step on all ranks together."""
        return self.micro_batch_size * self.data_parallel_size

    @property
    def num_microbatches(self) -> int:
        """Micro steps of one optimizer step, once the batch has its full size."""
        return self.global_batch_size // self.per_micro_step

    def global_batch_size_at(self, consumed_samples: int) -> int:
        """Return the size of the global batch that begins at a position.

        Source: `RampupBatchsizeNumMicroBatchesCalculator` of Megatron-LM, which it equals.
        """
        if self.rampup_batch_size is None:
            return self.global_batch_size
        first, increment, samples = self.rampup_batch_size
        steps = (self.global_batch_size - first) // increment
        if steps == 0 or consumed_samples > samples:
            return self.global_batch_size
        return min(first + int(consumed_samples / (samples / steps)) * increment, self.global_batch_size)

    def after(self, consumed_samples: int, steps: int) -> int:
        """Return the position after a number of global batches, counted from a position."""
        while steps and (size := self.global_batch_size_at(consumed_samples)) != self.global_batch_size:
            consumed_samples, steps = consumed_samples + size, steps - 1
        return consumed_samples + steps * self.global_batch_size

    def micro_steps_within(self, consumed_samples: int, samples: int) -> int:
        """Return the number of micro steps in the whole global batches among the samples after a position."""
        end, micro_steps = consumed_samples + samples, 0
        while (size := self.global_batch_size_at(consumed_samples)) != self.global_batch_size:
            if consumed_samples + size > end:
                return micro_steps
            consumed_samples, micro_steps = consumed_samples + size, micro_steps + size // self.per_micro_step
        return micro_steps + (end - consumed_samples) // self.global_batch_size * self.num_microbatches


class MicroBatches(Iterator[list[int]]):
    """The micro batches of one rank, each a list of positions. Its state is its position.

    Args:
        plan: the sizes.
        rank: the data-parallel rank, 0-based.
        consumed_samples: the first position; a global batch begins there.
        end: the number of positions; None for an endless stream.
        drop_last: leave out an incomplete last global batch; otherwise, ranks with fewer rows repeat rows from position 0.
    """

    def __init__(
        self, plan: BatchPlan, *, rank: int, consumed_samples: int, end: int | None = None, drop_last: bool = True
    ) -> None:
        if not 0 <= rank < plan.data_parallel_size:
            raise UsageError(f"rank must lie in [0, {plan.data_parallel_size}), not {rank}")
        self._plan = plan
        self._rank = rank
        self._end = end
        self._drop_last = drop_last
        self._begins = integer(consumed_samples, "consumed_samples")
        self._micro_step = 0

    def __next__(self) -> list[int]:
        plan = self._plan
        size = plan.global_batch_size_at(self._begins)
        if self._micro_step * plan.per_micro_step >= size:
            self._begins += size
            self._micro_step = 0
            size = plan.global_batch_size_at(self._begins)
        start = self._begins + self._micro_step * plan.per_micro_step
        if self._end is not None and (start >= self._end or (self._drop_last and self._begins + size > self._end)):
            raise StopIteration
        self._micro_step += 1
        first = start + self._rank * plan.micro_batch_size
        positions = range(first, first + plan.micro_batch_size)
        if self._end is None or positions.stop <= self._end:
            return list(positions)
        return [p if p < self._end else p % self._end for p in positions]

    @property
    def position(self) -> tuple[int, int]:
        """The first position of the current global batch, and the number of its micro steps that were returned."""
        return self._begins, self._micro_step

    def state_dict(self) -> dict[str, int]:
        """Return the position; `torchdata`'s `StatefulDataLoader` saves it with each batch."""
        begins, done = self._whole(self._begins, self._micro_step * self._plan.per_micro_step)
        per = self._plan.per_micro_step
        return {"consumed_samples": begins, "micro_step": done // per, "per_micro_step": per}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a saved position, also on another number of ranks and with another micro batch size.

        Raises:
            StateError: the state has no such position, or one inside a micro step of now.
        """
        begins, micro_step = position_in(state, "consumed_samples"), position_in(state, "micro_step")
        per = self._plan.per_micro_step
        was = position_in(state, "per_micro_step") if "per_micro_step" in state else per  # older states leave it out
        begins, done = self._whole(begins, micro_step * was)
        if done % per:
            raise StateError(
                f"the checkpoint was saved {done} samples after the beginning of a global batch, in micro steps of {was} "
                f"samples (micro_batch_size times data_parallel_size); {done} is no multiple of the {per} samples of a micro "
                "step now. Continue with sizes that divide it, or from a checkpoint between global batches"
            )
        self._begins, self._micro_step = begins, done // per

    def _whole(self, begins: int, done: int) -> tuple[int, int]:
        """Return a position with fewer samples done than its global batch has."""
        while done >= (size := self._plan.global_batch_size_at(begins)):
            begins, done = begins + size, done - size
        return begins, done


class StreamBatchSampler(Sampler[list[int]]):
    """The micro batches of one rank, for the `batch_sampler` of any `DataLoader` over a `Stream`.

    Args:
        stream: the stream; endless unless it has `num_samples`.
        micro_batch_size: examples of one forward pass on one rank.
        global_batch_size: examples of one optimizer step on all ranks together.
        rank: the data-parallel rank, 0-based.
        data_parallel_size: the number of ranks that read different examples.
        consumed_samples: the first position.
        rampup_batch_size: (first size, increment, samples), see `BatchPlan`.
        drop_last: leave out an incomplete last global batch; otherwise, ranks with fewer rows repeat rows from the start.
        accept_other_data: True takes the position of a state that was saved for another stream or by the original loader;
            "restart" begins at 0 instead. A state of this stream is always resumed.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from sharded_eden import ShardedEdenDataset, Stream, StreamBatchSampler
        >>> stream = Stream(ShardedEdenDataset.open("sequence_db_dir", "windows/train_windows.db"))
        >>> sampler = StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=4)
        >>> batch = next(iter(DataLoader(stream, batch_sampler=sampler, collate_fn=stream.collate_fn)))
        >>> batch["tokens"].shape
        torch.Size([2, 1024])
        >>> sampler.state_dict(consumed_samples=4)["consumed_samples"]
        4
    """

    def __init__(
        self,
        stream: Stream,
        *,
        micro_batch_size: int,
        global_batch_size: int,
        rank: int = 0,
        data_parallel_size: int = 1,
        consumed_samples: int = 0,
        rampup_batch_size: tuple[int, int, int] | None = None,
        drop_last: bool = True,
        accept_other_data: AcceptOtherData = False,
    ) -> None:
        self.stream = stream
        self.plan = BatchPlan(
            micro_batch_size=micro_batch_size,
            global_batch_size=global_batch_size,
            data_parallel_size=data_parallel_size,
            rampup_batch_size=rampup_batch_size,
        )
        self.rank = rank
        self.consumed_samples = integer(consumed_samples, "consumed_samples")
        if self.consumed_samples < 0:
            raise UsageError(f"consumed_samples must not be negative, but is {self.consumed_samples}")
        self._last_pass: tuple[int, int, MicroBatches] | None = None
        self.drop_last = drop_last
        self.accept_other_data = check_accept_other_data(accept_other_data)

    def __iter__(self) -> MicroBatches:
        begin, epoch = self.consumed_samples, self.stream.epoch
        if self._last_pass is not None:
            last_epoch, last_begin, last = self._last_pass
            if (last_epoch, last_begin) == (epoch, begin) and last.position != (begin, 0):
                warn_of_repeated_pass(self.stream, "Call sampler.set_epoch(epoch), or set sampler.consumed_samples,")
        batches = MicroBatches(
            self.plan, rank=self.rank, consumed_samples=begin, end=self.stream.num_samples, drop_last=self.drop_last
        )
        self._last_pass = (epoch, begin, batches)
        is_endless = self.stream.num_samples is None
        self.stream.set_end(None if is_endless else begin + len(self) * self.plan.per_micro_step)
        return batches

    def __len__(self) -> int:
        if self.stream.num_samples is None:
            raise TypeError("an endless stream has no length: give it num_samples")
        samples = max(self.stream.num_samples - self.consumed_samples, 0)
        whole = self.plan.micro_steps_within(self.consumed_samples, samples)
        return (
            whole
            if self.drop_last
            else whole - (whole * self.plan.per_micro_step - samples) // self.plan.per_micro_step
        )

    def set_epoch(self, epoch: int) -> None:
        """Begin another pass, as `torch.utils.data.DistributedSampler.set_epoch`. With the current epoch, change nothing.

        Position p of epoch e is position `e * len(stream) + p` of the endless stream: other windows, in another order.

        Raises:
            UsageError: a negative epoch.
        """
        if epoch != self.stream.epoch:
            self.stream.set_epoch(epoch)
            self.consumed_samples = 0

    def state_dict(self, *, consumed_samples: int | None = None) -> dict[str, Any]:
        """Return the state to save, the same on every rank.

        Args:
            consumed_samples: the number of examples that the whole job has trained on, in whole global batches. The sampler
                does not know it, because workers read ahead. None: the position where this sampler began;
                `torchdata`'s `StatefulDataLoader` also saves the position of the last batch that it returned.
        """
        consumed = self.consumed_samples if consumed_samples is None else consumed_samples
        return self.stream.state(consumed)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state, on any number of ranks and with any micro batch size.

        Raises:
            StateError: it is not a state, or was saved for another stream.
        """
        self.consumed_samples, epoch = self.stream.position_of(state, self.accept_other_data)
        self.stream.set_epoch(epoch)


class _Groups(Sequence[int]):
    """Groups of consecutive integers at equal distances, none of them in memory."""

    def __init__(self, begins: range, size: int) -> None:
        self._begins, self._size = begins, size

    def __len__(self) -> int:
        return len(self._begins) * self._size

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(range(begin, begin + self._size) for begin in self._begins)

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self[number] for number in range(*k.indices(len(self)))]
        group, inside = divmod(range(len(self))[k], self._size)
        return self._begins[group] + inside


def evaluation_positions(total: int, *, micro_batch_size: int, rank: int, data_parallel_size: int) -> Sequence[int]:
    """Return the positions of one rank in one finite pass that drops nothing.

    Every rank gets the same number. Ranks with fewer rows repeat rows from the start; their positions are `total` and above. A
    single rank repeats nothing.

    Args:
        total: rows of the pass.
        micro_batch_size: rows of one micro batch; the ranks take groups of this size in turn.
        rank: the data-parallel rank, 0-based.
        data_parallel_size: the number of ranks that share the pass.
    """
    if data_parallel_size == 1:
        return range(total)
    first = rank * micro_batch_size
    return _Groups(range(first, total + first, micro_batch_size * data_parallel_size), micro_batch_size)
