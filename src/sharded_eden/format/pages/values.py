"""Values in pages of SQLite, decoded with NumPy: varints and texts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.format.schema import CONTIG_ID

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


def varints(memory: Bytes, at: Ints) -> tuple[Ints, Ints]:
    """Return the varints at these places and how many bytes each has, (n,) int64; those above 2**56 as 2**56."""
    value = memory[at].astype(np.int64)
    width = np.ones(len(at), dtype=np.int64)
    longer = np.flatnonzero(value & 0x80)
    value &= 0x7F
    for k in range(1, 9):
        if not len(longer):
            break
        byte = memory[at[longer] + k].astype(np.int64)
        width[longer] += 1
        if k == 8:
            value[longer] = 1 << 56
            break
        value[longer] = (value[longer] << 7) | (byte & 0x7F)
        longer = longer[byte >= 0x80]
    return value, width


def is_ascii(memory: Bytes, at: Ints, size: Ints) -> NDArray[np.bool_]:
    """Return for each range of bytes whether all of them are in [1, 127]."""
    filled = np.flatnonzero(size > 0)
    result = np.ones(len(at), dtype=np.bool_)
    if len(filled):
        bounds = np.stack([at[filled], at[filled] + size[filled]], axis=1).reshape(-1)
        result[filled] = np.minimum.reduceat(memory.view(np.int8), bounds)[::2] > 0
    return result


def texts(memory: Bytes, at: Ints, size: Ints) -> pl.Series:
    """Return ranges of bytes as text; null where they are not UTF-8."""
    ends = np.cumsum(size)
    place = np.repeat(at - (ends - size), size) + np.arange(int(ends[-1]) if len(ends) else 0)
    joined = memory[place].tobytes()
    texts = pl.Series(CONTIG_ID, [joined[a:b] for a, b in pairwise([0, *ends.tolist()])], dtype=pl.Binary)
    return texts.cast(pl.String, strict=False)
