"""Addresses -> bases, by positioned reads of sequence databases: one request per window.

Input: addresses, and memory to write to. Output: bases. Cost: one `preadv` per window, independent of the length of its contig.
SQLite is not used. If a window continues on overflow pages, the same read gets the page pointers between its bases.

All windows of a batch are requested before the first wait. Reads with `RWF_NOWAIT` return what is in the page cache, up to the
first that finds nothing. That one and all after it are announced to the kernel (`posix_fadvise`, `POSIX_FADV_WILLNEED`) and
then read. So warm data need no second call, and cold data one call that fails for each batch. Source: preadv2(2),
posix_fadvise(2).

After a batch that waited for the disk though it was announced, `cold_batches` is above 0; callers then `announce` windows of
later batches. The windows of a large batch on a fast disk arrive while others are announced: to announce them earlier costs
more than it saves.

If a file changes while it is read, `DatabaseError` is raised: size and mtime are compared after each batch, and the page
pointers must equal those in the index. `sharded_eden.load.read.unchanged` says which changes are not detected.

SQLite's locks: closing a descriptor drops the POSIX locks that this process holds on the file (howtocorrupt.html, section 2.2).
Only databases without -wal and -journal have addresses, and SQLite opens those as immutable, without locks.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from time import perf_counter, sleep

from sharded_eden.errors import DatabaseError
from sharded_eden.format.commands import verify_command
from sharded_eden.format.index import FileIdentity
from sharded_eden.load.read.connections import PAUSES, alive, budgeting, connection_budget
from sharded_eden.load.read.plan import Planner, Reads, Request
from sharded_eden.load.read.unchanged import changed_error

NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}
LEAST_FILES = 8
"""Files that a reader may keep open, however many readers there are: with fewer, each window opens one."""
COLD_BATCHES = 1024
"""Batches for which data count as cold after one that waited. Then another one shows whether it is still so."""
WAIT_SECONDS = 20e-6
"""A batch whose reads take longer than this on average has waited: from the page cache, one takes 3 to 10 µs."""


_readers: weakref.WeakValueDictionary[int, PositionedReader] = weakref.WeakValueDictionary()


class NoDescriptor(DatabaseError):
    """The process has no free file descriptor."""


class PositionedReader:
    """Reads bases through the file descriptors of one thread. At a limit, it closes the least recently used ones.

    Args:
        paths: the sequence databases; None for those that are not read here.
        expected: the identity of each file when it was indexed.
        page_bytes: the page size of each, in bytes.
        read_ahead: announce windows that are not in the page cache.
    """

    def __init__(
        self,
        paths: Sequence[Path | None],
        expected: Sequence[FileIdentity],
        page_bytes: Sequence[int],
        *,
        read_ahead: bool,
    ) -> None:
        self._paths, self._expected = paths, expected
        self._pid = os.getpid()
        self._files: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        with budgeting:
            promised = sum(min(each._limit, len(each._paths)) - len(each._files) for each in self._others())
            self._limit: int = max(LEAST_FILES, connection_budget(promised))
            _readers[id(self)] = self
        self._keeps_all = len(paths) <= self._limit
        self._announces = read_ahead and hasattr(os, "posix_fadvise")
        self._flags = os.RWF_NOWAIT if self._announces and hasattr(os, "RWF_NOWAIT") else 0
        self._planner = Planner(page_bytes)
        self.cold_batches = 0

    def announce(self, requests: Sequence[Request]) -> None:
        """Tell the kernel what later batches read. A file that cannot be opened raises its error in `read`, not here.

        If the first window is in the page cache, nothing is announced, and the data count as warm.

        Args:
            requests: see `read`; where the bases go does not matter.
        """
        scratch = memoryview(bytearray(max((to + bases for *_, bases, to in requests), default=0)))
        with self._lock:
            used: dict[int, int] = {}
            missing = set()
            for sample in {request[0] for request in requests}:
                try:
                    self._descriptor(sample, used, waits=False)
                except DatabaseError:
                    missing.add(sample)
            reads = self._planner.plan(
                [request for request in requests if request[0] not in missing] if missing else requests, scratch, used
            )
            if self._flags and reads.sizes and self._has_first_of(reads):
                self.cold_batches = 0
                return
            self._will_need(reads, range(len(reads.sizes)))

    def _has_first_of(self, reads: Reads) -> bool:
        """Return whether the page cache holds what the first read needs."""
        try:
            return os.preadv(reads.descriptors[0], reads.buffers[0], reads.offsets[0], self._flags) == reads.sizes[0]
        except OSError:
            return False

    @staticmethod
    def _will_need(reads: Reads, numbers: Sequence[int]) -> None:
        """Announce reads to the kernel."""
        descriptors, _, offsets, sizes = reads
        advise, advice = os.posix_fadvise, os.POSIX_FADV_WILLNEED
        for number in numbers:
            advise(descriptors[number], offsets[number], sizes[number], advice)

    def read(self, requests: Sequence[Request], memory: memoryview) -> None:
        """Read bases into memory.

        Args:
            requests: the windows; all have addresses.
            memory: bytes; the bases are written here.

        Raises:
            DatabaseError: a file cannot be read, or is not the one that was indexed.
        """
        with self._lock:
            first, most = 0, self._limit
            while first < len(requests):
                some = requests if len(requests) <= most else requests[first : first + most]
                used: dict[int, int] = {}
                files = self._files if self._keeps_all else {}
                try:
                    for sample in {request[0] for request in some}:
                        if sample in files:
                            used[sample] = files[sample]
                        else:
                            self._descriptor(sample, used)
                except NoDescriptor:
                    if len(some) == 1:
                        raise
                    most = len(some) // 2  # fewer windows need fewer files at a time
                    continue
                self._read(self._planner.plan(some, memory, used), used)
                first += len(some)

    def _read(self, reads: Reads, used: Mapping[int, int]) -> None:
        """Carry out reads, and check the files in use."""
        got: list[int] = []
        if self._flags:
            try:
                for size_bytes in map(os.preadv, *reads[:3], repeat(self._flags)):
                    got.append(size_bytes)
            except BlockingIOError:
                pass
            except OSError as error:  # others are raised again below
                if error.errno == errno.EOPNOTSUPP:
                    self._flags = 0  # a file system that cannot tell: everything is announced
        if got != reads.sizes:
            self._read_late(reads, got)
        if self.cold_batches:
            self.cold_batches -= 1
        for sample, descriptor in used.items():
            found, expected = os.fstat(descriptor), self._expected[sample]
            if found.st_mtime_ns != expected.mtime_ns or found.st_size != expected.size_bytes:
                raise changed_error(self._paths[sample], expected, FileIdentity.of(found))
        if not self._planner.pointers_are_as_named():
            raise self._refused(next(iter(used)), "the pages of a contig are not where the index says", len(used) - 1)

    def _read_late(self, reads: Reads, got: Sequence[int]) -> None:
        """Carry out those reads that did not get as many bytes as they need."""
        late = [number for number, size_bytes in enumerate(got) if size_bytes != reads.sizes[number]]
        late += range(len(got), len(reads.sizes))
        if self._announces:
            self._will_need(reads, late)
        began = perf_counter()
        for number in late:
            try:
                size_bytes = os.preadv(reads.descriptors[number], reads.buffers[number], reads.offsets[number])
            except OSError as error:
                raise self._unread(reads.descriptors[number], f"it cannot be read ({error.strerror})") from error
            if size_bytes != reads.sizes[number]:
                end = reads.offsets[number] + size_bytes
                raise self._unread(reads.descriptors[number], f"it ends at byte {end:,}, inside a window")
        if self._announces and perf_counter() - began > WAIT_SECONDS * len(late):
            self.cold_batches = COLD_BATCHES

    def _unread(self, descriptor: int, problem: str) -> DatabaseError:
        return self._refused(next(sample for sample, each in self._files.items() if each == descriptor), problem)

    def _descriptor(self, sample: int, used: dict[int, int], *, waits: bool = True) -> int:
        """Return the descriptor of a sequence database, opened where it is not open, and add it to those in use.

        Args:
            sample: the number of the database.
            used: {number: descriptor} of those that stay open.
            waits: without a free descriptor, take those of idle readers, or wait for one; else open no more than the limit.
        """
        files = self._files
        descriptor = files.get(sample)
        if descriptor is None:
            if len(files) >= self._limit and not self._close_unused(used) and not waits:
                raise NoDescriptor(f"{self._paths[sample]}: {len(files):,} files are open, which is the limit")
            descriptor = files[sample] = self._opened(sample, used, waits)
        elif not self._keeps_all:
            files.move_to_end(sample)
        used[sample] = descriptor
        return descriptor

    def _opened(self, sample: int, used: dict[int, int], waits: bool) -> int:
        path = self._paths[sample]
        assert path is not None  # noqa: S101 - a sample without a path has no addresses
        try:
            descriptor = self._open(path, used, waits)
        except OSError as error:
            if error.errno in NO_DESCRIPTOR:
                raise NoDescriptor(
                    f"{path}: it cannot be opened: the process has no free file descriptor ({error.strerror}). Raise the "
                    "limit (ulimit -n), or read from fewer threads"
                ) from error
            raise self._refused(sample, f"it cannot be opened ({error.strerror})") from error
        found = FileIdentity.of(os.fstat(descriptor))
        if not found.is_same_file(self._expected[sample]):
            os.close(descriptor)
            raise changed_error(path, self._expected[sample], found)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead beyond a window
        return descriptor

    def _open(self, path: Path, used: dict[int, int], waits: bool) -> int:
        """Open a file; if no descriptor is free, close files of this reader, or of one that is idle, first."""
        pauses = iter(PAUSES)
        while True:
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno not in NO_DESCRIPTOR or not waits:
                    raise
                if self._make_room(used):
                    continue
                if (pause := next(pauses, None)) is None:
                    raise
                sleep(pause)

    def _make_room(self, used: dict[int, int]) -> bool:
        """Close files of this reader, or else of an idle reader of another thread; return whether there was one."""
        if self._close_unused(used):
            self._limit, self._keeps_all = max(LEAST_FILES, len(self._files)), False
            return True
        for other in self._others():
            if other._lock.acquire(blocking=False):
                try:
                    if other._close_unused({}):
                        return True
                finally:
                    other._lock.release()
        return False

    def _others(self) -> list[PositionedReader]:
        """Return the readers of other threads of this process."""
        return [each for each in alive(_readers) if each is not self and each._pid == self._pid]

    def _close_unused(self, used: dict[int, int]) -> bool:
        """Close the least recently used half of the files that this batch does not need; return whether there was one."""
        unused = [sample for sample in self._files if sample not in used]
        for sample in unused[: -(-len(unused) // 2)]:
            os.close(self._files.pop(sample))
        return bool(unused)

    def _refused(self, sample: int, what: str, others: int = 0) -> DatabaseError:
        path = self._paths[sample]
        folder = Path("SEQDB") if path is None else path.parent.parent
        one_of = f" (or one of {others} others read with it)" if others > 0 else ""
        return DatabaseError(
            f"{path}{one_of}: {what}. Database files must not be written while they are read. Check them: "
            f"{verify_command(folder)}"
        )

    def forget(self, sample: int) -> None:
        """Close the file of a sequence database: another one may be at its path."""
        with self._lock:
            descriptor = self._files.pop(sample, None)
            if descriptor is not None:
                os.close(descriptor)

    def close(self) -> None:
        """Close all files, once no thread reads them: a number that is closed may be that of another file a moment later."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def __del__(self, pid: Callable[[], int] = os.getpid) -> None:
        # Called when its thread has ended. A forked child does not close the files of its parent.
        if getattr(self, "_pid", -1) == pid():
            self.close()
