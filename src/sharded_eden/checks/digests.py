"""Finds copies of contigs by digests in files. Memory does not grow with the number of contigs.

Finds contigs that are in two splits. A contig equals its reverse complement, because windows use either strand. Upper case
equals lower case, and U equals T. Costs 30 bytes of scratch a contig, twice, and two copies and one SHA-256 of its bases.

    contigs ──canonical_digest──▶ a file of records for each sample ──by digest──▶ buckets ──sort──▶ copies
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sharded_eden.format.sqlite import open_read_only
from sharded_eden.load.encode.example import COMPLEMENT
from sharded_eden.load.read.sequences import Contig

PIECE_BASES = 1 << 24
"""Bases of a long contig in memory at once, for each of two copies."""

_FORWARD = bytes(range(256)).upper().replace(b"U", b"T")
_BACKWARD = bytes(COMPLEMENT[np.frombuffer(_FORWARD, dtype=np.uint8)])

_RECORD = struct.Struct("<16sQIH")
RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("ordinal", "<u8"), ("sample", "<u4"), ("split", "<u2")])
"""A digest and its contig: the position in its database, the number of the sample and of the split."""
CHUNK_RECORDS = 1 << 18
BUCKET_RECORDS = 1 << 20
"""The approximate number of records sorted in memory at once."""


class Bases(Protocol):
    """The letters of a contig: `bytes`, or an object that can be sliced like `bytes`."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> bytes: ...


class Pieces:
    """A long contig as `Bases`."""

    def __init__(self, contig: Contig) -> None:
        self._contig = contig

    def __len__(self) -> int:
        return self._contig.length

    def __getitem__(self, span: slice) -> bytes:
        start, stop, _ = span.indices(len(self))
        out = np.empty(max(0, stop - start), dtype=np.uint8)
        self._contig.read(start, out)
        return out.tobytes()


def canonical_digest(bases: Bases) -> bytes:
    """Return the 16-byte digest of a contig or of its reverse complement, whichever sorts first."""
    starts = range(0, len(bases), PIECE_BASES)
    strand = _forward
    for start in starts:
        ahead, back = _forward(bases, start), _backward(bases, start)
        if len(starts) == 1:
            return sha256(min(ahead, back)).digest()[:16]
        if ahead != back:
            strand = min((ahead, _forward), (back, _backward))[1]
            break
    digest = sha256()
    for start in starts:
        digest.update(strand(bases, start))
    return digest.digest()[:16]


def _forward(bases: Bases, start: int) -> bytes:
    return bases[start : start + PIECE_BASES].translate(_FORWARD)


def _backward(bases: Bases, start: int) -> bytes:
    end = len(bases) - start
    return bases[max(0, end - PIECE_BASES) : end].translate(_BACKWARD)[::-1]


class DigestFile:
    """Writes the records of one sample."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1 << 20)

    def add(self, digest: bytes, *, ordinal: int, sample: int, split: int) -> None:
        """Write one record."""
        self._file.write(_RECORD.pack(digest, ordinal, sample, split))

    def __enter__(self) -> DigestFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@dataclass
class Copies:
    """The contigs that are in two splits."""

    count: int = 0
    examples: list[tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=list)
    """The (sample, ordinal) of a contig in the first split, and of one in the second."""


def find_copies(files: Iterable[Path], scratch: Path, examples: int) -> dict[tuple[int, int], Copies]:
    """Return {(split, a later split): contigs that are in both}.

    Args:
        files: those that `DigestFile` wrote; they are removed.
        scratch: a folder for the buckets.
        examples: the number of contigs that are named for each pair of splits.
    """
    files = [path for path in files if path.exists()]
    buckets = -(-sum(path.stat().st_size for path in files) // (RECORD.itemsize * BUCKET_RECORDS))
    found: dict[tuple[int, int], Copies] = {}
    for records in _bucketed(files, scratch, buckets):
        order = np.lexsort((records["ordinal"], records["sample"], records["split"], records["low"], records["high"]))
        sorted_ = records[order]
        first, second = sorted_[:-1], sorted_[1:]
        same = (first["high"] == second["high"]) & (first["low"] == second["low"])
        for row in np.flatnonzero(same & (first["split"] != second["split"])):
            one, other = first[row], second[row]
            copies = found.setdefault((int(one["split"]), int(other["split"])), Copies())
            copies.count += 1
            if len(copies.examples) < examples:
                copies.examples.append((_whose(one), _whose(other)))
    return found


def _whose(record: Any) -> tuple[int, int]:
    return int(record["sample"]), int(record["ordinal"])


def _bucketed(files: list[Path], scratch: Path, buckets: int) -> Iterator[NDArray[Any]]:
    """Yield all records, in arrays such that equal digests are in one array."""
    if buckets <= 1:
        yield np.concatenate([np.empty(0, dtype=RECORD), *(np.fromfile(path, dtype=RECORD) for path in files)])
        return
    for path in files:
        with path.open("rb") as file:
            while len(records := np.fromfile(file, dtype=RECORD, count=CHUNK_RECORDS)):
                bucket = records["high"] % buckets
                order = np.argsort(bucket, kind="stable")
                ends = np.cumsum(np.bincount(bucket.astype(np.int64), minlength=buckets))
                for number, part in enumerate(np.split(records[order], ends[:-1])):
                    with _bucket(scratch, number).open("ab") as out:
                        out.write(part.tobytes())
        path.unlink()
    for number in range(buckets):
        yield np.fromfile(_bucket(scratch, number), dtype=RECORD)
        _bucket(scratch, number).unlink()


def _bucket(scratch: Path, number: int) -> Path:
    return scratch / f"bucket{number}"


def contig_at(path: Path, ordinal: int) -> str:
    """Return the ID of the contig at a position of its table."""
    with closing(open_read_only(path, io="read")) as database:
        # typeof() keeps SQLite from walking an index on contig_id, in another order, instead of the table.
        query = "SELECT contig_id, typeof(nt_sequence) FROM sequences LIMIT 1 OFFSET ?"
        return str(database.execute(query, (ordinal,)).fetchall()[0][0])
