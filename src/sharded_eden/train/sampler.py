"""Whose turn is which position. Pure: rank, size and consumed samples are arguments, positions are integers.

A global batch is the next `global_batch_size` positions of the stream. With m the micro batch size and dp the data-parallel
size, micro step t of it takes [t * m * dp, (t + 1) * m * dp), and rank r the r-th run of m among them:

    position      0 1 2 3 | 4 5 6 7 | 8 9 ...          m = 2, dp = 2, global batch 8
    rank          0 0 1 1 | 0 0 1 1 | 0 0 ...
    micro step      0     |    1    |   0
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sharded_eden.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The sizes of a training step.

    Raises:
        UsageError: a size below 1, or a global batch that is no multiple of micro batch times ranks; lists sizes that fit.
    """

    micro_batch_size: int
    """Examples of one forward pass on one rank."""
    global_batch_size: int
    """Examples of one optimizer step on all ranks together."""
    data_parallel_size: int = 1
    """Ranks that see different examples."""

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "global_batch_size", "data_parallel_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be an integer of at least 1, not {value!r}")
        if self.global_batch_size % self.per_micro_step:
            below = self.global_batch_size // self.per_micro_step * self.per_micro_step
            fitting = [size for size in (below, below + self.per_micro_step) if size]
            micro = [
                m
                for m in range(1, self.global_batch_size + 1)
                if self.global_batch_size % (m * self.data_parallel_size) == 0
            ]
            raise UsageError(
                f"global_batch_size={self.global_batch_size} is no multiple of micro_batch_size={self.micro_batch_size} times "
                f"data-parallel size {self.data_parallel_size}. Nearest global batch sizes that fit: "
                f"{' and '.join(map(str, fitting))}; micro batch sizes that fit: "
                f"{', '.join(map(str, micro)) or f'none, since {self.data_parallel_size} ranks do not divide it'}"
            )

    @property
    def per_micro_step(self) -> int:
        """Examples of one micro step on all ranks together."""
        return self.micro_batch_size * self.data_parallel_size

    @property
    def num_microbatches(self) -> int:
        """Micro steps of one optimizer step."""
        return self.global_batch_size // self.per_micro_step

    def positions(self, *, rank: int, consumed_samples: int, global_batches: int) -> Iterator[int]:
        """Yield the positions of one rank, one after the other: each run of `micro_batch_size` is a micro batch.

        Args:
            rank: the data-parallel rank, 0-based.
            consumed_samples: the first position.
            global_batches: how many optimizer steps to serve.
        """
        first = consumed_samples + rank * self.micro_batch_size
        for step in range(global_batches * self.num_microbatches):
            start = first + step * self.per_micro_step
            yield from range(start, start + self.micro_batch_size)


def evaluation_positions(total: int, *, micro_batch_size: int, rank: int, data_parallel_size: int) -> list[int]:
    """Return the positions of one rank in one finite pass that drops nothing.

    Every rank gets equally many: those that have fewer go on from the start.

    Args:
        total: rows of the pass.
        micro_batch_size: rows of one micro batch; the ranks take runs of it by turns.
        rank: the data-parallel rank, 0-based.
        data_parallel_size: ranks that share the pass.
    """
    if total == 0:
        return []
    if data_parallel_size == 1:
        return list(range(total))
    rows = -(-total // data_parallel_size)
    return [
        ((k // micro_batch_size * data_parallel_size + rank) * micro_batch_size + k % micro_batch_size) % total
        for k in range(-(-rows // micro_batch_size) * micro_batch_size)
    ]
