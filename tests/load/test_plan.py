"""Reads of windows, against the arithmetic of SQLite's file format, base by base."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_eden.load.read.plan import LOCK_BYTE, NEAR_BYTES, POINTER_BYTES, Planner, Reads

ROW = 9000
Contig = tuple[int, int, int, int, int, int, int]
"""Sample, file offset of base 0, bases in the leaf page, first overflow page, first base, length, bases to read."""


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[int], list[Contig]]:
    """Page sizes of some databases, and windows of their contigs."""
    page_bytes = draw(st.lists(st.sampled_from([512, 1024, 4096, 65536]), min_size=1, max_size=3))
    found = []
    for _ in range(draw(st.integers(1, 12))):
        sample = draw(st.integers(0, len(page_bytes) - 1))
        room = page_bytes[sample] - POINTER_BYTES
        lock_page = LOCK_BYTE // page_bytes[sample] + 1
        local = draw(st.integers(0, min(room, 4000)))
        on_overflow = draw(
            st.sampled_from([0, 1, room - 1, room, room + 1, 2 * room, 300 * room]) | st.integers(0, 20_000)
        )
        length = local + on_overflow
        pages = -(-(length - local) // room)
        overflow = draw(st.integers(2, 40) | st.integers(lock_page - pages - 2, lock_page + 3)) if length > local else 0
        overflow += overflow == lock_page
        last = max(0, length - 1)
        start = draw(st.integers(0, last) | st.just(max(0, length - ROW)) | st.just(min(local, last)))
        bases = min(length - start, draw(st.integers(1, ROW)))
        at = draw(st.integers(200, 5000))
        if draw(st.booleans()):  # the leaf page lies near the overflow pages, as where SQLite has written both
            at += max(0, overflow - 1 + draw(st.integers(-3, 12))) * page_bytes[sample]
        found.append((sample, at, local, overflow, start, length, bases))
    return page_bytes, found


def positions(contig: Contig, page_bytes: int) -> np.ndarray:
    """Return where the bases of a window lie in their file, (n,) int64, base by base."""
    _, at, local, overflow, start, _, bases = contig
    base = np.arange(start, start + bases)
    number, rest = np.divmod(base - local, page_bytes - POINTER_BYTES)
    page = overflow + number
    lock_page = LOCK_BYTE // page_bytes + 1
    page += (overflow < lock_page) & (page >= lock_page)
    return np.where(base < local, at + base, (page - 1) * page_bytes + POINTER_BYTES + rest)


def page_of(contig: Contig, base: int, page_bytes: int) -> int:
    """Return the page of a base on overflow pages; 0 after the end of the contig."""
    sample, at, local, overflow, _, length, _ = contig
    if base >= length:
        return 0
    return int(positions((sample, at, local, overflow, base, length, 1), page_bytes)[0]) // page_bytes + 1


def bytes_at(positions: np.ndarray) -> np.ndarray:
    """Return what stands at these places of every file: numbers without a pattern."""
    return ((positions * 2654435761) >> 7).astype(np.uint8)


def carry_out(reads: Reads) -> None:
    for descriptor, buffers, begin, size_bytes in zip(*reads, strict=True):
        assert descriptor == 7
        assert sum(map(len, buffers)) == size_bytes
        at = begin
        for buffer in buffers:
            buffer[:] = bytes_at(np.arange(at, at + len(buffer))).tobytes()
            at += len(buffer)


def plan(page_bytes: list[int], contigs: list[Contig], places: list[int]) -> tuple[Planner, Reads, np.ndarray]:
    """Return the planner, the reads of all windows in one call, and the memory that takes their bases."""
    planner = Planner(page_bytes)
    memory = np.zeros((len(contigs) + 1) * ROW, dtype=np.uint8)
    requests = [(*contig, place) for contig, place in zip(contigs, places, strict=True)]
    return planner, planner.plan(requests, memoryview(memory), dict.fromkeys(range(3), 7)), memory


@given(windows())
def test_reads_take_the_bytes_that_the_file_format_names(drawn):
    page_bytes, contigs = drawn
    places = [k * ROW + k % 7 for k in range(len(contigs))]
    _, reads, memory = plan(page_bytes, contigs, places)
    carry_out(reads)
    expected = np.zeros_like(memory)
    for contig, place in zip(contigs, places, strict=True):
        expected[place : place + contig[6]] = bytes_at(positions(contig, page_bytes[contig[0]]))
    np.testing.assert_array_equal(memory, expected)


@given(windows())
def test_each_pointer_names_the_next_page_of_its_contig(drawn):
    page_bytes, contigs = drawn
    for contig in contigs:
        sample, _, local, _, start, _, bases = contig
        planner, _, _ = plan(page_bytes, [contig], [0])

        room = page_bytes[sample] - POINTER_BYTES
        first = max(start, local)
        begins = range(first - (first - local) % room + room, start + bases, room)  # of its pages after the first one
        following = [page_of(contig, begin + room, page_bytes[sample]) for begin in begins]
        assert planner._named == following


@given(windows())
def test_a_pointer_to_another_page_is_noticed(drawn):
    page_bytes, contigs = drawn
    planner, _, _ = plan(page_bytes, contigs, [k * ROW for k in range(len(contigs))])
    assert planner.pointers_are_as_named() == (not any(planner._named))  # nothing was read: all are 0
    for k, page in enumerate(planner._named):
        planner._slots[k][:] = page.to_bytes(4, "big")
    assert planner.pointers_are_as_named()
    if planner._named:
        planner._slots[len(planner._named) // 2][3] ^= 1
        assert not planner.pointers_are_as_named()


PAGE = 4096
ROOM = PAGE - POINTER_BYTES


@pytest.mark.parametrize(
    ("leaf_page", "reads"), [(9, 2), (15, 2), (16, 1), (19, 1), (22, 1), (24, 1), (25, 2), (40, 2)], ids=str
)
def test_a_window_on_a_leaf_page_near_its_overflow_pages_is_one_read(leaf_page, reads):
    """Overflow pages 20 and 21: the leaf page before or after them is read with them, and what lies between."""
    at = (leaf_page - 1) * PAGE + 1000
    contig = (0, at, 2000, 20, 0, 2000 + 2 * ROOM, 2000 + ROOM + 10)
    _, found, memory = plan([PAGE], [contig], [0])
    assert len(found.offsets) == reads
    between = at - (20 * PAGE + POINTER_BYTES + 10) if leaf_page > 20 else 19 * PAGE + POINTER_BYTES - (at + 2000)
    assert (between <= NEAR_BYTES) == (reads == 1)
    carry_out(found)
    np.testing.assert_array_equal(memory[: contig[6]], bytes_at(positions(contig, PAGE)))
