"""Addresses -> bases, by positioned reads of sequence databases: one request a window.

Enters: addresses, and memory to write to. Leaves: bases. Costs one `preadv` a window, whatever the length of its contig; SQLite
is not asked. A window that continues on overflow pages is read together with the page pointers between its bases.

All windows of a batch are asked for before the first is waited for. A read with `RWF_NOWAIT` takes what the page cache holds;
what it does not hold is announced to the kernel (`posix_fadvise`, `POSIX_FADV_WILLNEED`) and read at the end of the batch. Warm
data therefore cost no further call. Source: preadv2(2), posix_fadvise(2).

A file that is changed while it is read raises `DatabaseError`: size and mtime are compared after each batch, and the page
pointers must name the pages that the index proved. See `sharded_eden.load.unchanged` for what remains.

SQLite's locks: closing a descriptor drops the POSIX locks that this process holds on the file (howtocorrupt.html, section 2.2).
Only databases without -wal and -journal have addresses, and SQLite opens those as immutable, without locks.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from struct import unpack_from
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError
from sharded_eden.format.commands import verify_command
from sharded_eden.format.index import FileIdentity
from sharded_eden.load.connections import connection_budget
from sharded_eden.load.unchanged import changed_error

FEW = 8
"""So few windows are read faster without NumPy."""

POINTER_BYTES = 4
"""An overflow page begins with the number of the next one."""
LOCK_BYTE = 1 << 30
"""SQLite never uses the page that holds this byte. Source: https://www.sqlite.org/fileformat2.html, section 1.3.11."""
MAX_BUFFERS = 512
"""Buffers of one `preadv`, below IOV_MAX = 1,024."""

SLOTS_AT_ONCE = 256
"""Page pointers for which memory is taken at once."""

Part = tuple[int, int, int, Sequence[Any]]
"""One read: descriptor, file offset, bytes, and the buffers that take them."""

Requests = tuple[NDArray[np.int64], ...]
"""sample, at, local, overflow, start, length of the contig, bases to read, and where the first one goes: (n,) int64 each."""


class PositionedReader:
    """Reads bases through file descriptors of one thread; beyond a limit the least recently used ones are closed.

    Args:
        paths: the sequence databases; None for those that are not read here.
        expected: what each file was when it was indexed.
        page_bytes: page size of each.
        read_ahead: announce the windows of a batch that are not in the page cache.
    """

    def __init__(
        self,
        paths: Sequence[Path | None],
        expected: Sequence[FileIdentity],
        page_bytes: NDArray[np.int64],
        *,
        read_ahead: bool,
    ) -> None:
        self._paths, self._expected, self._page_bytes = paths, expected, page_bytes
        self._files: OrderedDict[int, int] = OrderedDict()
        self._limit = max(8, connection_budget())
        self._keeps_all = len(paths) <= self._limit
        self._announces = read_ahead and hasattr(os, "posix_fadvise")
        self._flags = os.RWF_NOWAIT if self._announces and hasattr(os, "RWF_NOWAIT") else 0
        self._pointers: list[bytearray] = []
        self._pointer_slots: list[memoryview] = []  # each of 4 bytes
        self._named_pages: list[int] = []

    def read(self, requests: Requests, memory: memoryview) -> None:
        """Read bases into memory.

        Args:
            requests: what to read; all of it has addresses.
            memory: bytes, written.

        Raises:
            DatabaseError: a file cannot be read, or is not the one that was indexed.
        """
        for first in range(0, len(requests[0]), self._limit):
            self._read(tuple(column[first : first + self._limit] for column in requests), memory)

    def _read(self, requests: Requests, memory: memoryview) -> None:
        samples: list[int] = requests[0].tolist()
        used: dict[int, int] = dict.fromkeys(samples, -1)
        for sample in used:
            used[sample] = self._descriptor(sample, used)
        descriptors = [used[sample] for sample in samples]
        self._named_pages.clear()
        late: list[Part] = []
        if len(samples) <= FEW:
            for descriptor, *request in zip(descriptors, *(column.tolist() for column in requests), strict=True):
                self._read_cached(self._parts(memory, descriptor, *request), late)
        else:
            self._read_many(requests, descriptors, memory, late)
        for part in late:
            self._wait_for(*part)
        for sample, descriptor in used.items():
            found = os.fstat(descriptor)
            expected = self._expected[sample]
            if found.st_mtime_ns != expected.mtime_ns or found.st_size != expected.size_bytes:
                raise changed_error(self._paths[sample], expected, FileIdentity.of(found))
        count = len(self._named_pages)
        if count:
            pointers = b"".join(self._pointers[: -(-count // SLOTS_AT_ONCE)])
            if list(unpack_from(f">{count}I", pointers)) != self._named_pages:
                raise self._unreadable(
                    descriptors[0], "the pages of a contig are not where the index says", samples=used
                )

    def _read_cached(self, parts: Iterable[Part], late: list[Part]) -> None:
        """Read what the page cache holds; announce the rest, and add it to `late`."""
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

    def _read_many(self, requests: Requests, descriptors: list[int], memory: memoryview, late: list[Part]) -> None:
        """Read windows: what lies in leaf pages first, then what lies on overflow pages."""
        sample, at, local, overflow, start, length, bases, to = requests
        past = start - local
        here = np.minimum(bases, -past)  # in the leaf page; below 1 where nothing is
        self._read_cached(
            [
                (descriptor, position, size, (memory[first : first + size],))
                for descriptor, position, size, first in zip(
                    descriptors, (at + start).tolist(), here.tolist(), to.tolist(), strict=True
                )
                if size > 0
            ],
            late,
        )
        more = (bases > here).nonzero()[0]
        if not len(more):
            return
        if len(more) < len(bases):
            sample, local, overflow, length, bases, to, past, here = (
                column[more] for column in (sample, local, overflow, length, bases, to, past, here)
            )
            descriptors = [descriptors[k] for k in more.tolist()]
        here = np.maximum(here, 0)
        past, bases, to = past + here, bases - here, to + here
        page_bytes = self._page_bytes[sample]
        room = page_bytes - POINTER_BYTES
        number = past // room
        rest = past - number * room
        page = overflow + number
        last = overflow + (length - local - 1) // room
        take = np.minimum(bases, room - rest)
        if ((last >= LOCK_BYTE // page_bytes + 1) | (bases > room * (MAX_BUFFERS // 2))).any():
            zero = np.zeros_like(past)
            columns = (sample, zero, zero, overflow, past, length - local, bases, to)
            for descriptor, *request in zip(descriptors, *(column.tolist() for column in columns), strict=True):
                self._read_cached(self._parts(memory, descriptor, *request), late)
            return
        named, slots = self._named_pages, self._pointer_slots
        parts: list[Part] = []
        pointers = 0
        columns = ((page - 1) * page_bytes + (POINTER_BYTES + rest), take, bases, to, room, page, last)
        for descriptor, offset, size, left, begin, each, page_number, last_page in zip(
            descriptors, *(column.tolist() for column in columns), strict=True
        ):
            end = begin + left
            if size == left:
                parts.append((descriptor, offset, size, (memory[begin:end],)))
                continue
            after, before = begin + size, pointers
            buffers = [memory[begin:after]]
            while after < end:
                if pointers == len(slots):
                    self._add_slots()
                until = after + each if after + each < end else end
                buffers += slots[pointers], memory[after:until]
                after = until
                pointers += 1
            named.extend(range(page_number + 2, page_number + 2 + pointers - before))
            if named[-1] > last_page:
                named[-1] = 0
            parts.append((descriptor, offset, left + POINTER_BYTES * (pointers - before), buffers))
        self._read_cached(parts, late)

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
        """Return the reads of a window, wherever it lies."""
        if not bases:
            return []
        parts: list[Part] = []
        if start < local:
            here = local - start if bases > local - start else bases
            parts.append((descriptor, at + start, here, (memory[to : to + here],)))
            if here == bases:
                return parts
            start, to, bases = local, to + here, bases - here
        page_bytes = int(self._page_bytes[sample])
        room = page_bytes - POINTER_BYTES
        lock_page = LOCK_BYTE // page_bytes + 1
        past = start - local
        page, rest = overflow + past // room, past % room
        last = overflow + (length - local - 1) // room
        if overflow < lock_page <= last:
            page, last = page + (page >= lock_page), last + 1
        take = room - rest if bases > room - rest else bases
        buffers = [memory[to : to + take]]
        position, size_bytes = (page - 1) * page_bytes + POINTER_BYTES + rest, take
        to, bases = to + take, bases - take
        named, slots = self._named_pages, self._pointer_slots
        while bases:
            page += 1
            if page == lock_page or len(buffers) > MAX_BUFFERS:
                parts.append((descriptor, position, size_bytes, buffers))
                page += page == lock_page
                position, size_bytes, buffers = (page - 1) * page_bytes, 0, []
            if len(named) == len(slots):
                self._add_slots()
            buffers.append(slots[len(named)])
            named.append(0 if page == last else page + 1 if page + 1 != lock_page else page + 2)
            take = room if bases > room else bases
            buffers.append(memory[to : to + take])
            to, bases, size_bytes = to + take, bases - take, size_bytes + POINTER_BYTES + take
        parts.append((descriptor, position, size_bytes, buffers))
        return parts

    def _wait_for(self, descriptor: int, position: int, size_bytes: int, buffers: Sequence[Any]) -> None:
        try:
            got = os.preadv(descriptor, buffers, position)
        except OSError as error:
            raise self._unreadable(descriptor, f"it cannot be read ({error.strerror})") from error
        if got != size_bytes:
            raise self._unreadable(descriptor, f"it ends at byte {position + got:,}, inside a window")

    def _descriptor(self, sample: int, used: dict[int, int]) -> int:
        """Return the descriptor of a sequence database, opened where it is not open."""
        files = self._files
        descriptor = files.get(sample)
        if descriptor is None:
            if len(files) >= self._limit:
                self._close_unused(used)
            descriptor = files[sample] = self._opened(sample, used)
        elif not self._keeps_all:
            files.move_to_end(sample)
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

    def _unreadable(self, descriptor: int, what: str, samples: Collection[int] = ()) -> DatabaseError:
        sample = next(sample for sample, each in self._files.items() if each == descriptor)
        return self._refused(sample, what, len(samples) - 1)

    def _refused(self, sample: int, what: str, others: int = 0) -> DatabaseError:
        path = self._paths[sample]
        folder = Path("SEQDB") if path is None else path.parent.parent
        one_of = f" (or one of {others} others read with it)" if others > 0 else ""
        return DatabaseError(
            f"{path}{one_of}: {what}. Database files must not be written while they are read. Check them: "
            f"{verify_command(folder)}"
        )

    def close(self) -> None:
        """Close all files."""
        while self._files:
            os.close(self._files.popitem()[1])
