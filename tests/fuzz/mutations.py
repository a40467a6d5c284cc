"""Mutations: a random generator and the bytes of a file in, other bytes out. Of bytes, lines, JSON and tables."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import struct
import subprocess
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

Mutation = Callable[[random.Random, bytes], bytes]

ODD_BYTES = (
    b"\x00", b"\xff", b"\r", b"\n", b"\r\n", b"\t", b" ", b">", b"#", b";", b"@", b"//", b"-", b"*", b"\x0b", b"\x0c", b"\x1c",
    b"\x85", b"\xc2\x85", b"\xc2\xa0", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3", b"\x1a",
    b"\x1b[2J",
    b"N", b"n", b"U", b"X", b"|", b'"', b"{", b"}", b"[", b"0", b"__", b"A" * 300, b">BCR__ECT-T__CT1-1\nACGT\n", b"ORIGIN\n",
)  # fmt: skip


def change_bytes(choose: random.Random, data: bytes) -> bytes:
    """Change, insert, remove, repeat or move bytes at one to four places."""
    changed = bytearray(data)
    for _ in range(choose.randint(1, 4)):
        at = choose.randrange(len(changed) + 1)
        size = choose.choice((1, 1, 2, 4, 8, 40))
        what = choose.randrange(7)
        if what == 0 and at < len(changed):
            changed[at] ^= 1 << choose.randrange(8)
        elif what == 1:
            changed[at : at + 1] = bytes([choose.randrange(256)])
        elif what == 2:
            changed[at:at] = choose.choice(ODD_BYTES)
        elif what == 3:
            del changed[at : at + size]
        elif what == 4:
            changed[at:at] = changed[at : at + size]
        elif what == 5:
            other = choose.randrange(len(changed) + 1)
            changed[at : at + size] = changed[other : other + size]
        else:
            number = choose.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**15, 2**63 - 1, len(data), 255))
            width = choose.choice("bhiq")
            limit = 1 << (8 * struct.calcsize(width) - 1)
            changed[at : at + struct.calcsize(width)] = struct.pack(
                choose.choice("<>") + width, max(-limit, min(limit - 1, number))
            )
    return bytes(changed)


def truncate(choose: random.Random, data: bytes) -> bytes:
    """Cut the end off, or the beginning."""
    cut = choose.choice((choose.randrange(len(data) + 1), max(0, len(data) - choose.randrange(12))))
    return data[:cut] if choose.random() < 0.9 else data[len(data) - cut :]


def append(choose: random.Random, data: bytes) -> bytes:
    """Append the file itself, a part of it, zeros or odd bytes."""
    part = data[choose.randrange(len(data) + 1) :]
    return data + choose.choice((data, part, bytes(choose.randrange(1, 600)), choose.choice(ODD_BYTES)))


def change_lines(choose: random.Random, data: bytes) -> bytes:
    """Remove, repeat, exchange, join, indent or comment lines, or change their ends."""
    lines = data.split(b"\n")
    for _ in range(choose.randint(1, 3)):
        at, other = choose.randrange(len(lines)), choose.randrange(len(lines))
        what = choose.randrange(11)
        if what == 0 and len(lines) > 1:
            del lines[at]
        elif what == 1:
            lines.insert(other, lines[at])
        elif what == 2:
            lines[at], lines[other] = lines[other], lines[at]
        elif what == 3:
            lines[at] += choose.choice((b"\r", b"\r\r", b" ", b"\t", b"\x0c"))
        elif what == 4:
            lines[at] = choose.choice((b" ", b"#", b";", b">", b"\t", b"\r", b"\xef\xbb\xbf", b"1 ")) + lines[at]
        elif what == 5:
            lines[at : at + 2] = [b"".join(lines[at : at + 2])]
        elif what == 6:
            lines.insert(at, choose.choice((b"", b" ", b"#", b">", b">\t", b"> x", b";c", b"//", b"\r")))
        elif what == 7:
            cut = choose.randrange(len(lines[at]) + 1)
            lines[at : at + 1] = [lines[at][:cut], lines[at][cut:]]
        elif what == 8:
            return choose.choice((b"\r\n", b"\r", b"\n\n", b"\n\r", b"\x0b", b"\x0c", b"\xc2\x85", b" \n")).join(lines)
        elif what == 9:
            lines[at] = lines[at].swapcase()
        else:
            lines[at] = b"\r".join(lines[at : at + 2])
    return b"\n".join(lines)


TEXT_MUTATIONS: tuple[Mutation, ...] = (
    change_bytes,
    change_bytes,
    truncate,
    append,
    change_lines,
    change_lines,
    change_lines,
)
BINARY_MUTATIONS: tuple[Mutation, ...] = (change_bytes, change_bytes, change_bytes, truncate, append)


def mutate(choose: random.Random, data: bytes, mutations: tuple[Mutation, ...]) -> bytes:
    """Apply one mutation, sometimes several."""
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        data = choose.choice(mutations)(choose, data)
    return data


# ---- compression ----


def _zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


def bgzip(data: bytes) -> bytes:
    """Compress as bgzip does, 100 bytes a block."""
    blocks = []
    for start in [*range(0, len(data), 100), None]:
        part = b"" if start is None else data[start : start + 100]
        raw = gzip.compress(part, mtime=0)[10:]
        size = 18 + len(raw) - 1
        blocks.append(
            bytes.fromhex("1f8b08040000000000ff0600424302 00".replace(" ", "")) + struct.pack("<H", size) + raw
        )
    return b"".join(blocks)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "bgz": bgzip,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": _zstd,
}


def compressed(choose: random.Random, data: bytes, kind: str) -> bytes:
    """Compress a text and change the result, or compress a changed text, or several parts after each other."""
    compress = COMPRESS[kind]
    what = choose.randrange(4)
    if what == 0:
        return compress(mutate(choose, data, TEXT_MUTATIONS))
    if what == 1:
        cut = choose.randrange(len(data) + 1)
        return compress(data[:cut]) + choose.choice((b"", b"", bytes(7))) + compress(data[cut:])
    if what == 2:
        other = choose.choice(sorted(COMPRESS))
        return COMPRESS[other](data)
    return mutate(choose, compress(data), BINARY_MUTATIONS)


# ---- JSON ----

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 5, 10**30, 1.5, float("nan"), float("inf"), "", " ", "a b", "\ud800", "a \ud800", "é", "A\0B",
    "=1+1", "BCR__ECT-T__CT1-1", "BCR__ECT-../x__CT1-1", "x" * 300, [], ["a"], {}, {"a": 1}, "ACGT", "ACXGT", "acgt\n",
    "\x1b[31m", "BCR__ECT-" + "y" * 250 + "__1", "BCR__ECT-" + "é" * 120 + "__1", "BCR__ECT-.h__1",
    "BCR__ECT-contigs.parquet__1", "\u2028",
)  # fmt: skip


def change_json(choose: random.Random, data: bytes) -> bytes:
    """Change values, keys or the nesting of one object a line."""
    lines = data.splitlines()
    at = choose.randrange(len(lines))
    try:
        fields = json.loads(lines[at])
        assert isinstance(fields, dict)
        assert fields
    except (ValueError, AssertionError, RecursionError):
        return change_lines(choose, data)
    key = choose.choice(sorted(fields))
    what = choose.randrange(7)
    if what <= 2:
        fields[key] = choose.choice(ODD_VALUES)
    elif what == 3:
        fields[choose.choice(("seq", "id", "record", "name", "é", ""))] = fields.pop(key)
    elif what == 4:
        del fields[key]
    elif what == 5:
        fields[choose.choice(("extra", "sequence", "id"))] = choose.choice(ODD_VALUES)
    text = json.dumps(fields, ensure_ascii=choose.random() < 0.7)
    if what == 6:
        text = choose.choice((
            "[" * 3000, '{"a":' * 2000, f"[{text}]", text + text, text[:-1] + f',"{key}":"A"}}', "9" * 5000, "\ufeff" + text,
            text.replace('"', "'", 2), '"x"', "null", "NaN", text[:-1] + ",}", text + ",",
        ))  # fmt: skip
    lines[at] = text.encode(errors="surrogatepass")
    return b"\n".join(lines) + b"\n"


# ---- tables ----


def table_bytes(table: pa.Table, kind: str, choose: random.Random | None = None) -> bytes:
    """Return a table as a file: `parquet`, `arrow`, `stream`, `feather` or `feather1`."""
    out = io.BytesIO()
    if kind == "parquet":
        options: dict[str, Any] = {}
        if choose is not None:
            options = {
                "row_group_size": choose.choice((1, 2, 1000)),
                "compression": choose.choice(("none", "snappy", "zstd", "gzip")),
                "use_dictionary": choose.random() < 0.5,
                "data_page_version": choose.choice(("1.0", "2.0")),
                "write_page_checksum": choose.random() < 0.2,
            }
        pa.parquet.write_table(table, out, **options)
    elif kind in {"feather", "feather1"}:
        pa.feather.write_feather(
            table, out, version=1 if kind == "feather1" else 2, compression=None if kind == "feather1" else "lz4"
        )
    else:
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with new(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=None if choose is None else choose.choice((1, 2, 1000)))
    return out.getvalue()


def odd_column(choose: random.Random, column: pa.ChunkedArray) -> pa.Array:
    """Return a column's values as another type, or with odd values among them."""
    values = column.to_pylist()
    at = choose.randrange(len(values)) if values else 0
    what = choose.randrange(13)
    text = [str(value) for value in values]
    if what == 0 and values:
        values[at] = None
        return pa.array(values, column.type)
    if what == 1:
        return pa.array([value.encode() for value in text], choose.choice((pa.binary(), pa.large_binary())))
    if what == 2:
        return pa.array(text, choose.choice((pa.large_string(), pa.string_view())))
    if what == 3:
        return pa.array(text).dictionary_encode()
    if what == 4:
        return pa.array([[value] for value in text])
    if what == 5:
        return pa.array([{"a": value} for value in text])
    if what == 6:
        return pa.array([choose.choice((0, 1, -5, 2**62)) for _ in text], pa.int64())
    if what == 7:
        return pa.array([choose.choice((0.0, float("nan"), 1e300, 60.0)) for _ in text])
    if what == 8:
        numbers = [choose.choice((0, 2**62, -(2**62), 86_400)) for _ in text]
        kind = choose.choice((pa.timestamp("s"), pa.timestamp("ns"), pa.date64(), pa.duration("s"), pa.time64("us")))
        return pa.array(numbers, pa.int64()).view(kind)
    if what == 9:
        return pa.nulls(len(values))
    if what == 10 and values and pa.types.is_string(column.type):
        text[at] = choose.choice([value for value in ODD_VALUES if isinstance(value, str) and "\ud800" not in value])
        return pa.array(text)
    if what == 11 and values:
        return pa.array([value.encode() for value in text[:at]] + [b"\xff\xfe"] + [b"x"] * (len(values) - at - 1)).view(
            pa.string()
        )
    if pa.types.is_integer(column.type) and values:
        kind = choose.choice(
            (pa.int8(), pa.uint64(), pa.int32(), pa.float32(), pa.string(), pa.decimal128(12, 2), pa.bool_())
        )
        changed = [0, 1, 63, 64, 65, 127, 100]
        return pa.array([choose.choice(changed) for _ in values]).cast(kind)
    return pa.array(values[:-1] + values[:1], column.type)


def odd_offsets(choose: random.Random, column: pa.ChunkedArray) -> pa.Array:
    """Return a text column whose offsets are wrong: not checked by Arrow unless it is asked to."""
    array = pa.concat_arrays(column.cast(pa.string()).chunks)
    size = len(array)
    offsets = list(struct.unpack(f"<{size + 1}i", array.buffers()[1].to_pybytes()[: 4 * (size + 1)]))
    at = choose.randrange(size + 1)
    offsets[at] = choose.choice((-1, -(2**31), 2**31 - 1, offsets[at] + 1, offsets[-1] + 9, 0, offsets[at] + 1_000_000))
    buffers = [None, pa.py_buffer(struct.pack(f"<{size + 1}i", *offsets)), array.buffers()[2]]
    return pa.Array.from_buffers(pa.string(), size, buffers)


def change_table(choose: random.Random, data: bytes, kind: str) -> bytes:
    """Write a table again with other types, values, columns, names, rows or layout."""
    table = parquet_file(data).read(use_threads=False) if kind == "parquet" else arrow_table(data)
    names, columns = list(table.column_names), [table.column(i) for i in range(table.num_columns)]
    for _ in range(choose.choice((1, 1, 2))):
        at = choose.randrange(len(columns))
        what = choose.randrange(8)
        if what <= 2:
            columns[at] = odd_column(choose, table.column(min(at, table.num_columns - 1)))
        elif what == 3:
            names.insert(choose.randrange(len(names) + 1), names[at])
            columns.insert(choose.randrange(len(columns) + 1), columns[choose.randrange(len(columns))])
        elif what == 4:
            names[at] = choose.choice(("seq", "id", "name", "", "é", "contig_id", "length", names[at].upper()))
        elif what == 5:
            order = choose.choices(range(table.num_rows), k=table.num_rows) if table.num_rows else []
            columns = [
                pa.chunked_array([pa.concat_arrays(c.chunks) if isinstance(c, pa.ChunkedArray) else c]) for c in columns
            ]
            columns = [column.take(order) for column in columns]
        elif what == 6 and len(columns) > 1:
            del names[at], columns[at]
        elif what == 7 and kind != "parquet":
            columns[at] = odd_offsets(choose, table.column(min(at, table.num_columns - 1)))
    changed = pa.Table.from_arrays(columns, names=names)
    return table_bytes(changed, kind if kind == "parquet" else choose.choice((kind, "arrow", "stream")), choose)


# A thread of Arrow may release the bytes that it read after the interpreter has begun to end, which aborts the process.
# Therefore these two read on the thread that calls them, and no `pyarrow.parquet.read_table`.


def parquet_file(data: bytes) -> pa.parquet.ParquetFile:
    """Open bytes as Parquet; read it with `use_threads=False`."""
    return pa.parquet.ParquetFile(pa.BufferReader(data))


def arrow_table(data: bytes) -> pa.Table:
    """Read bytes as an Arrow file or stream."""
    kind = pa.ipc.open_file if data[:6] == b"ARROW1" else pa.ipc.open_stream
    return kind(pa.BufferReader(data), options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()
