"""Addresses -> bases, by positioned reads of sequence databases: one request a window.

Enters: addresses, and memory to write to. Leaves: bases. Costs one `preadv` a window, whatever the length of its contig; SQLite
is not asked. A window that continues on overflow pages is read together with the page pointers between its bases.

All windows of a batch are asked for before the first is waited for. A read with `RWF_NOWAIT` takes what the page cache holds;
what it does not hold is announced to the kernel (`posix_fadvise`, `POSIX_FADV_WILLNEED`) and read at the end of the batch. Warm
data therefore cost no further call. Source: preadv2(2), posix_fadvise(2).

After a batch that waited for the disk, `cold_batches` is above 0: callers then `announce` windows of later batches.

A file that is changed while it is read raises `DatabaseError`: size and mtime are compared after each batch, and the page
pointers must name the pages that the index proved. See `sharded_eden.load.read.unchanged` for what remains.

SQLite's locks: closing a descriptor drops the POSIX locks that this process holds on the file (howtocorrupt.html, section 2.2).
Only databases without -wal and -journal have addresses, and SQLite opens those as immutable, without locks.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from struct import unpack_from
from time import perf_counter
from typing import Any

from sharded_eden.errors import DatabaseError
from sharded_eden.format.commands import verify_command
from sharded_eden.format.index import FileIdentity
from sharded_eden.load.read.connections import connection_budget
from sharded_eden.load.read.unchanged import changed_error

POINTER_BYTES = 4
"""An overflow page begins with the number of the next one."""
LOCK_BYTE = 1 << 30
"""SQLite never uses the page that holds this byte. Source: https://www.sqlite.org/fileformat2.html, section 1.3.11."""
MAX_BUFFERS = 512
"""Buffers of one `preadv`, below IOV_MAX = 1,024."""

COLD_BATCHES = 1024
"""Batches for which data count as cold after one that waited, or after an announcement of what is not in the page cache."""
WAIT_SECONDS = 20e-6
"""A read that takes longer has waited, where the file system cannot tell: from the page cache it takes about 3 µs."""

SLOTS_AT_ONCE = 256
"""Page pointers for which memory is taken at once."""

Part = tuple[int, int, int, Sequence[Any]]
"""One read: descriptor, file offset, bytes, and the buffers that take them."""

Request = tuple[int, int, int, int, int, int, int, int]
"""The first six of an address (see `sharded_eden.load.locate.addresses`), bases to read, and where the first one goes."""


class PositionedReader:
    """Reads bases through file descriptors of one thread; beyond a limit the least recently used ones are closed.

    Args:
        paths: the sequence databases; None for those that are not read here.
        expected: what each file was when it was indexed.
        page_bytes: page size of each.
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
        self._paths, self._expected, self._page_bytes = paths, expected, page_bytes
        self._files: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        self._limit = max(8, connection_budget())
        self._keeps_all = len(paths) <= self._limit
        self._announces = read_ahead and hasattr(os, "posix_fadvise")
        self._flags = os.RWF_NOWAIT if self._announces and hasattr(os, "RWF_NOWAIT") else 0
        self._pointers: list[bytearray] = []
        self._pointer_slots: list[memoryview] = []  # each of 4 bytes
        self._named_pages: list[int] = []
        self.cold_batches = 0

    def announce(self, requests: Sequence[Request]) -> None:
        """Tell the kernel what later batches read. What cannot be opened raises its error when it is read, not here.

        The first one is looked for in the page cache: if it is there, nothing is announced, and the data count as warm.

        Args:
            requests: see `read`; where the bases go does not matter.
        """
        scratch = memoryview(bytearray(max((bases for *_, bases, _ in requests), default=0)))
        looked = False
        with self._lock:
            for sample, at, local, overflow, start, length, bases, _ in requests:
                try:
                    descriptor = self._descriptor(sample, {})
                except DatabaseError:
                    continue
                self._named_pages.clear()
                parts: list[Part] = [(descriptor, at + start, bases, ())]
                if start + bases > local:
                    parts = self._parts(scratch, descriptor, sample, at, local, overflow, start, length, bases, 0)
                if self._flags and not looked:
                    looked = True
                    if self._has(parts[0], scratch):
                        self.cold_batches = 0
                        return
                    self.cold_batches = COLD_BATCHES
                for _, position, size_bytes, _ in parts:
                    os.posix_fadvise(descriptor, position, size_bytes, os.POSIX_FADV_WILLNEED)

    def _has(self, part: Part, scratch: memoryview) -> bool:
        """Tell whether the page cache holds what a read needs; its page pointers count as bases."""
        try:
            return os.preadv(part[0], (scratch[: part[2]],), part[1], self._flags) == min(part[2], len(scratch))
        except OSError:
            return False

    def read(self, requests: Sequence[Request], memory: memoryview) -> None:
        """Read bases into memory.

        Args:
            requests: what to read; all of it has addresses.
            memory: bytes, written.

        Raises:
            DatabaseError: a file cannot be read, or is not the one that was indexed.
        """
        with self._lock:
            for first in range(0, len(requests), self._limit):
                self._read(requests[first : first + self._limit], memory)

    def _read(self, requests: Sequence[Request], memory: memoryview) -> None:
        used: dict[int, int] = {}
        late: list[Part] = []
        self._named_pages.clear()
        flags, preadv = self._flags, os.preadv
        for sample, at, local, overflow, start, length, bases, to in requests:
            descriptor = used.get(sample, -1)
            if descriptor < 0:
                descriptor = self._descriptor(sample, used)
            if start + bases > local:
                parts = self._parts(memory, descriptor, sample, at, local, overflow, start, length, bases, to)
            else:
                parts = [(descriptor, at + start, bases, (memory[to : to + bases],))]
            for part in parts:
                if flags:
                    try:
                        if preadv(part[0], part[3], part[1], flags) == part[2]:
                            continue
                    except BlockingIOError:
                        pass
                    except OSError as error:
                        if error.errno == errno.EOPNOTSUPP:
                            self._flags = flags = 0  # a file system that cannot tell: everything is announced
                if self._announces:
                    os.posix_fadvise(part[0], part[1], part[2], os.POSIX_FADV_WILLNEED)
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
            found = os.fstat(descriptor)
            expected = self._expected[sample]
            if found.st_mtime_ns != expected.mtime_ns or found.st_size != expected.size_bytes:
                raise changed_error(self._paths[sample], expected, FileIdentity.of(found))
        count = len(self._named_pages)
        if count:
            pointers = b"".join(self._pointers[: -(-count // SLOTS_AT_ONCE)])
            if list(unpack_from(f">{count}I", pointers)) != self._named_pages:
                raise self._refused(
                    next(iter(used)), "the pages of a contig are not where the index says", len(used) - 1
                )

    def _add_slots(self) -> None:
        self._pointers.append(bytearray(SLOTS_AT_ONCE * POINTER_BYTES))
        chunk = memoryview(self._pointers[-1])
        self._pointer_slots += [chunk[k : k + POINTER_BYTES] for k in range(0, len(chunk), POINTER_BYTES)]

    def _parts(
        self,
        memory: memoryview,
        descriptor: int,
        sample: int,
        at: int,
        local: int,
        overflow: int,
        start: int,
        length: int,
        bases: int,
        to: int,
    ) -> list[Part]:
        """Return the reads of a window that lies on overflow pages, at least in part."""
        parts: list[Part] = []
        end = to + bases
        past = start - local
        if past < 0:
            parts.append((descriptor, at + start, -past, (memory[to : to - past],)))
            to, past = to - past, 0
        page_bytes = self._page_bytes[sample]
        room = page_bytes - POINTER_BYTES
        number = past // room
        rest = past - number * room
        page = overflow + number
        last = overflow + (length - local - 1) // room
        lock_page = LOCK_BYTE // page_bytes + 1
        if overflow < lock_page <= last:
            last += 1
            if page >= lock_page:
                page += 1
        after = to + room - rest
        if after >= end:
            parts.append((descriptor, (page - 1) * page_bytes + POINTER_BYTES + rest, end - to, (memory[to:end],)))
            return parts
        buffers = [memory[to:after]]
        offset = (page - 1) * page_bytes + POINTER_BYTES + rest
        named, slots = self._named_pages, self._pointer_slots
        while after < end:
            page += 1
            if page == lock_page or len(buffers) > MAX_BUFFERS:
                parts.append((descriptor, offset, _size(buffers), buffers))
                if page == lock_page:
                    page += 1
                offset, buffers = (page - 1) * page_bytes, []
            if len(named) == len(slots):
                self._add_slots()
            until = after + room
            buffers += slots[len(named)], memory[after : until if until < end else end]
            named.append(page + 1 if page != last else 0)
            if page + 1 == lock_page and page != last:
                named[-1] += 1
            after = until
        parts.append((descriptor, offset, _size(buffers), buffers))
        return parts

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


def _size(buffers: Sequence[memoryview]) -> int:
    return sum(map(len, buffers))
