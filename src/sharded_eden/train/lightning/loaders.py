"""What a Lightning Trainer is handed: a loader it takes for resumable, samplers it leaves alone. Imports nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Protocol

from torch.utils.data import DataLoader, DistributedSampler

from sharded_eden.load.batch import Example
from sharded_eden.train.megatron import DataParallel
from sharded_eden.train.sampler import BatchPlan, MicroBatches, evaluation_positions
from sharded_eden.train.stream import Stream


class Job(Protocol):
    """Something that knows how far it has come."""

    @property
    def consumed_samples(self) -> int:
        """Examples that the whole job has trained on, in whole global batches."""


class ResumableLoader(DataLoader[Example]):
    """A `DataLoader` that tells Lightning it can be resumed: where to is the data module's state."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the position is saved once for the job, not for each rank's loader."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing: the sampler asks the data module."""


class TrainSampler(DistributedSampler[Any]):
    """One Lightning epoch of positions for one rank, from wherever the job stands when it begins.

    It is a `DistributedSampler` because that is what Lightning leaves alone under DDP.

    Args:
        stream: what is sampled.
        plan: the sizes of a step.
        ranks: where this process stands.
        samples: positions of an epoch on all ranks together; an incomplete global batch at its end is left out.
        job: what says where it stands, whenever an epoch begins.
    """

    def __init__(
        self,
        stream: Stream,
        plan: BatchPlan,
        ranks: DataParallel,
        *,
        samples: int,
        job: Job,
    ) -> None:
        super().__init__(stream, num_replicas=ranks.size, rank=ranks.rank, shuffle=False)
        self._plan = plan
        self._samples = samples
        self._job = job

    def __iter__(self) -> Iterator[int]:
        begin = self._job.consumed_samples
        return chain.from_iterable(
            MicroBatches(self._plan, rank=self.rank, consumed_samples=begin, end=begin + self._samples)
        )

    def __len__(self) -> int:
        return self._plan.micro_steps_within(self._job.consumed_samples, self._samples) * self._plan.micro_batch_size


class EvaluationSampler(DistributedSampler[Any]):
    """One pass of positions for one rank, the same at each call.

    Args:
        stream: what is sampled.
        rows: positions on all ranks together.
        micro_batch_size: examples of one forward pass on one rank.
        ranks: where this process stands.
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
