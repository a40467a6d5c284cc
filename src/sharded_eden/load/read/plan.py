"""Addresses -> reads: which bytes of which file go where in memory.

Input: addresses of windows, and where in memory their bases go. Output: parts, one `preadv` each. A window is one part, or two
if it begins in a leaf page and continues on overflow pages. Overflow pages begin with a pointer of 4 bytes. The pointers are
read into separate memory and compared with the pages in the address.

`Planner.parts` plans one window, in plain integers. `Planner.parts_of_many` returns the same parts for a batch; it computes
with NumPy arrays, in a fifth of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import unpack_from
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

POINTER_BYTES = 4
"""An overflow page begins with the number of the next one."""
LOCK_BYTE = 1 << 30
"""SQLite never uses the page that holds this byte. Source: https://www.sqlite.org/fileformat2.html, section 1.3.11."""
MAX_BUFFERS = 512
"""Buffers of one `preadv`, below IOV_MAX = 1,024."""

SLOTS_AT_ONCE = 256
"""The number of page pointers for which memory is allocated at a time."""

Part = tuple[int, int, int, Sequence[Any]]
"""One read: descriptor, file offset, bytes, and the buffers that take them."""

Address = tuple[int, int, int, int, int, int, int]
"""Where a window lies.

The number of its sequence database (-1: no address, SQLite must read it), the file offset of base 0 of its contig, bases of the
contig in the leaf page, the first overflow page, the first base of the window, bases of the contig, the number of its tag.
"""

Request = tuple[int, int, int, int, int, int, int, int]
"""The first six of an address, bases to read, and where the first one goes."""


class Addresses(NamedTuple):
    """Where windows lie: the parts of an `Address`, (n,) int64 each; `sample` is right only where `at >= 0`."""

    sample: NDArray[np.int64]
    at: NDArray[np.int64]
    local: NDArray[np.int64]
    overflow: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    tag: NDArray[np.int64]

    def one_by_one(self) -> list[Address]:
        """Return the address of each window."""
        columns = self._replace(sample=np.where(self.at < 0, -1, self.sample))
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def slice(self, windows: slice) -> Addresses:
        """Return the addresses of some windows."""
        return Addresses(*(column[windows] for column in self))


class Planner:
    """Plans reads, and holds the page pointers that they read.

    Args:
        page_bytes: page size of each sequence database.
        size_bytes: size of each.
    """

    def __init__(self, page_bytes: Sequence[int], size_bytes: Sequence[int]) -> None:
        self._page_bytes = page_bytes
        sizes = set(page_bytes)
        self._one_size = sizes.pop() if len(sizes) == 1 else None
        self._sizes = np.array(page_bytes, dtype=np.int64)
        self._meets_lock_page = max(size_bytes, default=0) > LOCK_BYTE
        self._pointers: list[bytearray] = []
        self._slots: list[memoryview] = []  # each of 4 bytes
        self._named: list[int] = []

    def clear(self) -> None:
        """Forget the pointers of earlier reads."""
        self._named.clear()

    def pointers_are_as_named(self) -> bool:
        """Return whether the page pointers that were read equal those in the addresses."""
        count = len(self._named)
        if not count:
            return True
        pointers = b"".join(self._pointers[: -(-count // SLOTS_AT_ONCE)])
        return list(unpack_from(f">{count}I", pointers)) == self._named

    def _add_slots(self) -> None:
        self._pointers.append(bytearray(SLOTS_AT_ONCE * POINTER_BYTES))
        chunk = memoryview(self._pointers[-1])
        self._slots += [chunk[k : k + POINTER_BYTES] for k in range(0, len(chunk), POINTER_BYTES)]

    def parts(self, memory: memoryview, descriptor: int, request: Request) -> Sequence[Part]:
        """Return the reads of one window."""
        sample, at, local, overflow, start, length, bases, to = request
        end = to + bases
        past = start - local
        if past + bases <= 0:
            return ((descriptor, at + start, bases, (memory[to:end],)),)
        parts: list[Part] = []
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
        offset = (page - 1) * page_bytes + POINTER_BYTES + rest
        if after >= end:
            parts.append((descriptor, offset, end - to, (memory[to:end],)))
            return parts
        buffers = [memory[to:after]]
        named, slots = self._named, self._slots
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

    def parts_of_many(
        self,
        memory: memoryview,
        descriptors: Mapping[int, int],
        addresses: Addresses,
        bases: NDArray[np.int64],
        to: NDArray[np.int64],
    ) -> list[Part]:
        """Return the reads of many windows, in their order.

        Args:
            memory: bytes, where the bases go.
            descriptors: {number of a sequence database: descriptor}.
            addresses: all of them with `at >= 0`.
            bases: (n,), how many bases to read.
            to: (n,), where the first one goes.
        """
        sample, at, local, overflow, start, length, _ = addresses
        page_bytes = self._one_size or self._sizes[sample]
        room = page_bytes - POINTER_BYTES
        past = start - local  # bases on overflow pages before the window; below 0 it begins in the leaf page
        number = past // room
        number *= past > 0
        page = overflow + number
        past -= number * room  # of its page
        in_leaf = (past < 0) | (bases == 0)  # no base: nothing is read, and there may be no overflow page
        last = overflow + (length - local - 1) // room
        ends = to + bases
        offset = np.where(in_leaf, at + start, (page - 1) * page_bytes + (past + POINTER_BYTES))
        after = np.minimum(to + np.where(in_leaf, -past, room - past), ends)  # where its first page ends
        pages = (ends - after + (room - 1)) // room  # how many it continues on
        page += 1 - in_leaf  # the first of them
        if self._meets_lock_page:
            lock_page = LOCK_BYTE // page_bytes + 1
            pages[(overflow <= lock_page) & (last >= lock_page)] = -1  # planned one by one
        parts: list[Part] = []
        columns = (sample, offset, to, after, ends, pages, page, last, in_leaf)
        rooms = [room] * len(to) if self._one_size else room.tolist()  # type: ignore[union-attr]
        for k, (number_of, position, first, until, end, more, next_page, last_page, leaf, step) in enumerate(
            zip(*(column.tolist() for column in columns), rooms, strict=True)
        ):
            descriptor = descriptors[number_of]
            if not more:
                parts.append((descriptor, position, end - first, (memory[first:end],)))
            elif not 0 < more < MAX_BUFFERS // 2:
                parts += self.parts(memory, descriptor, self._request(k, addresses, bases, to))
            elif not leaf:
                buffers = self._buffers(memory, first, until, end, more, next_page, last_page, step)
                parts.append((descriptor, position, end - first + more * POINTER_BYTES, buffers))
            else:
                parts.append((descriptor, position, until - first, (memory[first:until],)))
                begin = (next_page - 1) * (step + POINTER_BYTES) + POINTER_BYTES
                buffers = self._buffers(memory, until, until + step, end, more - 1, next_page + 1, last_page, step)
                parts.append((descriptor, begin, end - until + (more - 1) * POINTER_BYTES, buffers))
        return parts

    def _buffers(
        self, memory: memoryview, first: int, until: int, end: int, more: int, next_page: int, last_page: int, step: int
    ) -> Sequence[Any]:
        """Return what takes the bases of overflow pages, with the pointers between them.

        Args:
            memory: bytes, where the bases go.
            first: where the first base goes.
            until: where the bases of the first page end, if the window goes on.
            end: where the last base goes, plus 1.
            more: on how many pages after the first one the window continues.
            next_page: the first of these.
            last_page: the last page of the contig.
            step: bases of a page.
        """
        named, slots = self._named, self._slots
        slot = len(named)
        while slot + more > len(slots):
            self._add_slots()
        buffers: Sequence[Any]
        if more == 2:
            between = until + step
            buffers = memory[first:until], slots[slot], memory[until:between], slots[slot + 1], memory[between:end]
            named += next_page + 1, next_page + 2
        elif more == 1:
            buffers = memory[first:until], slots[slot], memory[until:end]
            named.append(next_page + 1)
        else:
            buffers = [memory[first : min(until, end)]]
            for number in range(more):
                begin = until + number * step
                buffers += slots[slot + number], memory[begin : min(begin + step, end)]
            named += range(next_page + 1, next_page + more + 1)
        if more and next_page + more - 1 == last_page:
            named[-1] = 0  # the last page names no other
        return buffers

    @staticmethod
    def _request(k: int, addresses: Addresses, bases: NDArray[np.int64], to: NDArray[np.int64]) -> Request:
        sample, at, local, overflow, start, length = (int(column[k]) for column in addresses[:6])
        return sample, at, local, overflow, start, length, int(bases[k]), int(to[k])


def _size(buffers: Sequence[memoryview]) -> int:
    return sum(map(len, buffers))
