"""The windows of a training step. The order is a function of (seed, position), so no log is needed.

Input: a stream, the number of a step and the size of a global batch. Output: a row for each window. Step N reads the positions
N * G to (N + 1) * G - 1: step 0 is the first, and a job that has trained on N * G samples takes step N next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sharded_eden.errors import UsageError, shown
from sharded_eden.format.geometry import integer
from sharded_eden.train.mixture import Mixture
from sharded_eden.train.stream import ENDLESS, Stream

POSITIONS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class StepWindow:
    """One window that a step trains on."""

    source: str
    """The name of the source in a mixture; empty for other streams."""
    position: int
    """In the endless stream; a pack has one position for all of its windows."""
    epoch: int
    """The pass over the data, from 0."""
    index: int
    """Of the row: the window, or the pack."""
    window_idx: int
    contig_id: str
    start: int
    """Its first base, 0-based, on the strand of the database."""
    end: int
    """The base after its last one."""
    strand: str
    """`+`, or `-` where the row holds the reverse complement."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def windows_of_step(stream: Stream, step: int, global_batch_size: int) -> Iterator[StepWindow]:
    """Yield the windows of a training step, in the order of the stream. Their bases are read as training reads them.

    Args:
        stream: the stream that the job trains on, also a mixture: same seed, same datasets, epoch 0.
        step: from 0: the number of optimizer steps before it.
        global_batch_size: samples of one optimizer step on all ranks.

    Raises:
        UsageError: a negative step, an empty batch, or a step beyond the end of the stream.

    Example: `list(windows_of_step(Stream(dataset), 1000, 256))`.
    """
    step, size = integer(step, "step"), integer(global_batch_size, "global_batch_size")
    if step < 0 or size < 1:
        raise UsageError(
            f"step must be at least 0 and global_batch_size at least 1, not {shown(step)} and {shown(size)}"
        )
    end = ENDLESS if stream.num_samples is None else stream.num_samples
    if (step + 1) * size > end:
        raise UsageError(f"step {shown(step)} with {size} samples a step is beyond the stream, which ends at {end}")
    return _windows(stream, step * size, (step + 1) * size)


def _windows(stream: Stream, first: int, end: int) -> Iterator[StepWindow]:
    for low in range(first, end, POSITIONS_AT_ONCE):
        positions = range(low, min(low + POSITIONS_AT_ONCE, end))
        for position, item in zip(positions, stream.windows_at(positions), strict=True):
            if isinstance(stream, Mixture):
                number, epoch, index = item
                source, dataset = stream.names[number], stream.dataset.datasets[number]
            else:
                (epoch, index), source, dataset = item, "", stream.dataset
            for window in dataset.fetch_many([(epoch, index)]):
                start = window.window_in_seq_idx * dataset.stride
                yield StepWindow(
                    source=source,
                    position=position,
                    epoch=epoch,
                    index=index,
                    window_idx=window.window_idx,
                    contig_id=window.sequence_id,
                    start=start,
                    end=start + len(window.bases),
                    strand="-" if window.reverse else "+",
                )
