"""(sample, contig) -> bases: the pool of sequence databases. Flat cost in contig length.

Enters: a sample ID, a contig ID, a 0-based start and a buffer. Leaves: the bases, as the bytes that the database holds.
Costs: SQLite's incremental BLOB I/O reads just the bytes asked for (on TEXT values too), about 5 µs a window. The first read
of a contig walks its chain of overflow pages; a handle that stays open remembers the pages, so long contigs keep theirs.

`substr()`, which loads the whole value first, is the fallback where BLOB I/O cannot serve: WITHOUT ROWID tables, views,
UTF-16 databases. Source: https://www.sqlite.org/c3ref/blob_open.html
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, TypeVar, get_args

import apsw
import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, MissingDatabase, UsageError
from sharded_eden.load.connections import PerThread, alive, connection_budget
from sharded_eden.sqlite import (
    IOMode,
    attach_read_only,
    descriptors_are_exhausted,
    open_read_only,
    table_columns,
    unreadable,
)

ReadMode = Literal["auto", "blob", "substr"]
T = TypeVar("T")

LONG_CONTIG_BASES = 1 << 17
"""Contigs from here on keep a handle of their own: 128 kb are 32 pages, whose walk costs as much as a lookup."""
MAX_LONG_HANDLES = 1024
MAX_PAGE_LIST_BYTES = 32 << 20
"""SQLite keeps 4 bytes for each overflow page of an open handle: 146 KB for a contig of 150 Mb."""


class Contig(Protocol):
    """One contig, ready to be read; valid until the next one is asked for in the same thread."""

    length: int
    """Bases."""

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bases from `start` on; all of them must exist."""


class BlobContig:
    """A contig behind an open BLOB handle."""

    __slots__ = ("_blob", "length")

    def __init__(self, blob: apsw.Blob) -> None:
        self._blob = blob
        self.length = blob.length()

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bases from `start` on."""
        self._blob.seek(start)
        self._blob.read_into(out)  # type: ignore[arg-type]  # any writable buffer will do


class SubstrContig:
    """A contig that is read with `substr`: O(length of the contig) a window."""

    __slots__ = ("_cursor", "_key", "_unit", "length")

    def __init__(self, cursor: apsw.Cursor, key: str, length_bytes: int, encoding: str) -> None:
        self._cursor = cursor
        self._key = key
        self._unit = np.dtype({"UTF-16le": "<u2", "UTF-16be": ">u2"}.get(encoding, "u1"))
        self.length = length_bytes // self._unit.itemsize

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bases from `start` on."""
        # The one place with SQLite's 1-based coordinates. As text, substr() and length() would stop at a zero.
        data: bytes = self._cursor.execute(
            "SELECT substr(CAST(nt_sequence AS BLOB), ?, ?) FROM sequences WHERE contig_id = ?",
            (start * self._unit.itemsize + 1, len(out) * self._unit.itemsize, self._key),
        ).get
        # What is not ASCII becomes a byte that no tokenizer table knows, and is refused there.
        out[:] = np.minimum(np.frombuffer(data, dtype=self._unit), 0xFF)


class SampleDatabase:
    """One open sequence database, in one thread."""

    def __init__(self, sample_id: str, path: Path, io: IOMode, read_with: ReadMode) -> None:
        self.sample_id = sample_id
        self.path = path
        self.connection = open_read_only(path, io=io)
        self.has_windows = False
        try:
            columns = table_columns(self.connection, "sequences")
            if not {"contig_id", "nt_sequence"} <= set(columns):
                raise DatabaseError(
                    f"{path}: expected a table sequences(contig_id, nt_sequence), found "
                    + (f"sequences({', '.join(columns)})" if columns else "none")
                )
            # A column may bear the name rowid; SQLite has two more names for the real one.
            self._rowid = next(name for name in ("rowid", "_rowid_", "oid") if name not in {c.lower() for c in columns})
            self._cursor = self.connection.cursor()
            self._scratch: apsw.Blob | None = None
            self._encoding = str(self.connection.pragma("encoding"))
            self._page_bytes = int(self.connection.pragma("page_size"))
            obstacle = self._what_rules_out_blobs()
            if obstacle and read_with == "blob":
                raise DatabaseError(f"{path}: BLOB reads were asked for, but {obstacle}. Leave read_with at 'auto'")
            self._by_substr = read_with == "substr" or bool(obstacle)
        except BaseException:
            self.connection.close()
            raise

    def _what_rules_out_blobs(self) -> str:
        if self._encoding != "UTF-8":
            return f"its encoding is {self._encoding}"
        kind = self.connection.execute("SELECT type, wr FROM pragma_table_list('sequences') WHERE schema = 'main'").get
        if kind[0] != "table":
            return f"sequences is a {kind[0]}"
        return "sequences is a WITHOUT ROWID table" if kind[1] else ""

    def open_contig(self, contig_id: str, long_contigs: LongContigs) -> Contig | None:
        """Return a contig of this database, None where it has no such one."""
        if self._by_substr:
            found = self._cursor.execute(
                "SELECT length(CAST(nt_sequence AS BLOB)), typeof(nt_sequence) FROM sequences WHERE contig_id = ?",
                (contig_id,),
            ).get
            if found is None:
                return None
            length_bytes, kind = found
            if kind not in {"text", "blob"}:
                raise self._no_text(contig_id, f"it is {kind}")
            return SubstrContig(self._cursor, contig_id, length_bytes, self._encoding if kind == "text" else "UTF-8")
        rowid = self._cursor.execute(f"SELECT {self._rowid} FROM sequences WHERE contig_id = ?", (contig_id,)).get
        if rowid is None:
            return None
        try:
            if self._scratch is None:
                self._scratch = self.connection.blob_open("main", "sequences", "nt_sequence", rowid, False)
            else:
                self._scratch.reopen(rowid)
        except apsw.SQLError as error:  # the value is NULL or a number
            self._scratch = None
            raise self._no_text(contig_id, str(error)) from error
        contig = BlobContig(self._scratch)
        if contig.length >= LONG_CONTIG_BASES:
            long_contigs.keep(self, contig_id, contig, 4 * (contig.length // self._page_bytes))
            self._scratch = None
        return contig

    def _no_text(self, contig_id: str, why: str) -> DatabaseError:
        return DatabaseError(
            f"{self.path}: nt_sequence of contig {contig_id!r} is no text ({why}). Build that sample again"
        )


class LongContigs:
    """The handles that stay open: least recently used first out, bounded in number and in bytes of page lists."""

    def __init__(self) -> None:
        self._handles: OrderedDict[tuple[str, str], tuple[BlobContig, int]] = OrderedDict()
        self._page_list_bytes = 0

    def find(self, sample_id: str, contig_id: str) -> BlobContig | None:
        """Return the open handle of a contig, if there is one."""
        found = self._handles.get((sample_id, contig_id))
        if found is None:
            return None
        self._handles.move_to_end((sample_id, contig_id))
        return found[0]

    def keep(self, database: SampleDatabase, contig_id: str, contig: BlobContig, page_list_bytes: int) -> None:
        """Take a handle in, and let go of the least recently used ones beyond the bounds."""
        self._handles[database.sample_id, contig_id] = (contig, page_list_bytes)
        self._page_list_bytes += page_list_bytes
        while len(self._handles) > 1 and (
            len(self._handles) > MAX_LONG_HANDLES or self._page_list_bytes > MAX_PAGE_LIST_BYTES
        ):
            _, (_, freed) = self._handles.popitem(last=False)
            self._page_list_bytes -= freed

    def forget(self, sample_id: str) -> None:
        """Let go of every handle of a database that is about to be closed."""
        for key in [key for key in self._handles if key[0] == sample_id]:
            self._page_list_bytes -= self._handles.pop(key)[1]


_pools: weakref.WeakValueDictionary[int, OpenDatabases] = weakref.WeakValueDictionary()
_budgeting = threading.Lock()
os.register_at_fork(after_in_child=_budgeting._at_fork_reinit)  # type: ignore[attr-defined]  # as the standard library does

PAUSES = (0.01, 0.02, 0.04, 0.08, 0.16)
"""Seconds between attempts to open a file while other threads come and go with the last file descriptors."""


class OpenDatabases:
    """The sequence databases that one thread has open; beyond `limit` the least recently used one is closed."""

    def __init__(self, reader: SequenceReader) -> None:
        self._reader = reader
        self._open: OrderedDict[str, SampleDatabase] = OrderedDict()
        self.long_contigs = LongContigs()
        self._pid = os.getpid()
        with _budgeting:
            promised = sum(pool.limit - len(pool._open) for pool in alive(_pools) if pool._pid == self._pid)
            self.limit: int = min(len(reader.paths), connection_budget(promised))
            _pools[id(self)] = self

    def get(self, sample_id: str) -> SampleDatabase:
        """Return the open database of a sample."""
        database = self._open.get(sample_id)
        if database is None:
            while len(self._open) >= self.limit:
                self._close(self._open.popitem(last=False)[1])
            database = self._open[sample_id] = self._opened(sample_id)
        elif len(self._reader.paths) > self.limit:
            self._open.move_to_end(sample_id)
        return database

    def _opened(self, sample_id: str) -> SampleDatabase:
        reader = self._reader
        return self.with_room(lambda: SampleDatabase(sample_id, reader.paths[sample_id], reader.io, reader.read_with))

    def with_room(self, open_file: Callable[[], T], kept: str = "") -> T:
        """Return what `open_file` returns, with room made for it where others have used up the file descriptors.

        Args:
            open_file: opens one file more; DatabaseError where it cannot.
            kept: the sample whose database must stay open.
        """
        pauses = iter(PAUSES)
        while True:
            try:
                return open_file()
            except DatabaseError as error:
                if self._make_room(kept):
                    continue
                # Whoever took the last descriptor may have given it back before we looked: that is no fault of the file.
                pause = next(pauses, None)
                if pause is None or not isinstance(error.__cause__, apsw.CantOpenError):
                    raise
                time.sleep(pause)

    def _make_room(self, kept: str) -> bool:
        """Close half of what is open where no file descriptor is left; return whether that was so, and helped."""
        others = [sample_id for sample_id in self._open if sample_id != kept]
        if not others or not descriptors_are_exhausted():
            return False
        for sample_id in others[: -(-len(others) // 2)]:
            self._close(self._open.pop(sample_id))
        self.limit = max(1, len(self._open))
        return True

    def _close(self, database: SampleDatabase) -> None:
        self.long_contigs.forget(database.sample_id)
        database.connection.close(True)  # else a handle that failed to read would raise its error once more

    def close(self) -> None:
        """Close them all."""
        while self._open:
            self._close(self._open.popitem()[1])


class SequenceReader:
    """Reads contigs of many sequence databases, each thread and process through connections of its own.

    Args:
        paths: {sample ID: sequence database}.
        io: see `sharded_eden.sqlite.open_read_only`.
        read_with: `blob`, `substr`, or `auto` for BLOB I/O wherever a database allows it.

    Raises:
        DatabaseError: a database cannot be opened, or has no table `sequences(contig_id, nt_sequence)`.
        UsageError: `read_with` is none of the three.
    """

    def __init__(self, paths: Mapping[str, Path], *, io: IOMode = "auto", read_with: ReadMode = "auto") -> None:
        if read_with not in get_args(ReadMode):
            raise UsageError(f"read_with must be 'auto', 'blob' or 'substr', not {read_with!r}")
        self.paths = dict(paths)
        self.io: IOMode = io
        self.read_with: ReadMode = read_with
        self._databases = PerThread(partial(OpenDatabases, self), OpenDatabases.close)

    def open_all(self) -> None:
        """Open every database that fits into the budget of file descriptors, in this thread."""
        opened = self._databases.get()
        for sample_id in itertools.islice(self.paths, opened.limit):
            opened.get(sample_id)

    def contig(self, sample_id: str, contig_id: str) -> Contig | None:
        """Return a contig ready to be read, None where the sample has no such one.

        Raises:
            MissingDatabase: there is no such sample.
            DatabaseError: SQLite cannot read the database.
        """
        opened = self._databases.get()
        try:
            path = self.paths[sample_id]
        except KeyError:
            raise MissingDatabase(
                f"contig {contig_id!r} belongs to sample {sample_id!r}, which has no sequence database"
            ) from None
        kept = opened.long_contigs.find(sample_id, contig_id)
        if kept is not None:
            return kept
        try:
            return opened.get(sample_id).open_contig(contig_id, opened.long_contigs)
        except apsw.Error as error:
            raise unreadable(path, error) from error

    def connection(self, sample_id: str) -> apsw.Connection:
        """Return this thread's connection to a sample's database; KeyError where there is no such sample."""
        return self.database(sample_id).connection

    def database(self, sample_id: str) -> SampleDatabase:
        """Return this thread's open database of a sample; KeyError where there is no such sample."""
        if sample_id not in self.paths:
            raise KeyError(sample_id)
        return self._databases.get().get(sample_id)

    def with_room(self, open_file: Callable[[], T], kept: str) -> T:
        """See `OpenDatabases.with_room`."""
        return self._databases.get().with_room(open_file, kept)

    def close(self) -> None:
        """Close every connection of this process."""
        self._databases.close()


class Connections(Mapping[str, apsw.Connection]):
    """{sample ID: this thread's connection}, with the window database attached to each as `windows`.

    `SELECT ... FROM sequences JOIN windows.window_mappings ON contig_id = sequence_id` runs on every one of them. Where there
    are more samples than file descriptors allow, taking one may close another.
    """

    def __init__(self, reader: SequenceReader, window_db_path: str | os.PathLike[str]) -> None:
        self._reader = reader
        self._window_db_path = Path(window_db_path)

    def __getitem__(self, sample_id: str) -> apsw.Connection:
        database = self._reader.database(sample_id)
        if not database.has_windows:
            self._reader.with_room(
                lambda: attach_read_only(database.connection, self._window_db_path, "windows"), sample_id
            )
            database.has_windows = True
        return database.connection

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.paths)

    def __len__(self) -> int:
        return len(self._reader.paths)
