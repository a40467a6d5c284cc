"""Which positions a worker reads next, from those that it has read: what is announced to the kernel before it is read.

Samplers of a stream count, so nothing has to be sent to a worker: with m the micro batch size, dp the data-parallel size and W
the number of workers, the micro batches of a worker begin m * dp * W positions apart. Three of them show this step. Where they
do not, as under a sampler that shuffles, nothing is announced. A wrong guess never changes a row.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence


class NextBatches:
    """The next micro batches of one worker."""

    def __init__(self) -> None:
        self._first = self._step = 0
        self._announced_to = 0

    def after(self, positions: Sequence[int], end: int, most: int) -> list[int]:
        """Return positions to announce after a batch: those of its next batches that were not returned yet.

        Up to `most` positions beyond the batch are announced. More are returned once half of them have been read, so that
        they are located many at a time.

        Args:
            positions: the batch.
            end: no position from here on is read.
            most: positions beyond the batch.

        Example:
            After [0], [4] and [8]: `after([8], 100, 4)` is [12, 16, 20, 24].
        """
        size = len(positions)
        if not size:
            return []
        batch = [operator.index(position) for position in positions]
        first = batch[0]
        step, self._first = first - self._first, first
        if (
            step != self._step
            or step < size
            or batch[-1] - first != size - 1
            or batch != list(range(first, first + size))
        ):
            self._step = step
            self._announced_to = 0
            return []
        batches = most // size
        begin = max(self._announced_to, first + step)
        if (begin - first) // step - 1 > batches // 2:
            return []
        starts = range(begin, min(first + batches * step + 1, end), step)
        if starts:
            self._announced_to = starts[-1] + step
        return [position for start in starts for position in range(start, min(start + size, end))]
