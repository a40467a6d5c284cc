"""contig ID -> its open contig: a pool of sequence databases for each thread.

Input: a contig ID. Output: an open contig. File descriptors limit the number of open databases, memory limits the number of
open handles of long contigs. At a limit, the least recently used one is closed. Cost: a dictionary lookup for an open contig,
2 µs for another contig of an open database.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

import apsw

from sharded_eden.errors import DatabaseError, MissingDatabase, UsageError
from sharded_eden.format.schema import extract_sample_id
from sharded_eden.format.sqlite import READ_ERRORS, IOMode, attach_read_only, descriptors_are_exhausted, unreadable
from sharded_eden.load.read.connections import PAUSES, PerThread, alive, budgeting, connection_budget
from sharded_eden.load.read.sequences import Contig, ReadMode, SampleDatabase
from sharded_eden.load.read.unchanged import Unchanged

T = TypeVar("T")

MAX_LONG_HANDLES = 1024
MAX_PAGE_LIST_BYTES = 32 << 20
"""SQLite keeps 4 bytes for each overflow page of an open handle: 146 KB for a contig of 150 Mb."""


class LongContigs(OrderedDict[str, Contig]):
    """The handles that stay open, limited in number and in bytes of page lists; the least recently used is closed first."""

    def __init__(self) -> None:
        super().__init__()
        self._page_list_bytes = 0

    def keep(self, contig_id: str, contig: Contig) -> None:
        """Add a handle, and close the least recently used ones beyond the limits."""
        self[contig_id] = contig
        self._page_list_bytes += contig.page_list_bytes
        while len(self) > 1 and (len(self) > MAX_LONG_HANDLES or self._page_list_bytes > MAX_PAGE_LIST_BYTES):
            _, freed = self.popitem(last=False)
            self._page_list_bytes -= freed.page_list_bytes

    def forget(self, sample_id: str) -> None:
        """Close every handle of a database that is about to be closed."""
        for contig_id in [key for key, contig in self.items() if contig.sample_id == sample_id]:
            self._page_list_bytes -= self.pop(contig_id).page_list_bytes


_pools: weakref.WeakValueDictionary[int, OpenDatabases] = weakref.WeakValueDictionary()

TRIM_EVERY = 128
"""Databases opened between two calls of `return_freed_memory`."""


class OpenDatabases:
    """The sequence databases that one thread has open; beyond `limit` the least recently used one is closed."""

    def __init__(self, reader: SequenceReader) -> None:
        self._reader = reader
        self._open: OrderedDict[str, SampleDatabase] = OrderedDict()
        self.long_contigs = LongContigs()
        self._pid = os.getpid()
        with budgeting:
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
            if len(self._open) % TRIM_EVERY == 0:
                return_freed_memory()
        elif len(self._reader.paths) > self.limit:
            self._open.move_to_end(sample_id)
        return database

    def _opened(self, sample_id: str) -> SampleDatabase:
        reader = self._reader
        reader.check_unchanged([sample_id])
        return self.with_room(lambda: SampleDatabase(sample_id, reader.paths[sample_id], reader.io, reader.read_with))

    def with_room(self, open_file: Callable[[], T], kept: str = "") -> T:
        """Return the result of `open_file`; if no file descriptor is free, close other databases first.

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
                # Another thread may have freed the last descriptor since: the file is not at fault.
                pause = next(pauses, None)
                if pause is None or not isinstance(error.__cause__, apsw.CantOpenError):
                    raise
                time.sleep(pause)

    def _make_room(self, kept: str) -> bool:
        """Close half of the open databases if no file descriptor is free; return whether that freed any."""
        others = [sample_id for sample_id in self._open if sample_id != kept]
        if not others or not descriptors_are_exhausted():
            return False
        for sample_id in others[: -(-len(others) // 2)]:
            self._close(self._open.pop(sample_id))
        self.limit = max(1, len(self._open))
        return True

    def _close(self, database: SampleDatabase) -> None:
        self.long_contigs.forget(database.sample_id)
        database.connection.close(True)  # otherwise a handle that failed to read would raise its error again

    def close(self) -> None:
        """Close them all."""
        while self._open:
            self._close(self._open.popitem()[1])


def return_freed_memory() -> None:
    """Return freed memory to the system, where the C library can (glibc).

    To open a database SQLite takes 90 KB more than it keeps. The allocator cannot use these gaps again, so a thousand databases
    would use as much memory as two thousand.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class SequenceReader:
    """Reads contigs of many sequence databases, with separate connections for each thread and process.

    Args:
        paths: {sample ID: sequence database}.
        io: see `sharded_eden.format.sqlite.open_read_only`.
        read_with: `blob`, `substr`, or `auto` for BLOB I/O wherever a database allows it.

    Raises:
        DatabaseError: a database cannot be opened, or has no table `sequences(contig_id, nt_sequence)`.
        UsageError: `read_with` is not one of the three.
    """

    def __init__(self, paths: Mapping[str, Path], *, io: IOMode = "auto", read_with: ReadMode = "auto") -> None:
        if read_with not in get_args(ReadMode):
            raise UsageError(f"read_with must be 'auto', 'blob' or 'substr', not {read_with!r}")
        self.paths = dict(paths)
        self.unchanged = Unchanged(self.paths)
        self.only_sample = next(iter(self.paths)) if len(self.paths) == 1 else None
        """The sample of all contigs, whatever their IDs; None where IDs name their samples."""
        self.io: IOMode = io
        self.read_with: ReadMode = read_with
        self._databases = PerThread(partial(OpenDatabases, self), OpenDatabases.close)

    def open_all(self, but: AbstractSet[str]) -> None:
        """Open every database but some, within the limit of file descriptors, in this thread."""
        opened = self._databases.get()
        for sample_id in itertools.islice((each for each in self.paths if each not in but), opened.limit):
            opened.get(sample_id)

    def sample_of(self, contig_id: str) -> str:
        """Return the sample of a contig: the one in its ID, or the only one."""
        return self.only_sample or extract_sample_id(contig_id)

    def contig(self, contig_id: str) -> Contig | None:
        """Return an open contig, valid until the next call in this thread; None if the database does not hold it.

        Raises:
            MissingDatabase: its sample has no database.
            DatabaseError: SQLite cannot read the database.
        """
        opened = self._databases.get()
        found = opened.long_contigs.get(contig_id)
        if found is not None:
            opened.long_contigs.move_to_end(contig_id)
            return found
        sample_id = self.only_sample or extract_sample_id(contig_id)
        if sample_id not in self.paths:
            raise MissingDatabase(
                f"contig {contig_id!r} belongs to sample {sample_id!r}, which has no sequence database"
            )
        try:
            found = opened.get(sample_id).open_contig(contig_id)
        except READ_ERRORS as error:
            raise unreadable(self.paths[sample_id], error) from error
        if found is not None and found.page_list_bytes:
            opened.long_contigs.keep(contig_id, found)
        return found

    def check_unchanged(self, samples: Iterable[str]) -> None:
        """Raise an error for sequence databases that have changed since this reader was made.

        Raises:
            DatabaseError: names the file and both identities.
        """
        self.unchanged.check(samples)

    def connection(self, sample_id: str) -> apsw.Connection:
        """Return this thread's connection to a sample's database; KeyError if the sample has none."""
        return self.database(sample_id).connection

    def database(self, sample_id: str) -> SampleDatabase:
        """Return this thread's open database of a sample; KeyError if the sample has none."""
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
