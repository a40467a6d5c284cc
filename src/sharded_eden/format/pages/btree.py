"""Writes B-trees of an SQLite file page by page, without SQL, for sorted rows.

Input: the cells of a table's rows by ascending rowid, or of an index by ascending key. Output: full pages at the end of the
file, and the tree above them under the empty root page that SQLite has made. Writes each byte once; needs the memory of one
page and about 100 bytes for each page written.

    leaf       type, number of cells | place of each cell | free | cells
    interior   the same, each cell after the number of its child page; the last child is in the header

In the tree of a table, the largest rowid of a page is above it as well; in that of an index, each cell appears once, and the
one between two pages is in the page above them. No cell may be so long that SQLite would spill it to other pages: in an index
(page_bytes - 12) * 64 // 255 - 23 bytes of record.

Source: "Database File Format", https://www.sqlite.org/fileformat2.html, sections 1.3 (header), 1.5 and 1.6.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np

from sharded_eden.format.pages.cells import Bytes, Ints, varint

TABLE_LEAF, INDEX_LEAF = 0x0D, 0x0A
INTERIOR_OF = {TABLE_LEAF: 0x05, INDEX_LEAF: 0x02}
LEAF_HEADER, INTERIOR_HEADER = 8, 12
POINTER = 2
LOCK_BYTE = 1 << 30
"""The page with this byte is never used: SQLite locks this byte."""
PAGES_AT = 28
"""The offset of the number of pages in the file."""


class PageFile:
    """Appends pages to a database that SQLite has made and closed. A context manager; its exit updates the header.

    Args:
        path: the database.
        page_bytes: the size of its pages, in bytes.
    """

    def __init__(self, path: Path, page_bytes: int) -> None:
        self.page_bytes = page_bytes
        self._file = path.open("r+b")
        self._file.seek(0, os.SEEK_END)
        self._pages = self._file.tell() // page_bytes
        self._lock_page = LOCK_BYTE // page_bytes + 1

    def append(self, pages: Bytes) -> Ints:
        """Write pages, (m, page_bytes) uint8, and return their numbers, (m,) int64."""
        before = max(0, min(len(pages), self._lock_page - 1 - self._pages))
        numbers = np.arange(self._pages + 1, self._pages + 1 + len(pages))
        self._file.write(pages[:before].data)
        if before < len(pages) and self._pages + before == self._lock_page - 1:
            self._file.write(bytes(self.page_bytes))
            self._pages += 1
        numbers[before:] = np.arange(len(pages) - before) + self._pages + before + 1
        self._file.write(pages[before:].data)
        self._pages += len(pages)
        return numbers

    def replace(self, number: int, page: Bytes) -> None:
        """Overwrite an existing page with (page_bytes,) uint8."""
        self._file.seek((number - 1) * self.page_bytes)
        self._file.write(page.data)
        self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> PageFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._file.seek(PAGES_AT)
            self._file.write(self._pages.to_bytes(4, "big"))
        self._file.close()


class BTree:
    """Fills one table or index.

    Args:
        file: where its pages go.
        root: the number of its root page, which is empty.
        leaf: `TABLE_LEAF` or `INDEX_LEAF`.
    """

    def __init__(self, file: PageFile, root: int, leaf: int) -> None:
        self._file, self._root, self._leaf = file, root, leaf
        self._moves_up = int(leaf == INDEX_LEAF)
        self._cells: Bytes = np.empty(0, dtype=np.uint8)  # cells that do not fill a page yet
        self._lengths: Ints = np.empty(0, dtype=np.int64)
        self._rowids: Ints = np.empty(0, dtype=np.int64)
        self._children: list[int] = []
        self._dividers: list[bytes] = []  # one after each child

    def add(self, cells: Bytes, lengths: Ints, rowids: Ints) -> None:
        """Append cells, and write the pages that they fill.

        Args:
            cells: (b,) uint8, one after another.
            lengths: (n,) int64, of each, in bytes.
            rowids: (n,) int64, the rows they belong to.
        """
        self._cells = np.concatenate((self._cells, cells))
        self._lengths = np.concatenate((self._lengths, lengths))
        self._rowids = np.concatenate((self._rowids, rowids))
        self._write_leaves(self._cuts())

    def finish(self) -> None:
        """Write the remaining cells and the tree above the leaves."""
        if len(self._lengths) == 0:
            return  # the root page is an empty leaf already
        ends = np.cumsum(self._lengths + POINTER)
        if ends[-1] > self._file.page_bytes - LEAF_HEADER:  # in an index by at least one cell: the next page needs one
            self._write_leaves([(0, len(ends) - 2)])
        last = self._leaves([(0, len(self._lengths))])
        if not self._children:
            self._file.replace(self._root, last[0])
            return
        self._children.extend(self._file.append(last).tolist())
        while (nodes := self._nodes())[1:]:
            pages = np.stack([self._interior(*node) for node in nodes])
            ups = np.cumsum([len(children) for children, _ in nodes])[:-1] - 1
            self._dividers = [self._dividers[k] for k in ups.tolist()]
            self._children = self._file.append(pages).tolist()
        self._file.replace(self._root, self._interior(*nodes[0]))

    def _cuts(self) -> list[tuple[int, int]]:
        """Return the (first, last + 1) cell of each page that is full."""
        ends = np.cumsum(self._lengths + POINTER)
        room = self._file.page_bytes - LEAF_HEADER
        cuts: list[tuple[int, int]] = []
        first = 0
        while first < len(ends):
            before = int(ends[first - 1]) if first else 0
            stop = int(np.searchsorted(ends, before + room, side="right"))
            if stop + self._moves_up >= len(ends):  # not full, or no cell would follow the one that moves up
                break
            cuts.append((first, stop))
            first = stop + self._moves_up
        return cuts

    def _write_leaves(self, cuts: list[tuple[int, int]]) -> None:
        if not cuts:
            return
        starts = np.concatenate(([0], np.cumsum(self._lengths)))
        self._children.extend(self._file.append(self._leaves(cuts)).tolist())
        if self._moves_up:
            self._dividers.extend(self._cells[starts[stop] : starts[stop + 1]].tobytes() for _, stop in cuts)
        else:
            keys = varint(self._rowids[[stop - 1 for _, stop in cuts]])
            widths = keys.values.shape[1] if keys.widths is None else keys.widths
            for key, width in zip(keys.values, np.broadcast_to(widths, len(cuts)), strict=True):
                self._dividers.append(key[len(key) - width :].tobytes())
        rest = cuts[-1][1] + self._moves_up
        # Copies, so that the rest does not keep the whole batch in memory.
        self._cells, self._lengths = self._cells[starts[rest] :].copy(), self._lengths[rest:].copy()
        self._rowids = self._rowids[rest:].copy()

    def _leaves(self, cuts: list[tuple[int, int]]) -> Bytes:
        """Return the pages of these cells, (m, page_bytes) uint8."""
        size = self._file.page_bytes
        starts = np.concatenate(([0], np.cumsum(self._lengths)))
        pages = np.zeros((len(cuts), size), dtype=np.uint8)
        for page, (first, stop) in zip(pages, cuts, strict=True):
            content = size - int(starts[stop] - starts[first])
            page[:LEAF_HEADER] = _header(self._leaf, stop - first, content)
            pointers = (starts[first:stop] + (content - starts[first])).astype(">u2").view(np.uint8)
            page[LEAF_HEADER : LEAF_HEADER + len(pointers)] = pointers
            page[content:] = self._cells[starts[first] : starts[stop]]
        return pages

    def _nodes(self) -> list[tuple[list[int], list[bytes]]]:
        """Return the children of each page above the present ones, and the dividers between them."""
        room = self._file.page_bytes - INTERIOR_HEADER
        bounds = [0]
        used = 0
        for k, divider in enumerate(self._dividers):
            used += POINTER + 4 + len(divider)
            if used > room:
                bounds.append(k + 1)
                used = 0
        if len(bounds) > 1 and bounds[-1] == len(self._children) - 1:
            bounds[-1] -= 1  # a page needs a divider, that is two children
        bounds.append(len(self._children))
        return [(self._children[a:b], self._dividers[a : b - 1]) for a, b in pairwise(bounds)]

    def _interior(self, children: list[int], dividers: list[bytes]) -> Bytes:
        """Return a page above others, (page_bytes,) uint8."""
        cells = [child.to_bytes(4, "big") + divider for child, divider in zip(children[:-1], dividers, strict=True)]
        ends = np.cumsum([len(cell) for cell in cells])
        content = self._file.page_bytes - int(ends[-1])
        pointers = (np.concatenate(([0], ends[:-1])) + content).astype(">u2").tobytes()
        header = _header(INTERIOR_OF[self._leaf], len(cells), content).tobytes() + children[-1].to_bytes(4, "big")
        page = np.zeros(self._file.page_bytes, dtype=np.uint8)
        page[: len(header) + len(pointers)] = np.frombuffer(header + pointers, dtype=np.uint8)
        page[content:] = np.frombuffer(b"".join(cells), dtype=np.uint8)
        return page


def _header(kind: int, cells: int, content: int) -> Bytes:
    """Return the first bytes of a page, (8,) uint8: no free blocks, no fragments; 0 means 65536."""
    fields = bytes([kind]) + bytes(2) + cells.to_bytes(2, "big") + (content & 0xFFFF).to_bytes(2, "big") + bytes(1)
    return np.frombuffer(fields, dtype=np.uint8)
