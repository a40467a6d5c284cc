"""How many rows of a Parquet file are decoded at once: a few bytes of the file may be many bytes of values.

    a dictionary    a value is stored once, and a million rows name it: Arrow keeps it once in memory too
    delta encoding  a value repeats the beginning of the one before it: few rows at once
    fixed width     the type says how long a value is

Source: https://parquet.apache.org/docs/file-format/data-pages/encodings/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharded_eden.errors import InputError, printable, shown

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_BYTES = 32 << 20
"""Bytes of a Parquet file that are decoded at once, unless a single row is longer."""
DECODED_BYTES = 128 << 20
"""Bytes of a batch whose dictionary is replaced by the values that it stands for."""
LONGEST_BATCH_BYTES = 512 << 20
"""Bytes of a batch of delta encoded values, if each is as long as all that is stored."""
MOST_ROWS = 65_536


def batch_limit(field: pa.Field, groups: list[Any], called: str) -> tuple[int, bool]:
    """Return how many rows of a column may be decoded at once, and whether Arrow is to read it as a dictionary.

    Args:
        field: the column.
        groups: the metadata of all row groups.
        called: what messages call the file.

    Raises:
        InputError: its values are lists or objects.
    """
    import pyarrow as pa

    if pa.types.is_nested(field.type):
        raise InputError(
            f"{called}: from row 1 on, its field {shown(field.name)} is neither text nor an integer, but "
            f"{printable(str(field.type), 80)}. Name another one: --text-field NAME, --id-field NAME, --sample-field NAME"
        )
    if pa.types.is_fixed_size_binary(field.type):
        return max(1, BATCH_BYTES // max(1, field.type.byte_width)), False
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema == field.name and chunk.physical_type == "BYTE_ARRAY"]
    if any(encoding.startswith("DELTA") for chunk in chunks for encoding in chunk.encodings):
        stored = max(chunk.total_uncompressed_size for chunk in chunks)
        return max(1, LONGEST_BATCH_BYTES // max(1, stored)), False  # Arrow reads no delta encoding as a dictionary
    return MOST_ROWS, bool(chunks)


def decoded_if_short(column: pa.Array) -> pa.Array:
    """Return a column without its dictionary, so that its values are read faster, unless that needs much memory."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return column
    values = column.type.value_type
    if not (pa.types.is_string(values) or pa.types.is_binary(values)):
        return column
    size = pc.sum(pc.take(pc.binary_length(column.dictionary), column.indices)).as_py() or 0
    return column.dictionary_decode() if size <= DECODED_BYTES else column
