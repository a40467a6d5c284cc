"""Addresses -> reads: which bytes of which file go where in memory.

Input: addresses of windows, and where in memory their bases go. Output: `Reads`, one `preadv` each. A window is one read, or
two if it begins in a leaf page and continues on overflow pages far from it. SQLite usually writes both next to each other:
then one read takes what lies between, too. Overflow pages begin with a pointer of 4 bytes. The pointers are read into separate
memory and compared with the pages in the address.

Cost: under 1 µs a window. Plain integers are used: for a batch of 32, a call of NumPy costs as much as one operation on
integers for each window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import unpack_from
from typing import Any, NamedTuple

POINTER_BYTES = 4
"""An overflow page begins with the number of the next one."""
LOCK_BYTE = 1 << 30
"""SQLite never uses the page that holds this byte. Source: https://www.sqlite.org/fileformat2.html, section 1.3.11."""
MAX_BUFFERS = 512
"""Buffers of one `preadv`, below IOV_MAX = 1,024."""

NEAR_BYTES = 16 << 10
"""Two parts of a window are one read if at most so many bytes lie between them: another request costs more than these bytes."""

SLOTS_AT_ONCE = 256
"""The number of page pointers for which memory is allocated at a time."""

Address = tuple[int, int, int, int, int, int, int]
"""Where a window lies.

The number of its sequence database (-1: no address, SQLite must read it), the file offset of base 0 of its contig, bases of the
contig in the leaf page, the first overflow page, the first base of the window, bases of the contig, the number of its tag.
"""

Request = tuple[int, int, int, int, int, int, int, int]
"""The first six of an address, bases to read, and where the first one goes."""


class Reads(NamedTuple):
    """Reads as lists of equal length: read k is `os.preadv(descriptors[k], buffers[k], offsets[k])`, of `sizes[k]` bytes."""

    descriptors: list[int]
    buffers: list[Sequence[Any]]
    offsets: list[int]
    sizes: list[int]


class Planner:
    """Plans reads, and holds the page pointers that they read.

    Args:
        page_bytes: page size of each sequence database.
    """

    def __init__(self, page_bytes: Sequence[int]) -> None:
        self._page_bytes = page_bytes
        self._pointers: list[bytearray] = []
        self._slots: list[memoryview] = []  # each of 4 bytes
        self._named: list[int] = []
        self._gap = memoryview(bytearray(NEAR_BYTES))  # takes the bytes between two parts

    def plan(self, requests: Sequence[Request], memory: memoryview, descriptors: Mapping[int, int]) -> Reads:
        """Return the reads of windows, in their order; forget those of the last call.

        Args:
            requests: the windows.
            memory: bytes, where the bases go.
            descriptors: {number of a sequence database: descriptor}.
        """
        self._named.clear()
        reads = Reads([], [], [], [])
        of, buffers, offsets, sizes = reads
        pages = self._page_bytes
        for request in requests:
            sample, at, local, overflow, start, _, bases, to = request
            past = start - local  # bases on overflow pages before the window; below 0 it begins in the leaf page
            if past + bases <= 0:
                offset = at + start
            else:
                page_bytes = pages[sample]
                room = page_bytes - POINTER_BYTES
                number = past // room
                rest = past - number * room
                if past < 0 or rest + bases > room:
                    self._add_parts(request, memory, descriptors[sample], reads)
                    continue
                offset = (overflow + number - 1) * page_bytes + POINTER_BYTES + rest
                if offset >= LOCK_BYTE >= overflow * page_bytes:
                    offset += page_bytes
            of.append(descriptors[sample])
            buffers.append((memory[to : to + bases],))
            offsets.append(offset)
            sizes.append(bases)
        return reads

    def _add_parts(self, request: Request, memory: memoryview, descriptor: int, reads: Reads) -> None:
        """Add the reads of a window that lies on several pages."""
        sample, at, local, overflow, start, length, bases, to = request
        end = to + bases
        past = start - local
        of, all_buffers, offsets, sizes = reads
        in_leaf = 0 if past > 0 else -past  # bases in the leaf page
        if in_leaf:
            to, past = to + in_leaf, 0
        first_of_pages = to
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
        offset = (page - 1) * page_bytes + POINTER_BYTES + rest
        after = to + room - rest
        buffers = [memory[to : after if after < end else end]]
        named, slots, before = self._named, self._slots, to
        while after < end:
            page += 1
            if page == lock_page or len(buffers) > MAX_BUFFERS:
                of.append(descriptor)
                all_buffers.append(buffers)
                offsets.append(offset)
                sizes.append(after - before + len(buffers) // 2 * POINTER_BYTES)
                page += page == lock_page
                offset, buffers, before = (page - 1) * page_bytes, [], after
            if len(named) == len(slots):
                self._add_slots()
            until = after + room
            buffers += slots[len(named)], memory[after : until if until < end else end]
            following = page + 1
            named.append(0 if page == last else following + (following == lock_page))
            after = until
        of.append(descriptor)
        all_buffers.append(buffers)
        offsets.append(offset)
        sizes.append(end - before + len(buffers) // 2 * POINTER_BYTES)
        if in_leaf:
            leaf = memory[first_of_pages - in_leaf : first_of_pages]
            self._add_leaf(leaf, at + start, reads, is_next=before == first_of_pages)

    def _add_leaf(self, leaf: memoryview, leaf_offset: int, reads: Reads, *, is_next: bool) -> None:
        """Add the part of a window in its leaf page to the last read, where that has the rest and is near; else as a read."""
        of, all_buffers, offsets, sizes = reads
        offset, size_bytes, in_leaf = offsets[-1], sizes[-1], len(leaf)
        is_before = leaf_offset < offset
        gap = offset - leaf_offset - in_leaf if is_before else leaf_offset - offset - size_bytes
        if not is_next or not 0 <= gap <= NEAR_BYTES:
            of.append(of[-1])
            all_buffers.append((leaf,))
            offsets.append(leaf_offset)
            sizes.append(in_leaf)
            return
        sizes[-1] = size_bytes + gap + in_leaf
        if is_before:
            offsets[-1] = leaf_offset
            all_buffers[-1] = (leaf, self._gap[:gap], *all_buffers[-1])
        else:
            all_buffers[-1] = (*all_buffers[-1], self._gap[:gap], leaf)

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
