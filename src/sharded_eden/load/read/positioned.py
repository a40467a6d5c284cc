"""Addresses -> bases, by positioned reads of sequence databases: one request per window.

Input: addresses, and memory to write to. Output: bases. Cost: one `preadv` per window, independent of the length of its contig.
SQLite is not used. If a window continues on overflow pages, the same read gets the page pointers between its bases.

All windows of a batch are requested before the first wait. A read with `RWF_NOWAIT` returns what is in the page cache. The rest
is announced to the kernel (`posix_fadvise`, `POSIX_FADV_WILLNEED`) and read at the end of the batch. So warm data need no
second call. Source: preadv2(2), posix_fadvise(2).

After a batch that waited for the disk, `cold_batches` is above 0; callers then `announce` windows of later batches.

If a file changes while it is read, `DatabaseError` is raised: size and mtime are compared after each batch, and the page
pointers must equal those in the index. `sharded_eden.load.read.unchanged` says which changes are not detected.

SQLite's locks: closing a descriptor drops the POSIX locks that this process holds on the file (howtocorrupt.html, section 2.2).
Only databases without -wal and -journal have addresses, and SQLite opens those as immutable, without locks.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError
from sharded_eden.format.commands import verify_command
from sharded_eden.format.index import FileIdentity
from sharded_eden.load.read.connections import connection_budget
from sharded_eden.load.read.plan import Addresses, Part, Planner, Request
from sharded_eden.load.read.unchanged import changed_error

COLD_BATCHES = 1024
"""Batches for which data count as cold after one that waited, or after an announcement of what is not in the page cache."""
WAIT_SECONDS = 20e-6
"""A read that takes longer has waited, where the file system cannot tell: from the page cache it takes about 3 µs."""


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
        self._files: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        self._limit = max(8, connection_budget())
        self._keeps_all = len(paths) <= self._limit
        self._announces = read_ahead and hasattr(os, "posix_fadvise")
        self._flags = os.RWF_NOWAIT if self._announces and hasattr(os, "RWF_NOWAIT") else 0
        self._planner = Planner(page_bytes, [each.size_bytes for each in expected])
        self.cold_batches = 0

    def announce(self, requests: Sequence[Request]) -> None:
        """Tell the kernel what later batches read. A file that cannot be opened raises its error in `read`, not here.

        If the first window is in the page cache, nothing is announced, and the data count as warm.

        Args:
            requests: see `read`; where the bases go does not matter.
        """
        scratch = memoryview(bytearray(max((to + bases for *_, bases, to in requests), default=0)))
        looked = False
        with self._lock:
            for request in requests:
                try:
                    descriptor = self._descriptor(request[0], {})
                except DatabaseError:
                    continue
                self._planner.clear()
                parts = self._planner.parts(scratch, descriptor, request)
                if self._flags and not looked:
                    looked = True
                    if self._has(parts[0], scratch):
                        self.cold_batches = 0
                        return
                    self.cold_batches = COLD_BATCHES
                for _, position, size_bytes, _ in parts:
                    os.posix_fadvise(descriptor, position, size_bytes, os.POSIX_FADV_WILLNEED)

    def _has(self, part: Part, scratch: memoryview) -> bool:
        """Return whether the page cache holds what a read needs; page pointers count as bases."""
        try:
            return os.preadv(part[0], (scratch[: part[2]],), part[1], self._flags) == min(part[2], len(scratch))
        except OSError:
            return False

    def read(self, requests: Sequence[Request], memory: memoryview) -> None:
        """Read bases into memory.

        Args:
            requests: the windows; all have addresses.
            memory: bytes; the bases are written here.

        Raises:
            DatabaseError: a file cannot be read, or is not the one that was indexed.
        """
        with self._lock:
            for first in range(0, len(requests), self._limit):
                used: dict[int, int] = {}
                parts: list[Part] = []
                self._planner.clear()
                for request in requests[first : first + self._limit]:
                    descriptor = used.get(request[0], -1)
                    if descriptor < 0:
                        descriptor = self._descriptor(request[0], used)
                    parts += self._planner.parts(memory, descriptor, request)
                self._read(parts, used)

    def read_many(
        self, addresses: Addresses, bases: NDArray[np.int64], to: NDArray[np.int64], memory: memoryview
    ) -> None:
        """Read bases into memory; see `Planner.parts_of_many` for the arguments, and `read` for the errors."""
        with self._lock:
            for first in range(0, len(to), self._limit):
                some = slice(first, first + self._limit)
                used: dict[int, int] = {}
                for sample in set(addresses.sample[some].tolist()):
                    self._descriptor(sample, used)
                self._planner.clear()
                parts = self._planner.parts_of_many(memory, used, addresses.slice(some), bases[some], to[some])
                self._read(parts, used)

    def _read(self, parts: Sequence[Part], used: Mapping[int, int]) -> None:
        """Carry out reads, and check the files in use."""
        late: list[Part] = []
        flags, preadv = self._flags, os.preadv
        for part in parts:
            descriptor, position, size_bytes, buffers = part
            if flags:
                try:
                    if preadv(descriptor, buffers, position, flags) == size_bytes:
                        continue
                except BlockingIOError:
                    pass
                except OSError as error:
                    if error.errno == errno.EOPNOTSUPP:
                        self._flags = flags = 0  # a file system that cannot tell: everything is announced
            if self._announces:
                os.posix_fadvise(descriptor, position, size_bytes, os.POSIX_FADV_WILLNEED)
            late.append(part)
        if late:
            began = perf_counter()
            for part in late:
                self._wait_for(*part)
            if self._announces and (flags or perf_counter() - began > WAIT_SECONDS * len(late)):
                self.cold_batches = COLD_BATCHES
        if self.cold_batches:
            self.cold_batches -= 1
        for sample, descriptor in used.items():
            found, expected = os.fstat(descriptor), self._expected[sample]
            if found.st_mtime_ns != expected.mtime_ns or found.st_size != expected.size_bytes:
                raise changed_error(self._paths[sample], expected, FileIdentity.of(found))
        if not self._planner.pointers_are_as_named():
            raise self._refused(next(iter(used)), "the pages of a contig are not where the index says", len(used) - 1)

    def _wait_for(self, descriptor: int, position: int, size_bytes: int, buffers: Sequence[Any]) -> None:
        try:
            got = os.preadv(descriptor, buffers, position)
            problem = "" if got == size_bytes else f"it ends at byte {position + got:,}, inside a window"
        except OSError as error:
            problem = f"it cannot be read ({error.strerror})"
        if problem:
            raise self._refused(next(sample for sample, each in self._files.items() if each == descriptor), problem)

    def _descriptor(self, sample: int, used: dict[int, int]) -> int:
        """Return the descriptor of a sequence database, opened where it is not open, and add it to those in use."""
        files = self._files
        descriptor = files.get(sample)
        if descriptor is None:
            if len(files) >= self._limit:
                self._close_unused(used)
            descriptor = files[sample] = self._opened(sample, used)
        elif not self._keeps_all:
            files.move_to_end(sample)
        used[sample] = descriptor
        return descriptor

    def _opened(self, sample: int, used: dict[int, int]) -> int:
        path = self._paths[sample]
        assert path is not None  # noqa: S101 - a sample without a path has no addresses
        try:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE} or not self._close_unused(used):
                    raise
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._refused(sample, f"it cannot be opened ({error.strerror})") from error
        found = FileIdentity.of(os.fstat(descriptor))
        if not found.is_same_file(self._expected[sample]):
            os.close(descriptor)
            raise changed_error(path, self._expected[sample], found)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead beyond a window
        return descriptor

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

    def close(self) -> None:
        """Close all files, once no thread reads them: a number that is closed may be that of another file a moment later."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])
