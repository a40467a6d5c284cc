"""The rows of a Parquet access log while they are written, and the Parquet file that is made of them.

    window_access_<split>_rank<r>_<8 hex>.rows       one for each process, replaced by the Parquet file of the same name

The first line is JSON: `window_db`, its `fingerprint` (null where the metadata has none) and `identity`, `only_sample`, `rank`,
`worker`, `byteorder`. Then comes a record for each batch, int64 each, in that byte order: the time, the number of windows, and
epoch and window_idx of each window. IDs and numbers of windows come from the window database, for thousands of rows at once,
when the Parquet file is made, or when the log of a killed process is read.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import InputError, MissingDatabase, WriteError, printable, shown
from sharded_eden.format.index import FileIdentity
from sharded_eden.format.publish import publishing
from sharded_eden.format.schema import extract_sample_id
from sharded_eden.load.locate.addresses import WindowAddresses
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.read.fetch import Wanted

COLUMNS = ("window_idx", "sequence_id", "sample_id", "window_in_seq_idx", "rank", "access_ts", "worker", "epoch")
TEXT_COLUMNS = ("sequence_id", "sample_id")
SUFFIX = ".rows"
MOST_BYTES = 1 << 25
"""A file of 2 million rows: it becomes Parquet in a few seconds, in which its process loads nothing."""
ROWS_AT_ONCE = 1 << 16

_SPREAD = ("window_idx", "access_ts")
"""Columns of many distinct values: as differences they are written faster, and are smaller, than as a dictionary."""
_RECORD = Struct("=qq")
_HEAD_BYTES = 1 << 16
"""The most bytes of the first line."""


def head(index: WindowIndex, only_sample: str | None, rank: int, worker: int) -> bytes:
    """Return the first line of a file: everything that all of its rows have in common."""
    found = {
        "window_db": str(index.path.absolute()),
        "fingerprint": index.metadata.get("fingerprint"),
        "identity": list(index.identity),
        "only_sample": only_sample,
        "rank": rank,
        "worker": worker,
        "byteorder": sys.byteorder,
    }
    return json.dumps(found).encode() + b"\n"


def record(now: int, wanted: Sequence[Wanted]) -> bytes:
    """Return the record of a batch: its time in nanoseconds, and (epoch, window index) of its windows."""
    return _RECORD.pack(now, len(wanted)) + array("q", chain.from_iterable(wanted)).tobytes()


def samples_of(ids: Sequence[str], only_sample: str | None) -> list[str]:
    """Return the sample of each contig: the only one, or that in its ID.

    Raises:
        InputError: an ID names no sample.
    """
    if only_sample is not None:
        return [only_sample] * len(ids)
    parts = [each.partition("__")[2].partition("__")[0] for each in ids]
    found = {part: extract_sample_id(each) for part, each in dict(zip(parts, ids, strict=True)).items()}
    return [found[part] for part in parts]


class Visits(NamedTuple):
    """The records of a file, (n,) int64 each."""

    head: dict[str, Any]
    window_idx: NDArray[np.int64]
    epoch: NDArray[np.int64]
    access_ts: NDArray[np.int64]
    is_whole: bool
    """Whether the file ends with a whole record."""


def read(path: Path) -> Visits:
    """Return the records of a file. A file that ends in its first line has none.

    Raises:
        InputError: it is no such file, or was written on a machine of another byte order.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    end = data.find(b"\n", 0, _HEAD_BYTES)
    nothing = np.zeros(0, dtype=np.int64)
    if end < 0 and len(data) < _HEAD_BYTES:
        return Visits({}, nothing, nothing, nothing, not data)
    try:
        found = json.loads(data[:end])
        FileIdentity(*found["identity"])
        names = {name: found[name] for name in ("window_db", "fingerprint", "only_sample", "rank", "worker")}
        if found["byteorder"] != sys.byteorder:
            raise InputError(
                f"{printable(path)}: was written on a {shown(found['byteorder'])}-endian machine, this one is {sys.byteorder}"
            )
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{printable(path)}: is no access log: its first line is {shown(data[:end])}") from error
    at, parts, times, sizes = end + 1, [], [], []
    while at + _RECORD.size <= len(data):
        now, size = _RECORD.unpack_from(data, at)
        if size < 1 or at + _RECORD.size + 16 * size > len(data):
            break
        parts.append(np.frombuffer(data, np.int64, 2 * size, at + _RECORD.size))
        times.append(now)
        sizes.append(size)
        at += _RECORD.size + 16 * size
    pairs = np.concatenate(parts).reshape(-1, 2) if parts else nothing.reshape(0, 2)
    access_ts = np.repeat(np.array(times, dtype=np.int64), np.array(sizes, dtype=np.int64))
    return Visits({**found, **names}, pairs[:, 1], pairs[:, 0], access_ts, at == len(data))


class Column(NamedTuple):
    """A column of text: distinct values, and the number of that of each row, (n,) int64."""

    values: list[str]
    number: NDArray[np.int64]


Columns = dict[str, "Column | NDArray[np.int64]"]


def columns(visits: Visits, index: WindowIndex, addresses: WindowAddresses | None) -> Iterator[Columns]:
    """Yield the columns of the log, some rows at a time.

    Args:
        visits: what was written.
        index: the window database that was read.
        addresses: its index, which has the numbers of windows; None: the window database gives everything.

    Raises:
        DatabaseError: the window database or its index cannot be read, or is not as it was.
    """
    only_sample = visits.head.get("only_sample")
    for first in range(0, len(visits.window_idx), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        windows = visits.window_idx[rows]
        if addresses is None:
            found = index.names(windows.tolist())
            ids, key = [name for name, _ in found], np.arange(len(windows))
            numbers = np.array([number for _, number in found], dtype=np.int64)
        else:
            runs, numbers = addresses.places(windows)
            _, some, key = np.unique(runs, return_index=True, return_inverse=True)
            ids = [name for name, _ in index.names(windows[some].tolist())]
        samples = samples_of(ids, only_sample)
        alike = {name: np.full(len(windows), visits.head[name], dtype=np.int64) for name in ("rank", "worker")}
        yield {
            "window_idx": windows,
            "sequence_id": Column(ids, key),
            "sample_id": Column(samples, key),
            "window_in_seq_idx": numbers,
            "rank": alike["rank"],
            "access_ts": visits.access_ts[rows],
            "worker": alike["worker"],
            "epoch": visits.epoch[rows],
        }


def window_db_of(path: Path, visits: Visits) -> WindowIndex:
    """Open the window database that a file names, to read the log of a process that was killed.

    Raises:
        MissingDatabase: it is not there.
        InputError: another one is there.
        DatabaseError: it is damaged.
    """
    window_db, rows = Path(visits.head["window_db"]), len(visits.window_idx)
    rest = f"The {rows:,} rows need the window database that was read: put it there, or remove this file"
    if not window_db.is_file():
        raise MissingDatabase(
            f"{printable(path)}: is the log of a running or killed process, and {printable(window_db)} is missing. {rest}"
        )
    index = WindowIndex(window_db)
    fingerprint = visits.head["fingerprint"]
    is_same = (
        index.identity.is_same_file(FileIdentity(*visits.head["identity"]))
        if fingerprint is None
        else index.metadata.get("fingerprint") == fingerprint
    )
    if not is_same:
        index.close()
        raise InputError(
            f"{printable(path)}: is the log of a running or killed process, and {printable(window_db)} was replaced "
            f"since (fingerprint {shown(index.metadata.get('fingerprint'))}, not {shown(fingerprint)}). {rest}"
        )
    return index


def to_parquet(path: Path, index: WindowIndex, addresses: WindowAddresses | None) -> Path:
    """Replace a complete file of rows by a Parquet file of the same name; return its path. Runs in one thread.

    Args:
        path: the file of rows; it is removed when the Parquet file is in its place.
        index: the window database that was read.
        addresses: its index, or None.

    Raises:
        WriteError: the file of rows cannot be read or the Parquet file cannot be written; the file of rows is kept.
        DatabaseError: the window database or its index cannot be read; the file of rows is kept.
    """
    import pyarrow as pa
    from pyarrow import parquet

    types = {name: pa.string() if name in TEXT_COLUMNS else pa.int64() for name in COLUMNS}
    target = path.with_suffix(".parquet")
    try:
        visits = read(path)
        with (
            publishing(target) as unfinished,
            parquet.ParquetWriter(
                unfinished,
                pa.schema(types),
                compression="zstd",
                use_dictionary=[name for name in COLUMNS if name not in _SPREAD],
                column_encoding=dict.fromkeys(_SPREAD, "DELTA_BINARY_PACKED"),
            ) as writer,
        ):
            for found in columns(visits, index, addresses):
                arrays = [
                    pa.array(each.values, pa.string()).take(pa.array(each.number))
                    if isinstance(each, Column)
                    else pa.array(each)
                    for each in (found[name] for name in COLUMNS)
                ]
                writer.write_batch(pa.record_batch(arrays, names=COLUMNS))
        path.unlink()
    except (OSError, pa.ArrowException) as error:
        raise WriteError(
            f"{printable(path)}: cannot be made a Parquet file ({printable(str(error), 200)}). This file is kept"
        ) from error
    return target
