"""One sequence database in one thread: reads part of a contig at a cost independent of its length.

Input: a contig ID, a 0-based start and a buffer. Output: the bases, as the bytes in the database.
Costs: SQLite's incremental BLOB I/O reads only the requested bytes (also of TEXT values), about 3 µs a window. The first read
of a contig follows its chain of overflow pages; an open handle caches the page numbers, so the handles of long contigs stay
open.

`substr()`, which loads the whole value first, is the fallback where BLOB I/O does not work: WITHOUT ROWID tables, views,
UTF-16 databases. Source: https://www.sqlite.org/c3ref/blob_open.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import apsw
import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, shown
from sharded_eden.format.sequence_db import blob_obstacle, rowid_name, sequence_db_problems
from sharded_eden.format.sqlite import READ_ERRORS, IOMode, open_read_only, unreadable

ReadMode = Literal["auto", "blob", "substr"]

LONG_CONTIG_BASES = 1 << 17
"""Contigs of this length and more have their own handle: 128 kb are 32 pages, and following them costs as much as a lookup."""


class Contig(Protocol):
    """One open contig."""

    sample_id: str
    length: int
    """Bases."""
    page_list_bytes: int
    """Bytes that SQLite caches in a handle of this contig; 0 without such a handle."""

    def read(self, start: int, out: NDArray[np.uint8], at: int = 0, length: int = -1) -> None:
        """Write `length` bases from `start` into `out` at `at`; -1: to its end. All of them must exist."""


class BlobContig:
    """A contig that is read through an open BLOB handle."""

    __slots__ = ("_blob", "length", "page_list_bytes", "sample_id")

    def __init__(self, blob: apsw.Blob, sample_id: str) -> None:
        self._blob = blob
        self.sample_id = sample_id
        self.length = blob.length()
        self.page_list_bytes = 0

    def reopen(self, rowid: int) -> None:
        """Move the handle to the contig of another row."""
        self._blob.reopen(rowid)
        self.length = self._blob.length()

    def read(self, start: int, out: NDArray[np.uint8], at: int = 0, length: int = -1) -> None:
        """See `Contig.read`."""
        self._blob.seek(start)
        self._blob.read_into(out, at, length)  # type: ignore[arg-type]  # any writable buffer will do


class SubstrContig:
    """A contig that is read with `substr`: O(length of the contig) per window."""

    __slots__ = ("_cursor", "_key", "_unit", "length", "page_list_bytes", "sample_id")

    def __init__(self, database: SampleDatabase, key: str, length_bytes: int, encoding: str) -> None:
        self._cursor = database.connection.cursor()
        self._key = key
        self._unit = np.dtype({"UTF-16le": "<u2", "UTF-16be": ">u2"}.get(encoding, "u1"))
        self.sample_id = database.sample_id
        self.length = length_bytes // self._unit.itemsize
        self.page_list_bytes = 0

    def read(self, start: int, out: NDArray[np.uint8], at: int = 0, length: int = -1) -> None:
        """See `Contig.read`."""
        place = out[at : len(out) if length < 0 else at + length]
        if not len(place):  # substr() of a sequence without bases is NULL
            return
        # Loading uses SQLite's 1-based coordinates only here. As text, substr() and length() would stop at a zero.
        data: bytes = self._cursor.execute(
            "SELECT substr(CAST(nt_sequence AS BLOB), ?, ?) FROM sequences WHERE contig_id = ? COLLATE BINARY",
            (start * self._unit.itemsize + 1, len(place) * self._unit.itemsize, self._key),
        ).get
        # Other characters than ASCII become a byte that is in no tokenizer table, and is refused there.
        place[:] = np.minimum(np.frombuffer(data, dtype=self._unit), 0xFF)


class SampleDatabase:
    """One open sequence database, in one thread."""

    def __init__(self, sample_id: str, path: Path, io: IOMode, read_with: ReadMode) -> None:
        self.sample_id = sample_id
        self.path = path
        self.connection = open_read_only(path, io=io)
        self.has_windows = False
        try:
            for problem in sequence_db_problems(self.connection, path):
                raise problem.error(path)
            self._find_row = f"SELECT {rowid_name(self.connection)} FROM sequences WHERE contig_id = ? COLLATE BINARY"
            self._cursor = self.connection.cursor()
            self._scratch: BlobContig | None = None
            self._encoding = str(self.connection.pragma("encoding"))
            self._page_bytes = int(self.connection.pragma("page_size"))
            obstacle = blob_obstacle(self.connection)
            if obstacle and read_with == "blob":
                raise DatabaseError(f"{path}: BLOB reads were requested, but {obstacle}. Leave read_with at 'auto'")
            self._by_substr = read_with == "substr" or bool(obstacle)
        except READ_ERRORS as error:
            self.connection.close()
            raise unreadable(path, error) from error
        except BaseException:
            self.connection.close()
            raise

    def open_contig(self, contig_id: str) -> Contig | None:
        """Return a contig of this database, None if it is absent.

        A contig that is not `kept_open` is valid until the next call for this database.
        """
        if self._by_substr:
            return self._contig_by_substr(contig_id)
        rowid = self._cursor.execute(self._find_row, (contig_id,)).get
        if rowid is None:
            return None
        contig, self._scratch = self._scratch, None  # an error closes the handle, which must not be used again
        try:
            if contig is None:
                blob = self.connection.blob_open("main", "sequences", "nt_sequence", rowid, False)
                contig = BlobContig(blob, self.sample_id)
            else:
                contig.reopen(rowid)
        except apsw.SQLError as error:  # the value is NULL or a number
            raise self._no_text(contig_id, str(error)) from error
        if contig.length >= LONG_CONTIG_BASES:
            contig.page_list_bytes = 4 * (contig.length // self._page_bytes)
        else:
            self._scratch = contig
        return contig

    def _contig_by_substr(self, contig_id: str) -> Contig | None:
        found = self._cursor.execute(
            "SELECT length(CAST(nt_sequence AS BLOB)), typeof(nt_sequence) FROM sequences WHERE contig_id = ? COLLATE BINARY",
            (contig_id,),
        ).get
        if found is None:
            return None
        length_bytes, kind = found
        if kind not in {"text", "blob"}:
            raise self._no_text(contig_id, f"it is {kind}")
        return SubstrContig(self, contig_id, length_bytes, self._encoding if kind == "text" else "UTF-8")

    def _no_text(self, contig_id: str, why: str) -> DatabaseError:
        return DatabaseError(
            f"{self.path}: nt_sequence of contig {shown(contig_id)} is not text ({why}). Build that sample again"
        )
