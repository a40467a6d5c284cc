"""Rows -> the bytes of SQLite b-tree cells. NumPy only; a few nanoseconds for each row.

A cell is a few fields of varying width, one after another. Each field is a matrix with a row for each cell, and the width of
each row; one masked copy joins the bytes of all cells.

Source: "Database File Format", https://www.sqlite.org/fileformat2.html, sections 1.6 (cells) and 2.1 (records).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

INTEGER_BYTES = np.array([0, 1, 2, 3, 4, 6, 8, 0, 0, 0], dtype=np.int64)
"""Bytes of an integer of each serial type; 8 and 9 are the constants 0 and 1, which need none."""


@dataclass(frozen=True)
class Field:
    """One field of every cell."""

    values: Bytes
    """(n, width) uint8."""
    widths: Ints | None = None
    """(n,) int64: the number of bytes used in each row; None: all."""
    at_end: bool = False
    """The bytes used are the last ones of the row, not the first."""

    def of(self, rows: Ints) -> Field:
        """Return this field for some of the cells, (m,) int64 indices."""
        widths = None if self.widths is None else self.widths[rows]
        return Field(np.take(self.values, rows, axis=0), widths, self.at_end)


def constant(value: int, count: int) -> Field:
    """Return a field of one byte that is the same in all cells."""
    return Field(np.full((count, 1), value, dtype=np.uint8))


def byte(values: Ints) -> Field:
    """Return a field of one byte for each cell, from (n,) int64 in [0, 255]."""
    return Field(values.astype(np.uint8)[:, None])


def text(joined: bytes, lengths: Ints) -> Field:
    """Return strings, one for each cell.

    Args:
        joined: all of them, one after another, in UTF-8.
        lengths: (n,) int64, of each, in bytes.
    """
    width = int(lengths.max(initial=0))
    letters = np.frombuffer(joined, dtype=np.uint8)
    if len(letters) == len(lengths) * width:
        return Field(letters.reshape(len(lengths), width))
    values = np.zeros((len(lengths), width), dtype=np.uint8)
    values[np.arange(width) < lengths[:, None]] = letters
    return Field(values, lengths)


def varint(values: Ints) -> Field:
    """Return integers in [0, 2**56) as SQLite's varints: 7 bits a byte, the highest first."""
    width = varint_bytes(int(values.max(initial=0)))
    digits = np.empty((len(values), width), dtype=np.uint8)
    for k in range(width):
        digits[:, k] = values >> 7 * (width - 1 - k) & 0x7F | (0x80 if k < width - 1 else 0)
    if width == varint_bytes(int(values.min(initial=0))):
        return Field(digits)
    widths = np.ones(len(values), dtype=np.int64)
    for k in range(1, width):
        widths += values >> 7 * k > 0
    return Field(digits, widths, at_end=True)


def varint_bytes(value: int) -> int:
    """Return the length of the varint of an integer in [0, 2**56)."""
    return max(1, -(-value.bit_length() // 7))


def decimal(values: Ints) -> Field:
    """Return integers in [0, 2**63) as decimal digits."""
    width = len(str(int(values.max(initial=0))))
    digits = np.empty((len(values), width), dtype=np.uint8)
    widths = np.ones(len(values), dtype=np.int64)
    rest = values
    for k in range(width - 1, -1, -1):
        rest, digit = np.divmod(rest, 10)
        digits[:, k] = digit + ord("0")
        if k:
            widths += rest > 0
    return Field(digits, widths, at_end=True)


def serial_types(values: Ints) -> Ints:
    """Return the serial type of the shortest form of each integer in [0, 2**63)."""
    types = np.full(len(values), 9, dtype=np.int64)
    types[values == 0] = 8
    most = int(values.max(initial=0))
    least = 1
    for kind, bits in enumerate((7, 15, 23, 31, 47, 63), start=1):
        if most > least:
            types[values > least] = kind
        least = (1 << bits) - 1
    return types


def integer(values: Ints, types: Ints) -> Field:
    """Return integers in the forms that `serial_types` chose: big-endian, 0 to 8 bytes."""
    widths = INTEGER_BYTES[types]
    width = int(widths.max(initial=0))
    big_endian = values.astype(">i8").view(np.uint8).reshape(len(values), 8)[:, 8 - width :]
    return Field(big_endian, None if int(widths.min(initial=8)) == width else widths, at_end=True)


def join(fields: list[Field]) -> tuple[Bytes, Ints]:
    """Return the bytes of all cells one after another, and the length of each: (b,) uint8 and (n,) int64."""
    count = len(fields[0].values)
    width = sum(field.values.shape[1] for field in fields)
    lengths = np.full(count, sum(f.values.shape[1] for f in fields if f.widths is None), dtype=np.int64)
    values = np.empty((count, width), dtype=np.uint8)
    counts = None if all(f.widths is None for f in fields) else np.ones((count, width), dtype=np.bool_)
    at = 0
    for field in fields:
        size = field.values.shape[1]
        values[:, at : at + size] = field.values
        if counts is not None and field.widths is not None:
            lengths += field.widths
            column = np.arange(size, dtype=np.int32)
            widths = field.widths[:, None].astype(np.int32)
            counts[:, at : at + size] = column >= size - widths if field.at_end else column < widths
        at += size
    return (values.reshape(-1) if counts is None else values[counts]), lengths
