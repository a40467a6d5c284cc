"""Memory for rows, used again as soon as nobody holds it: fresh memory costs several times more than filling it.

A batch of 32 rows of 8,192 tokens is 5 MB, which the allocator takes from the system and gives back each time; the page faults
of new memory then cost four times as much as encoding the rows. A buffer is free again when nothing but this pool refers to
it: tensors made of it, views of them and whatever was collated without a copy all hold a reference.
"""

from __future__ import annotations

import sys
from collections import deque

import numpy as np
from numpy.typing import NDArray

MAX_POOLED_BYTES = 64 << 20
"""What one pool keeps at most; a batch that finds no free buffer beyond that gets memory of its own."""

LOOKS = 4
"""Buffers that are looked at before a new one is made."""

_BYTES_PER_TOKEN = 8 + 8 + 4


class RowBuffers:
    """Hands out tokens, labels and loss masks for `rows` rows of `seq_length` tokens. For one thread."""

    def __init__(self, seq_length: int) -> None:
        self._seq_length = seq_length
        self._pool: dict[int, deque[NDArray[np.uint8]]] = {}
        self._pooled_bytes = 0

    def get(self, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Return uninitialised tokens and labels (rows, T) int64 and loss mask (rows, T) float32; they share no memory."""
        memory = self._free(rows)
        size = rows * self._seq_length
        shape = (rows, self._seq_length)
        tokens = memory[: 8 * size].view(np.int64).reshape(shape)
        labels = memory[8 * size : 16 * size].view(np.int64).reshape(shape)
        loss_mask = memory[16 * size :].view(np.float32).reshape(shape)
        return tokens, labels, loss_mask

    def clear(self) -> None:
        """Let go of all memory that is not in use elsewhere."""
        self._pool.clear()
        self._pooled_bytes = 0

    def _free(self, rows: int) -> NDArray[np.uint8]:
        pool = self._pool.setdefault(rows, deque())
        # The oldest first: those are the ones that their users are done with. A few looks, whatever the pool holds.
        for _ in range(min(LOOKS, len(pool))):
            pool.rotate(-1)
            if sys.getrefcount(pool[-1]) <= _UNUSED:
                return pool[-1]
        memory = np.empty(rows * self._seq_length * _BYTES_PER_TOKEN, dtype=np.uint8)
        if self._pooled_bytes + memory.nbytes <= MAX_POOLED_BYTES:
            pool.append(memory)
            self._pooled_bytes += memory.nbytes
        return memory


def _references_of_an_unused_buffer() -> int:
    pool = deque([np.empty(1, dtype=np.uint8)])
    return sys.getrefcount(pool[-1])


_UNUSED = _references_of_an_unused_buffer()
