"""Reuses memory for rows when nothing refers to it: new memory costs several times more than filling it.

A batch of 32 rows of 8,192 tokens is 5 MB, which the allocator takes from the system and gives back each time; the page faults
of new memory then cost four times as much as encoding the rows. A buffer is free when only this pool refers to it: tensors over
it, views of them and batches that were collated without a copy all hold a reference.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from math import prod
from sys import getrefcount
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_POOLED_BYTES = 64 << 20
"""The most memory that one pool keeps; beyond it, a batch without a free buffer gets new memory."""

LOOKS = 4
"""Buffers that are checked before a new one is made."""

PAGE_BYTES = 4096
LABELS_OFFSET_BYTES = 2048
"""The distance of each array from the previous one, modulo a page.

Labels are tokens moved by one. If a load follows a store to the same offset in another page, processors treat them as dependent
and wait: copying a row then costs 34 us instead of 2. Arrays are therefore half a page apart.
Source: Intel 64 and IA-32 Architectures Optimization Reference Manual, "4-KByte aliasing".
"""

DTYPES = (np.int64, np.int64, np.float32)
"""Of tokens, labels and loss mask."""

BATCH_DTYPES = (*DTYPES, np.int64)
"""Of tokens, labels, loss mask and position ids."""

Arrays = tuple[NDArray[Any], ...]
"""Arrays with their own memory."""


class RowBuffers:
    """Provides arrays for rows of `seq_length` tokens. For one thread.

    Args:
        seq_length: T.
        dtypes: of the arrays; by default, of tokens, labels and loss mask.
        reuse: False returns new memory each time.
    """

    def __init__(self, seq_length: int, dtypes: tuple[type[np.generic], ...] = DTYPES, *, reuse: bool = True) -> None:
        self._most_bytes = MAX_POOLED_BYTES if reuse else 0
        self._seq_length = seq_length
        self._dtypes = dtypes
        self._unused = _references_of_unused_arrays(len(dtypes))
        self._pool: dict[tuple[int, ...], deque[Arrays]] = {}
        self._pooled_bytes = 0

    def get(self, rows: int | None) -> Arrays:
        """Return uninitialised arrays, one for each dtype: (rows, T) each, (T,) where rows is None."""
        shape = (self._seq_length,) if rows is None else (rows, self._seq_length)
        pool = self._pool.get(shape)
        if pool is None:
            pool = self._pool[shape] = deque()
        # The oldest first: they are the most likely to be free. A fixed number of checks, whatever the size of the pool.
        for _ in range(min(LOOKS, len(pool))):
            pool.rotate(-1)
            if _references(pool[-1]) <= self._unused:
                return pool[-1]
        arrays, size_bytes = _allocate(shape, self._dtypes)
        if self._pooled_bytes + size_bytes <= self._most_bytes:
            pool.append(arrays)
            self._pooled_bytes += size_bytes
        return arrays

    def clear(self) -> None:
        """Free all memory that is not in use elsewhere."""
        self._pool.clear()
        self._pooled_bytes = 0


@lru_cache
def positions(length: int) -> NDArray[np.int64]:
    """Return 0 to length - 1, (length,) int64, read-only, at the beginning of a page: half a page from `position_ids`.

    See `LABELS_OFFSET_BYTES`: eight bytes before the same place in a page, copying a row costs 24 us instead of 1.5.
    """
    (found,), _ = _allocate((length,), (np.int64,))
    found[:] = np.arange(length)
    found.flags.writeable = False
    return found


def _allocate(shape: tuple[int, ...], dtypes: tuple[type[np.generic], ...]) -> tuple[Arrays, int]:
    """Return new arrays, and how many bytes they take."""
    cells = prod(shape)
    starts, end = [], 0
    for number, dtype in enumerate(dtypes):
        starts.append(_round_up(end) + LABELS_OFFSET_BYTES * (number % 2))
        end = starts[-1] + np.dtype(dtype).itemsize * cells
    memory = np.empty(end + PAGE_BYTES, dtype=np.uint8)
    memory = memory[-memory.ctypes.data % PAGE_BYTES :]
    arrays = (
        memory[start : start + np.dtype(dtype).itemsize * cells].view(dtype).reshape(shape)
        for start, dtype in zip(starts, dtypes, strict=True)
    )
    return tuple(arrays), end + PAGE_BYTES


def _round_up(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


def _references(arrays: Arrays) -> int:
    return sum(map(getrefcount, arrays))


@lru_cache
def _references_of_unused_arrays(count: int) -> int:
    pool = deque([tuple(np.empty(1) for _ in range(count))])
    return _references(pool[-1])
