"""The loaders and samplers for a Lightning Trainer, which treats the loader as resumable and keeps the samplers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain
from typing import Any, Protocol

from torch.utils.data import DataLoader, DistributedSampler

from sharded_eden.errors import printable, warn
from sharded_eden.load.encode.batch import Example
from sharded_eden.train.megatron import DataParallel
from sharded_eden.train.sampler import BatchPlan, MicroBatches, evaluation_positions
from sharded_eden.train.stream import Stream, warn_of_repeated_pass


class Job(Protocol):
    """The part of the data module that a sampler uses; the data module imports this file."""

    @property
    def consumed_samples(self) -> int:
        """Examples that the whole job has trained on, in whole global batches."""

    @property
    def is_counted(self) -> bool:
        """Whether a Trainer moves `consumed_samples`."""


class ResumableLoader(DataLoader[Example]):
    """A `DataLoader` that Lightning treats as resumable: its position is in the state of the data module."""

    waited_seconds = 0.0
    """The time that the Trainer has waited for batches, from the first pass on."""

    def __iter__(self) -> Any:
        return _Timed(self, super().__iter__())

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the position is saved once for the job, not for each rank's loader."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the sampler reads the position from the data module."""


class _Timed:
    """An iterator over batches that adds up how long each of them took."""

    def __init__(self, loader: ResumableLoader, batches: Iterator[Any]) -> None:
        self._loader, self._batches = loader, batches

    def __iter__(self) -> _Timed:
        return self

    def __next__(self) -> Any:
        begin = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._loader.waited_seconds += time.perf_counter() - begin


class TrainSampler(DistributedSampler[Any]):
    """One Lightning epoch of positions for one rank, from the position of the job when the epoch begins.

    It is a `DistributedSampler` because Lightning does not replace one under DDP. Without a Trainer that counts, the position
    of the job does not move: `set_epoch` then chooses the pass, as for any `DistributedSampler`.

    Args:
        stream: what is sampled.
        plan: the sizes of a step.
        ranks: the rank of this process, and their number.
        samples: positions of an epoch on all ranks together; an incomplete global batch at its end is left out.
        job: the data module, which gives the position when an epoch begins.
    """

    def __init__(self, stream: Stream, plan: BatchPlan, ranks: DataParallel, *, samples: int, job: Job) -> None:
        super().__init__(stream, num_replicas=ranks.size, rank=ranks.rank, shuffle=False)
        self._stream = stream
        self._plan = plan
        self._samples = samples
        self._job = job
        self._last_begin: int | None = None

    def __iter__(self) -> Iterator[int]:
        begin = self._job.consumed_samples
        if not self._job.is_counted:
            whole = self._plan.micro_steps_within(begin, self._samples) * self._plan.per_micro_step
            begin += self.epoch * whole
            if begin == self._last_begin:
                warn_of_repeated_pass(
                    self._stream, "Pass the data module itself to trainer.fit, or call loader.sampler.set_epoch(epoch)"
                )
            self._last_begin = begin
        micro_steps = self._plan.micro_steps_within(begin, self._samples)
        self._stream.set_end(begin + micro_steps * self._plan.per_micro_step)
        return chain.from_iterable(
            MicroBatches(self._plan, rank=self.rank, consumed_samples=begin, end=begin + self._samples)
        )

    def __len__(self) -> int:
        return self._plan.micro_steps_within(self._job.consumed_samples, self._samples) * self._plan.micro_batch_size


def samples_of_an_epoch(stream: Stream, num_epochs: int, global_batch_size: int) -> int:
    """Return the positions of one Lightning epoch: some passes over the data, one global batch at least.

    Warns:
        EdenWarning: the passes have fewer windows than one global batch.
    """
    samples = len(stream.dataset) * num_epochs
    if samples < global_batch_size:
        warn(
            f"{printable(stream.dataset.window_db_path)}: {samples:,} windows in num_epochs={num_epochs} are fewer than one "
            f"global batch of {global_batch_size:,}. A Lightning epoch is one global batch, which also holds windows of the "
            "next passes. Lower global_batch_size or raise num_epochs"
        )
    return max(samples, global_batch_size)


class EvaluationSampler(DistributedSampler[Any]):
    """One pass of positions for one rank, the same at each call.

    Args:
        stream: what is sampled.
        rows: positions on all ranks together.
        micro_batch_size: examples of one forward pass on one rank.
        ranks: the rank of this process, and their number.
    """

    def __init__(self, stream: Stream, rows: int, micro_batch_size: int, ranks: DataParallel) -> None:
        super().__init__(stream, num_replicas=ranks.size, rank=ranks.rank, shuffle=False)
        self._positions = evaluation_positions(
            rows, micro_batch_size=micro_batch_size, rank=ranks.rank, data_parallel_size=ranks.size
        )

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)
