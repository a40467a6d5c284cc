"""Where the bases of each contig lie in a sequence database, read from the pages of the table `sequences`.

Input: a database file. Output: for each contig its length and its address, or the reason why it has none. Costs one sequential
read of the file. Memory is about 10 bytes a page and 100 bytes a contig.

    schema           a rowid table, UTF-8, no reserved bytes, not in WAL mode, nothing beside the file: else no addresses
    interior pages   top down: the numbers of the leaf pages
    all pages        once, in the order of the file: rows of leaf pages, pointers of overflow pages, bytes that are not ASCII
    chains           an address only where every overflow page points at the page after it

A contig has an address only if the bytes that were read prove each step. An unusual layout is not an error: the contig has no
address then, and SQLite reads it. See docs/sqlite-pages.md.

Source: "Database File Format", https://www.sqlite.org/fileformat2.html, sections 1.3, 1.5, 1.6 and 2.1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import xxhash
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, printable
from sharded_eden.format.index import FileIdentity
from sharded_eden.format.pages.btree import INTERIOR_HEADER, INTERIOR_OF, LEAF_HEADER, LOCK_BYTE, TABLE_LEAF
from sharded_eden.format.pages.table import BESIDE, SequencesTable, sequences_table, unusable
from sharded_eden.format.pages.values import VALUE_BYTES, is_ascii, texts, varints
from sharded_eden.format.schema import CONTIG_ID, LENGTH
from sharded_eden.format.sqlite import is_mutable_now

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

BLOCK_BYTES = 1 << 19
"""Bytes read at once: small enough for the second-level cache of a processor."""
LEAF_BYTES = 1 << 22
"""Bytes of leaf pages whose rows are parsed at once: enough to make the fixed cost of each NumPy call small."""
MAX_DEPTH = 20
"""The largest depth of a b-tree that SQLite allows (BTCURSOR_MAX_DEPTH)."""
PADDING = 32
"""Zeros after a block, so that reading a varint near its end stays inside the buffer."""

AT, LOCAL, OVERFLOW, REASON = "at", "local", "overflow", "reason"
ADDRESS_SCHEMA: dict[str, type[pl.DataType]] = {
    CONTIG_ID: pl.String, LENGTH: pl.UInt32, AT: pl.Int64, LOCAL: pl.UInt32, OVERFLOW: pl.UInt32, REASON: pl.UInt8,
}  # fmt: skip
"""Columns of `Addresses.contigs`; `reason` is an index into `REASONS`."""

REASONS = (
    "",
    "its row lacks nt_sequence, which was added to the table later",
    "its nt_sequence is not text",
    "its contig_id appears more than once",
    "its row is damaged",
    "the head of its row does not fit the leaf page",
    "columns after nt_sequence continue on further pages",
    "its overflow pages do not follow one another",
    "its nt_sequence holds bytes that are not ASCII",
)
(
    PROVEN, NO_COLUMN, NOT_TEXT, DUPLICATE, DAMAGED, LONG_HEAD, COLUMNS_AFTER, SCATTERED, NOT_ASCII,
) = range(len(REASONS))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the contigs of a sequence database lie."""

    page_bytes: int
    identity: FileIdentity
    digest: bytes
    """XXH3-128 of the file's bytes, 16 bytes; empty where the file was not read."""
    contigs: pl.DataFrame
    """Rows of `ADDRESS_SCHEMA`: one for each row whose contig_id is text. `at` is -1 where there is a reason."""
    without: str = ""
    """Why the database as a whole has no addresses; `contigs` is empty then."""


def read_addresses(path: Path, *, progress: Callable[[int], object] = lambda size_bytes: None) -> Addresses:
    """Read the addresses of all contigs of a sequence database.

    Args:
        path: the database; no process may write to it.
        progress: called with the bytes of each block that was read.

    Raises:
        MissingDatabase: there is no such file.
        DatabaseError: it is no SQLite database, its b-tree is damaged, or it changed while it was read.

    Example:
        >>> read_addresses(Path("SEQDB/S1/glm_dataset_S1.sqlite")).contigs.columns
        ['contig_id', 'length', 'at', 'local', 'overflow', 'reason']
    """
    table = sequences_table(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        before = FileIdentity.of(os.fstat(descriptor))
        header = os.pread(descriptor, 100, 0)
        page_bytes = int.from_bytes(header[16:18], "big")
        page_bytes = 65_536 if page_bytes == 1 else page_bytes
        without = table if isinstance(table, str) else unusable(header, before.size_bytes, page_bytes)
        if without or isinstance(table, str):
            found = Addresses(
                page_bytes=page_bytes, identity=before, digest=b"", contigs=pl.DataFrame(schema=ADDRESS_SCHEMA),
                without=without,
            )  # fmt: skip
        else:
            scan = _Scan(path, descriptor, before.size_bytes, table)
            scan.run(progress)
            found = Addresses(
                page_bytes=page_bytes, identity=before, digest=scan.digest.digest(), contigs=scan.contigs()
            )
        after = FileIdentity.of(os.fstat(descriptor))
        if after != before or is_mutable_now(path) != (found.without == BESIDE):
            raise DatabaseError(
                f"{printable(path)}: it was changed while it was read ({before} before, {after} now). Run it again"
            )
        return found
    finally:
        os.close(descriptor)


class _Scan:
    """One pass over a file."""

    def __init__(self, path: Path, descriptor: int, size_bytes: int, table: SequencesTable) -> None:
        self._path, self._descriptor, self._table = path, descriptor, table
        self._page_bytes = table.page_bytes
        self._pages = size_bytes // table.page_bytes
        self._room = table.page_bytes - 4  # bytes of payload on an overflow page
        self._lock_page = LOCK_BYTE // table.page_bytes + 1
        self.digest = xxhash.xxh3_128()
        # By page number (0 is unused): the page that it points to, and the ASCII bytes at its start, if it is an overflow page.
        self._next = np.zeros(self._pages + 2, dtype=np.uint32)
        self._ascii = np.zeros(self._pages + 2, dtype=np.uint16)
        # Leaf pages whose rows are not parsed yet, followed by zeros, and where these pages lie in the file.
        self._leaves = np.zeros(max(1, LEAF_BYTES // table.page_bytes) * table.page_bytes + PADDING, dtype=np.uint8)
        self._leaves_at = np.zeros(len(self._leaves) // table.page_bytes, dtype=np.int64)
        self._waiting = 0
        self._parts: list[pl.DataFrame] = []
        self._has_unread_ids = False

    def run(self, progress: Callable[[int], object]) -> None:
        """Read all pages."""
        is_leaf = self._leaf_pages()
        page_bytes = self._page_bytes
        at_once = max(1, BLOCK_BYTES // page_bytes)
        memory = np.zeros((at_once, page_bytes), dtype=np.uint8)
        for first in range(1, self._pages + 1, at_once):
            pages = memory[: self._pages + 1 - first]
            self._read(pages, (first - 1) * page_bytes)
            self.digest.update(pages.data)
            leaf = is_leaf[first : first + len(pages)]
            self._note_overflow(pages, first, leaf)
            self._keep(pages, first, leaf.nonzero()[0])
            progress(pages.nbytes)
        self._parse()

    def contigs(self) -> pl.DataFrame:
        """Return all contigs, with their addresses where they are proven."""
        if not self._parts:
            return pl.DataFrame(schema=ADDRESS_SCHEMA)
        found = pl.concat(self._parts)
        length, local = found[LENGTH].to_numpy().astype(np.int64), found[LOCAL].to_numpy().astype(np.int64)
        overflow, reason = found[OVERFLOW].to_numpy().astype(np.int64), found[REASON].to_numpy().copy()
        chained = np.flatnonzero((reason == PROVEN) & (length > local))
        reason[chained] = self._chains(overflow[chained], (length - local)[chained])
        if found[CONTIG_ID].n_unique() < len(found):
            reason[found[CONTIG_ID].is_duplicated().to_numpy()] = DUPLICATE
        if self._has_unread_ids and not self._table.is_unique:
            reason[:] = DUPLICATE
        proven = reason == PROVEN
        return pl.DataFrame(  # a query of Polars would cost more than the scan of a small file
            {
                CONTIG_ID: found[CONTIG_ID],
                LENGTH: found[LENGTH],
                AT: np.where(proven, found[AT].to_numpy(), -1),
                LOCAL: found[LOCAL],
                OVERFLOW: np.where(length > local, overflow, 0).astype(np.uint32),
                REASON: reason,
            }
        )

    def _chains(self, first: Ints, bases: Ints) -> NDArray[np.uint8]:
        """Return the reason of each chain of overflow pages.

        Args:
            first: (n,) int64, the first page.
            bases: (n,) int64, bases on the chain, at least 1.
        """
        reason = np.zeros(len(first), dtype=np.uint8)
        count = -(-bases // self._room)
        last = first + count - 1
        last += (first < self._lock_page) & (last >= self._lock_page)
        inside = (first > 1) & (last <= self._pages) & (first != self._lock_page)
        reason[~inside] = DAMAGED
        first, last = np.where(inside, first, 1), np.where(inside, last, 1)
        goes_on = self._next == np.arange(1, len(self._next) + 1)
        if 0 < self._lock_page <= self._pages:
            goes_on[self._lock_page - 1] = self._next[self._lock_page - 1] == self._lock_page + 1
            goes_on[self._lock_page], self._ascii[self._lock_page] = True, self._room
        breaks = np.cumsum(~goes_on, dtype=np.int32)
        reason[inside & ((breaks[last - 1] != breaks[first - 1]) | (self._next[last] != 0))] = SCATTERED
        del breaks
        partly = np.cumsum(self._ascii < self._room, dtype=np.int32)
        on_last = bases - (count - 1) * self._room
        is_bad = (partly[last - 1] != partly[first - 1]) | (self._ascii[last] < on_last)
        reason[(reason == PROVEN) & is_bad] = NOT_ASCII
        return reason

    def _read(self, memory: Bytes, offset: int) -> None:
        done = 0
        size_bytes = memory.nbytes
        while done < size_bytes:
            got = os.preadv(self._descriptor, [memory.reshape(-1)[done:].data], offset + done)
            if not got:
                raise self._damaged(f"it ends at byte {offset + done:,}")
            done += got

    def _damaged(self, what: str) -> DatabaseError:
        return DatabaseError(f"{printable(self._path)}: it is damaged: {what}. Copy or build it again")

    # ---- the b-tree ----

    def _leaf_pages(self) -> NDArray[np.bool_]:
        """Return for each page number whether it is a leaf page of the table, (pages + 2,) bool."""
        level = np.array([self._table.root], dtype=np.int64)
        seen = 0
        for _ in range(MAX_DEPTH):
            if level.min() < 2 or level.max() > self._pages or len(level) + seen > self._pages:
                raise self._damaged("a page of the b-tree of sequences is outside the file, or appears twice")
            seen += len(level)
            if os.pread(self._descriptor, 1, (int(level[0]) - 1) * self._page_bytes) == bytes([TABLE_LEAF]):
                is_leaf = np.zeros(self._pages + 2, dtype=np.bool_)
                is_leaf[level] = True
                if np.count_nonzero(is_leaf) != len(level):
                    raise self._damaged("a page of the b-tree of sequences appears twice")
                return is_leaf
            level = np.concatenate([self._children(page) for page in level.tolist()])
        raise self._damaged(f"the b-tree of sequences has more than {MAX_DEPTH} levels")

    def _children(self, number: int) -> Ints:
        """Return the pages under an interior page, (n,) int64."""
        page = np.zeros(self._page_bytes, dtype=np.uint8)
        self._read(page, (number - 1) * self._page_bytes)
        cells = int(page[3:5].view(">u2")[0])
        pointers_end = INTERIOR_HEADER + 2 * cells
        if page[0] != INTERIOR_OF[TABLE_LEAF] or pointers_end > self._page_bytes:
            raise self._damaged(f"page {number} is not an interior page of a table")
        at = page[INTERIOR_HEADER:pointers_end].view(">u2").astype(np.int64)
        if cells and (at.min() < pointers_end or at.max() + 5 > self._page_bytes):
            raise self._damaged(f"page {number} has a cell outside the page")
        children = page[at[:, None] + np.arange(4)].reshape(-1).view(">u4").astype(np.int64)
        return np.append(children, int.from_bytes(page[8:12].tobytes(), "big"))

    # ---- the pages of a block ----

    def _note_overflow(self, pages: Bytes, first: int, leaf: NDArray[np.bool_]) -> None:
        """Record, for each page, its next pointer and ASCII content if it is an overflow page."""
        here = slice(first, first + len(pages))
        self._next[here] = pages.view(">u4")[:, 0]
        signed = pages.view(np.int8)[:, 4:]
        lowest = np.minimum.reduce(signed, axis=1)  # a byte above 127 is negative
        np.multiply(lowest > 0, np.uint16(self._room), out=self._ascii[here])
        last = ((lowest <= 0) & (self._next[here] == 0) & ~leaf).nonzero()[0]
        if len(last):
            self._ascii[first + last] = (signed[last] <= 0).argmax(axis=1)

    def _keep(self, pages: Bytes, first: int, leaves: Ints) -> None:
        """Copy the leaf pages of a block, and parse the copies when there is no room for more.

        Args:
            pages: (count, page_bytes) uint8, the block.
            first: the number of its first page.
            leaves: (n,) int64, which of its pages are leaf pages.
        """
        size = self._page_bytes
        while len(leaves):
            if self._waiting == len(self._leaves_at):
                self._parse()
            now, leaves = np.split(leaves, [len(self._leaves_at) - self._waiting])
            end = self._waiting + len(now)
            copies = self._leaves[: len(self._leaves_at) * size].reshape(-1, size)
            np.take(pages, now, axis=0, out=copies[self._waiting : end], mode="clip")
            self._leaves_at[self._waiting : end] = (first - 1 + now) * size
            self._waiting = end

    def _parse(self) -> None:
        """Add the rows of the leaf pages that wait."""
        size, memory, count = self._page_bytes, self._leaves, self._waiting
        self._waiting = 0
        heads = memory[: count * size].reshape(count, size)[:, :LEAF_HEADER]
        numbers = self._leaves_at[:count] // size + 1
        if (heads[:, 0] != TABLE_LEAF).any():
            raise self._damaged(f"page {numbers[heads[:, 0] != TABLE_LEAF][0]} is not a leaf page of a table")
        cells = heads[:, 3:5].copy().view(">u2")[:, 0].astype(np.int64)
        if (too_many := LEAF_HEADER + 2 * cells > size).any():
            raise self._damaged(f"page {numbers[too_many][0]} has more cells than fit")
        total = int(cells.sum())
        if not total:
            return
        page = np.repeat(np.arange(count), cells)
        in_page = np.arange(total) - (np.cumsum(cells) - cells)[page]
        page_start = page * size
        pointer = page_start + LEAF_HEADER + 2 * in_page
        offset = (memory[pointer].astype(np.int64) << 8) | memory[pointer + 1]
        if (outside := (offset < (LEAF_HEADER + 2 * cells)[page]) | (offset >= size - 2)).any():
            raise self._damaged(f"page {numbers[page[outside][0]]} has a cell outside the page")
        shift = (self._leaves_at[:count] - np.arange(count) * size)[page]
        self._parts.append(self._rows(memory, page_start + offset, page_start + size, shift))

    def _rows(self, memory: Bytes, cell: Ints, page_end: Ints, shift: Ints) -> pl.DataFrame:
        """Return the rows whose cells begin at these places, without those whose contig_id is not text.

        Args:
            memory: copies of leaf pages.
            cell: (n,) int64, where each cell begins in it.
            page_end: (n,) int64, where its page ends.
            shift: (n,) int64, from a place in `memory` to its place in the file.
        """
        usable = self._page_bytes
        payload, width = varints(memory, cell)
        _, rowid_width = varints(memory, cell + width)
        start = cell + width + rowid_width  # of the payload
        most, least = usable - 35, (usable - 12) * 32 // 255 - 23
        spilled = least + (payload - least) % (usable - 4)
        local = np.where(payload <= most, payload, np.where(spilled <= most, spilled, least))
        end = start + local  # of what is local
        reason = np.zeros(len(cell), dtype=np.uint8)
        reason[(payload < 1) | (end + np.where(payload > local, 4, 0) > page_end)] = DAMAGED
        start = np.where(reason == DAMAGED, cell, start)
        header, width = varints(memory, start)
        header_end = start + header
        reason[(reason == PROVEN) & ((header < width) | (header > payload))] = DAMAGED
        reason[(reason == PROVEN) & (header_end > end)] = LONG_HEAD
        types, offsets = self._columns(memory, start, width, np.where(reason == PROVEN, header_end, start))
        id_type, text_type = types
        body = np.where(reason == PROVEN, header_end, 0)
        id_bytes, length = (id_type - 13) // 2, (text_type - 13) // 2
        id_at, text_at = body + offsets[0], body + offsets[1]
        is_text_id = (id_type >= 13) & (id_type % 2 == 1)
        id_fits = is_text_id & (id_at + id_bytes <= end) & (reason == PROVEN)
        reason[(reason == PROVEN) & (text_type < 0)] = NO_COLUMN
        is_text = (text_type >= 13) & (text_type % 2 == 1)
        reason[(reason == PROVEN) & ~is_text] = NOT_TEXT
        length = np.where(is_text, length, 0)
        # More than the payload: the row contradicts itself.
        reason[(reason == PROVEN) & (text_at + length > start + payload)] = DAMAGED
        reason[(reason == PROVEN) & (text_at > end)] = LONG_HEAD
        bases = np.clip(end - text_at, 0, length)  # in the leaf page
        rest = length - bases
        chain = -(-(payload - local) // self._room)
        reason[(reason == PROVEN) & (rest > 0) & (-(-rest // self._room) != chain)] = COLUMNS_AFTER
        is_proven = reason == PROVEN
        reason[is_proven & ~is_ascii(memory, np.where(is_proven, text_at, 0), np.where(is_proven, bases, 0))] = (
            NOT_ASCII
        )
        goes_on = np.flatnonzero(is_proven & (rest > 0))
        overflow = np.zeros(len(cell), dtype=np.int64)
        overflow[goes_on] = memory[end[goes_on, None] + np.arange(4)].reshape(-1).view(">u4")
        kept = np.flatnonzero(id_fits)
        self._has_unread_ids |= bool((~id_fits & (is_text_id | (reason != PROVEN))).any())
        ids = texts(memory, id_at[kept], id_bytes[kept])
        found = pl.DataFrame(
            {
                CONTIG_ID: ids,
                LENGTH: length[kept].astype(np.uint32),
                AT: (shift + text_at)[kept],
                LOCAL: bases[kept].astype(np.uint32),
                OVERFLOW: overflow[kept].astype(np.uint32),
                REASON: reason[kept],
            }
        )
        return found.filter(pl.col(CONTIG_ID).is_not_null()) if ids.null_count() else found

    def _columns(self, memory: Bytes, start: Ints, width: Ints, header_end: Ints) -> tuple[list[Ints], list[Ints]]:
        """Return the serial type and the place in the body of contig_id and nt_sequence, (n,) int64 each; type -1 is none."""
        wanted = (self._table.contig_column, self._table.sequence_column)
        types = [np.full(len(start), -1, dtype=np.int64) for _ in wanted]
        offsets = [np.zeros(len(start), dtype=np.int64) for _ in wanted]
        at, offset = start + width, np.zeros(len(start), dtype=np.int64)
        for column in range(max(wanted) + 1):
            inside = at < header_end
            kind, kind_width = varints(memory, np.where(inside, at, 0))
            kind = np.where(inside & (at + kind_width <= header_end), kind, -1)
            at = np.where(kind >= 0, at + kind_width, header_end)
            for k, number in enumerate(wanted):
                if column == number:
                    types[k], offsets[k] = kind, offset.copy()
            offset += np.where(kind >= 12, (kind - 12) >> 1, VALUE_BYTES[np.clip(kind, 0, 11)])
        return types, offsets
