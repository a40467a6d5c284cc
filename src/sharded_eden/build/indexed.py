r"""Reads Megatron's indexed datasets of byte tokens: `NAME.bin` with the tokens, `NAME.idx` with their places.

Format (Megatron-LM, `megatron/core/datasets/indexed_dataset.py`), little-endian: `MMIDIDX\0\0`, uint64 version 1, uint8 code of
the token type, uint64 number of sequences S, uint64 number of document boundaries D, S int32 lengths, S int64 byte offsets, D
int64 boundaries (the first sequence of each document, and S at the end).

A document becomes one entry: the letters of its sequences. Special tokens at the ends of a sequence, ids below 32, are left
out.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharded_eden.build.fasta import Entry
from sharded_eden.build.skipped import BadRecord
from sharded_eden.build.source import MAX_LINE, MEGATRON_MAGIC, Source
from sharded_eden.errors import InputError, printable

HEADER = struct.Struct("<9sQBQQ")
TOKEN_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""The integer types by their codes; 6 and 7 are floating-point types."""

FIRST_LETTER = 32
"""Ids below are special tokens."""


def indexed_entries(source: Source) -> Iterator[Entry | BadRecord]:
    """Yield one entry, without a name, for each document of `NAME.bin`, or its error.

    Raises:
        InputError: `NAME.idx` is missing or damaged, or belongs to another `NAME.bin`.
    """
    path = source.path.with_suffix(".idx")
    dtype, lengths, offsets, boundaries = _read_index(path, source.called)
    itemsize = dtype.itemsize
    size = source.path.stat().st_size
    starts = np.cumsum(lengths) - lengths
    if (offsets != starts * itemsize).any() or int(lengths.sum()) * itemsize != size:
        raise InputError(
            f"{source.called}: has {size:,} bytes, but {printable(path)} describes {int(lengths.sum()) * itemsize:,}: one of "
            "them is truncated, or they belong to different datasets"
        )
    with source.path.open("rb") as file:
        for number, (first, end) in enumerate(
            zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True), start=1
        ):
            where = f"{source.called}: document {number}"
            if int(lengths[first:end].sum()) > MAX_LINE:
                yield BadRecord(f"{where}: is longer than {MAX_LINE:,} tokens", "long")
                file.seek(int(lengths[first:end].sum()) * itemsize, os.SEEK_CUR)
                continue
            tokens = [file.read(length * itemsize) for length in lengths[first:end].tolist()]
            made: Entry | BadRecord
            try:
                made = "", "", b"".join(_letters(data, dtype, where) for data in tokens).decode("ascii"), False, ""
            except BadRecord as error:
                made = error
            yield made


def _letters(data: bytes, dtype: np.dtype[Any], where: str) -> bytes:
    """Return the letters of one sequence of tokens."""
    tokens = np.frombuffer(data, dtype=dtype)
    (letters,) = np.nonzero(tokens >= FIRST_LETTER)
    if not len(letters):
        return b""
    kept = tokens[letters[0] : letters[-1] + 1]
    if len(kept) != len(letters) or kept.max() > 126 or (len(tokens) and tokens.min() < 0):
        wrong = tokens[(tokens < 0) | (tokens > 126)]
        what = (
            f"token {int(wrong[0])}"
            if len(wrong)
            else f"the special token {int(kept[kept < FIRST_LETTER][0])} between letters"
        )
        raise BadRecord(
            f"{where}: holds {what}: only datasets whose tokens are the bytes of letters can be read", "letters"
        )
    return kept.astype(np.uint8).tobytes()


def _read_index(
    path: Path, called: str
) -> tuple[np.dtype[Any], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the type of the tokens, the lengths and byte offsets of sequences, and the boundaries of documents."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{called}: its index {printable(path)} cannot be read ({error.strerror}). Megatron's datasets are two files, "
            "NAME.bin and NAME.idx, in one folder"
        ) from error
    damaged = InputError(f"{printable(path)}: is not the index of a dataset of Megatron, or is truncated")
    if len(data) < HEADER.size:
        raise damaged
    magic, version, code, sequences, boundaries = HEADER.unpack_from(data)
    if magic != MEGATRON_MAGIC or version != 1:
        raise damaged
    if code not in TOKEN_TYPES:
        raise InputError(f"{printable(path)}: its tokens have type {code}, which is not an integer type")
    if len(data) != HEADER.size + 12 * sequences + 8 * boundaries or not boundaries:
        raise InputError(
            f"{printable(path)}: has {len(data):,} bytes for {sequences:,} sequences: it is truncated, or of a multimodal "
            "dataset"
        )
    at = HEADER.size
    lengths = np.frombuffer(data, "<i4", sequences, at).astype(np.int64)
    offsets = np.frombuffer(data, "<i8", sequences, at + 4 * sequences)
    documents = np.frombuffer(data, "<i8", boundaries, at + 12 * sequences)
    if (lengths < 0).any() or documents[0] != 0 or documents[-1] != sequences or (np.diff(documents) < 0).any():
        raise damaged
    return np.dtype(TOKEN_TYPES[code]), lengths, offsets, documents
