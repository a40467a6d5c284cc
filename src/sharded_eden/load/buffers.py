"""Memory for rows, used again as soon as nobody holds it: fresh memory costs several times more than filling it.

A batch of 32 rows of 8,192 tokens is 5 MB, which the allocator takes from the system and gives back each time; the page faults
of new memory then cost four times as much as encoding the rows. A buffer is free again when nothing but this pool refers to
it: tensors made of it, views of them and whatever was collated without a copy all hold a reference.
"""

from __future__ import annotations

from collections import deque
from math import prod
from sys import getrefcount

import numpy as np
from numpy.typing import NDArray

MAX_POOLED_BYTES = 64 << 20
"""What one pool keeps at most; a batch that finds no free buffer beyond that gets memory of its own."""

LOOKS = 4
"""Buffers that are looked at before a new one is made."""

PAGE_BYTES = 4096
LABELS_OFFSET_BYTES = 2048
"""How far labels lie from tokens, modulo a page.

Labels are tokens moved by one. Where a load follows a store to the same place in another page, processors take the one for the
other and wait: copying a row then costs 34 us instead of 2. Half a page lies between them, whatever the allocator gives.
Source: Intel 64 and IA-32 Architectures Optimization Reference Manual, "4-KByte aliasing".
"""

Arrays = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Tokens, labels and loss mask, over memory of their own."""


class RowBuffers:
    """Hands out tokens, labels and loss masks for rows of `seq_length` tokens. For one thread."""

    def __init__(self, seq_length: int) -> None:
        self._seq_length = seq_length
        self._pool: dict[tuple[int, ...], deque[Arrays]] = {}
        self._pooled_bytes = 0

    def get(self, rows: int | None) -> Arrays:
        """Return uninitialised tokens and labels, int64, and loss mask, float32: (rows, T) each, (T,) where rows is None."""
        shape = (self._seq_length,) if rows is None else (rows, self._seq_length)
        pool = self._pool.setdefault(shape, deque())
        # The oldest first: those are the ones that their users are done with. A few looks, whatever the pool holds.
        for _ in range(min(LOOKS, len(pool))):
            pool.rotate(-1)
            tokens, labels, loss_mask = pool[-1]
            if getrefcount(tokens) + getrefcount(labels) + getrefcount(loss_mask) <= _UNUSED:
                return pool[-1]
        arrays, size_bytes = _allocate(shape)
        if self._pooled_bytes + size_bytes <= MAX_POOLED_BYTES:
            pool.append(arrays)
            self._pooled_bytes += size_bytes
        return arrays

    def clear(self) -> None:
        """Let go of all memory that is not in use elsewhere."""
        self._pool.clear()
        self._pooled_bytes = 0


def _allocate(shape: tuple[int, ...]) -> tuple[Arrays, int]:
    """Return new arrays, and how many bytes they take."""
    cells = prod(shape)
    labels_at = _round_up(8 * cells) + LABELS_OFFSET_BYTES
    loss_mask_at = _round_up(labels_at + 8 * cells)
    size_bytes = loss_mask_at + 4 * cells + PAGE_BYTES
    memory = np.empty(size_bytes, dtype=np.uint8)
    memory = memory[-memory.ctypes.data % PAGE_BYTES :]
    tokens = memory[: 8 * cells].view(np.int64).reshape(shape)
    labels = memory[labels_at : labels_at + 8 * cells].view(np.int64).reshape(shape)
    loss_mask = memory[loss_mask_at : loss_mask_at + 4 * cells].view(np.float32).reshape(shape)
    return (tokens, labels, loss_mask), size_bytes


def _round_up(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


def _references_of_unused_arrays() -> int:
    pool = deque([(np.empty(1), np.empty(1), np.empty(1))])
    tokens, labels, loss_mask = pool[-1]
    return getrefcount(tokens) + getrefcount(labels) + getrefcount(loss_mask)


_UNUSED = _references_of_unused_arrays()
