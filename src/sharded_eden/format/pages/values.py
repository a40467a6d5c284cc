"""Values in pages of SQLite, decoded with NumPy: varints and texts."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.format.schema import CONTIG_ID

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

LINE_END = 10

VALUE_BYTES = np.array([0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0], dtype=np.int64)
"""Bytes of a value of each serial type below 12; 10 and 11 are never stored."""


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
    if not len(at):
        return pl.Series(CONTIG_ID, [], dtype=pl.String)
    # Each range with one more byte, which becomes a line end; then all of them are one text of lines.
    ends = np.cumsum(size + 1)
    place = np.repeat(at - (ends - (size + 1)), size + 1) + np.arange(int(ends[-1]))
    letters = memory[place]
    letters[ends - 1] = LINE_END
    joined = letters.tobytes()
    if np.count_nonzero(letters == LINE_END) == len(at):
        with suppress(UnicodeDecodeError):
            return pl.Series(CONTIG_ID, joined[:-1].decode().split(chr(LINE_END)), dtype=pl.String)
    return _texts_one_by_one(joined, ends)


def _texts_one_by_one(joined: bytes, ends: Ints) -> pl.Series:
    """Return the texts that end before these places, where one holds a line end or is not UTF-8."""
    ranges = pairwise([0, *ends.tolist()])
    return pl.Series(CONTIG_ID, [_text(joined[a : b - 1]) for a, b in ranges], dtype=pl.String)


def _text(value: bytes) -> str | None:
    # Polars' own cast raises an error for some values that are not UTF-8, and returns null for others.
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
