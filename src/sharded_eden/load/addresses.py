"""window index -> where its bytes lie -> its bases, by positioned reads of the sequence databases: one request a window.

Enters: window indices, and memory to write to. Leaves: bases. Costs one binary search and one `preadv` a window, whatever the
length of its contig. SQLite is not asked: the index beside the window database (`sharded_eden.format.index`) has the addresses.

All windows of a batch are asked for before the first is waited for. A read with `RWF_NOWAIT` takes what lies in the page cache;
what does not is announced to the kernel (`posix_fadvise`, `POSIX_FADV_WILLNEED`) and read at the end of the batch. Warm data
therefore cost no further call. Source: preadv2(2), posix_fadvise(2).

A file that is changed while it is read raises `DatabaseError`: size and mtime are compared after each batch, and the page
pointers between the bases must name the pages that the index proved. See `sharded_eden.load.unchanged` for what remains.

SQLite's locks: closing a descriptor drops the POSIX locks that this process holds on the file (howtocorrupt.html, 2.2). Only
databases without -wal and -journal have addresses, and SQLite opens those as immutable, without locks.
"""

from __future__ import annotations

import errno
import logging
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from sharded_eden.errors import DatabaseError
from sharded_eden.format.commands import index_command, verify_command
from sharded_eden.format.index import (
    RUN,
    RUNS_PER_BLOCK,
    FileIdentity,
    IndexFile,
    identity_of,
    index_path,
)
from sharded_eden.format.sqlite import is_mutable_now
from sharded_eden.load.connections import PerThread, connection_budget
from sharded_eden.load.unchanged import changed_error

logger = logging.getLogger(__name__)

FEW = 8
"""So few windows are found faster one by one than by calls of NumPy."""

POINTER_BYTES = 4
LOCK_BYTE = 1 << 30
"""SQLite never uses the page that holds this byte. Source: https://www.sqlite.org/fileformat2.html, section 1.3.11."""
PAGES_AT_ONCE = 256
"""Overflow pages of one `preadv`: two buffers each, of at most IOV_MAX = 1,024."""

_words = lru_cache(maxsize=64)(lambda count: Struct(f">{count}I"))
_RUN = Struct("<qqIIIIII")
_IN_BLOCK = np.arange(RUNS_PER_BLOCK)


class Address(NamedTuple):
    """Where a window lies."""

    sample: int
    """The number of its sequence database; -1 where the window has no address."""
    at: int
    """The file offset of base 0 of the contig."""
    local: int
    """Bases of the contig in the leaf page."""
    overflow: int
    """The first overflow page."""
    start: int
    """The first base of the window."""
    length: int
    """Bases of the contig."""
    tag: int
    """The number of its control tag."""


NOWHERE = Address(-1, -1, 0, 0, 0, 0, 0)


class Request(NamedTuple):
    """Bases to read."""

    address: Address
    bases: int
    to: int
    """Where the first one goes in the memory that is filled."""


Part = tuple[int, int, list[Any]]
"""One read: file offset, bytes, and the buffers that take them."""


class WindowAddresses:
    """The index of a window database, as far as it describes the files that are there.

    Args:
        window_db: the window database.
        window_db_identity: what it was when the dataset was opened.
        paths: {sample ID: sequence database}.
        identities: {sample ID: what its database was when the dataset was opened}.
        stride: bases from one window to the next.
        total_windows: windows of the window database.
        read_ahead: announce the windows of a batch that are not in the page cache to the kernel.

    Raises:
        DatabaseError: the file is damaged.
    """

    def __init__(
        self,
        window_db: Path,
        window_db_identity: FileIdentity,
        paths: Mapping[str, Path],
        identities: Mapping[str, FileIdentity],
        *,
        stride: int,
        total_windows: int,
        read_ahead: bool,
    ) -> None:
        self.path = index_path(window_db)
        self._stride = stride
        self.read_ahead = read_ahead
        self._window_db_identity = window_db_identity
        self._total_windows = total_windows
        self._all_paths, self._identities = paths, identities
        self._readers = PerThread(partial(AddressedReader, self), AddressedReader.close)
        self._open()

    def _open(self) -> None:
        file = IndexFile(self.path)
        meta = file.meta
        described = FileIdentity(*meta["identity"])
        if not described.is_same_file(self._window_db_identity) or meta["total_windows"] != self._total_windows:
            raise StaleIndex(
                f"it describes a window database of {described}, there is one of {self._window_db_identity}"
            )
        if meta["stride"] != self._stride:
            raise StaleIndex(f"it was made for stride={meta['stride']}, the window database has {self._stride}")
        self._file = file
        self.tags: list[str] = meta["tags"]
        self.names: list[str] = meta["samples"]
        self.paths = [self._all_paths.get(name) for name in self.names]
        self.page_bytes: list[int] = file.samples["page_bytes"].tolist()
        self.expected = [identity_of(sample) for sample in file.samples]
        usable = [self._is_as_indexed(k, name) for k, name in enumerate(self.names)]
        self.changed_samples = [name for name, good in zip(self.names, usable, strict=True) if not good]
        self._usable = np.array(usable, dtype=np.bool_) if self.changed_samples else None
        self._top = file.top
        self._top_view = memoryview(file.top)  # type: ignore[arg-type]  # a buffer
        self._runs = file.runs
        self._first = file.runs["first_window"]
        self._first_view = memoryview(self._first)  # type: ignore[arg-type]
        self._runs_offset = file.runs.ctypes.data - np.frombuffer(file.memory, np.uint8).ctypes.data

    def _is_as_indexed(self, number: int, name: str) -> bool:
        path, found = self.paths[number], self._identities.get(name)
        return (
            path is not None
            and found is not None
            and found.is_same_file(self.expected[number])
            and not is_mutable_now(path)
        )

    def find(self, windows: Sequence[int]) -> list[Address]:
        """Return where windows lie, in their order; `NOWHERE` for those that SQLite must read."""
        if not len(self._runs):
            return [NOWHERE] * len(windows)
        runs = self._find_few(windows) if len(windows) <= FEW else self._find_many(windows)
        stride, usable = self._stride, self._usable
        return [
            Address(sample, at, local, overflow, (window - first + first_in_contig) * stride, length, tag)
            if at >= 0 and (usable is None or usable[sample])
            else NOWHERE
            for window, (first, at, sample, first_in_contig, length, local, overflow, tag) in zip(
                windows, runs, strict=True
            )
        ]

    def _find_few(self, windows: Sequence[int]) -> list[Any]:
        top, first, total = self._top_view, self._first_view, len(self._runs)
        memory, offset = self._file.memory, self._runs_offset
        runs = []
        for window in windows:
            block = (bisect_right(top, window) - 1) * RUNS_PER_BLOCK
            run = bisect_right(first, window, block, min(block + RUNS_PER_BLOCK, total)) - 1
            runs.append(_RUN.unpack_from(memory, offset + run * RUN.itemsize))
        return runs

    def _find_many(self, windows: Sequence[int]) -> list[Any]:
        wanted = np.array(windows, dtype=np.int64)  # (n,)
        block = (np.searchsorted(self._top, wanted, side="right") - 1) * RUNS_PER_BLOCK
        near = self._first.take(block[:, None] + _IN_BLOCK, mode="clip")  # (n, 64): behind the end, the last run again
        run = block + np.count_nonzero(near <= wanted[:, None], axis=1) - 1
        found: list[Any] = self._runs[np.minimum(run, len(self._runs) - 1)].tolist()
        return found

    def read(self, requests: Sequence[Request], memory: memoryview) -> None:
        """Read bases into memory, (bytes) uint8; raises as `AddressedReader.read`."""
        self._readers.get().read(requests, memory)

    def close(self) -> None:
        """Close the files of this process."""
        self._readers.close()

    def __getstate__(self) -> dict[str, Any]:
        dropped = {"_file", "_top", "_top_view", "_runs", "_first", "_first_view"}
        return {name: value for name, value in self.__dict__.items() if name not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class StaleIndex(DatabaseError):
    """The index describes other files than those that are there."""


def open_addresses(window_db: Path, *, sequence_db_dir: Path, **options: Any) -> WindowAddresses | None:
    """Return the index of a window database; None, with one line in the log, where there is none that describes it.

    Args:
        window_db: the window database.
        sequence_db_dir: the folder of sequence databases, for the command that is recommended.
        options: see `WindowAddresses`.
    """
    command = index_command(sequence_db_dir, window_db)
    if not hasattr(os, "preadv"):
        return None
    if not index_path(window_db).is_file():
        logger.info("%s has no index: windows are located and read by SQLite. Write it: %s", window_db, command)
        return None
    try:
        addresses = WindowAddresses(window_db, **options)
    except DatabaseError as error:
        logger.warning("%s is not used: %s. Write it again: %s", index_path(window_db), error, command)
        return None
    if addresses.changed_samples:
        names = addresses.changed_samples
        logger.warning(
            "%s: %d of %d sequence databases are not the files that were indexed (the first is %s) and are read by SQLite. "
            "Write it again: %s",
            addresses.path, len(names), len(addresses.names), names[0], command,
        )  # fmt: skip
    return addresses


class AddressedReader:
    """Reads bases through file descriptors of one thread; beyond `limit` the least recently used ones are closed.

    Args:
        addresses: the index.
    """

    def __init__(self, addresses: WindowAddresses) -> None:
        self._addresses = addresses
        self._files: OrderedDict[int, int] = OrderedDict()
        self._limit = max(8, connection_budget())
        self._keeps_all = len(addresses.names) <= self._limit
        self._announces = addresses.read_ahead and hasattr(os, "posix_fadvise")
        self._flags = os.RWF_NOWAIT if self._announces and hasattr(os, "RWF_NOWAIT") else 0

    def read(self, requests: Sequence[Request], memory: memoryview) -> None:
        """Read bases into memory.

        Args:
            requests: what to read.
            memory: bytes, written.

        Raises:
            DatabaseError: a file cannot be read, or is not the one that was indexed.
        """
        for first in range(0, len(requests), self._limit):
            self._read(requests[first : first + self._limit], memory)

    def _read(self, requests: Sequence[Request], memory: memoryview) -> None:
        late: list[tuple[int, Part]] = []
        pointers: list[bytearray] = []
        named_pages: list[int] = []
        used: set[int] = set()
        files, page_bytes = self._files, self._addresses.page_bytes
        for address, bases, to in requests:
            sample, at, local, _, start, _, _ = address
            if sample not in used:
                used.add(sample)
                descriptor = self._descriptor(sample, used)
            else:
                descriptor = files[sample]
            if start + bases <= local:
                part = at + start, bases, [memory[to : to + bases]]
                if not self._read_now(descriptor, part):
                    late.append((sample, part))
                continue
            for part in _parts(address, bases, to, page_bytes[sample], memory, pointers, named_pages):
                if not self._read_now(descriptor, part):
                    late.append((sample, part))
        for sample, (position, size_bytes, buffers) in late:
            try:
                got = os.preadv(files[sample], buffers, position)
            except OSError as error:
                raise self._unreadable(sample, f"it cannot be read ({error.strerror})") from error
            if got != size_bytes:
                raise self._unreadable(sample, f"it ends at byte {position + got:,}, inside a window")
        for sample in used:
            found = os.fstat(files[sample])
            expected = self._addresses.expected[sample]
            if found.st_mtime_ns != expected.mtime_ns or found.st_size != expected.size_bytes:
                raise self._changed(sample, FileIdentity.of(found))
        if pointers and list(_words(len(pointers)).unpack(b"".join(pointers))) != named_pages:
            raise self._unreadable(
                next(sample for sample in used), "the pages of a contig are not where the index says", used=used
            )

    def _read_now(self, descriptor: int, part: Part) -> bool:
        """Read what the page cache holds as a whole; else announce it, and return False."""
        position, size_bytes, buffers = part
        if self._flags:
            try:
                if os.preadv(descriptor, buffers, position, self._flags) == size_bytes:
                    return True
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    return False  # read again at the end of the batch, where an error is raised
                self._flags = 0  # a file system that cannot tell: everything is announced
        if self._announces:
            os.posix_fadvise(descriptor, position, size_bytes, os.POSIX_FADV_WILLNEED)
        return False

    def _descriptor(self, sample: int, used: set[int]) -> int:
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

    def _opened(self, sample: int, used: set[int]) -> int:
        path = self._addresses.paths[sample]
        assert path is not None  # noqa: S101 - a sample without a path has no addresses
        try:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE} or not self._close_unused(used):
                    raise
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unreadable(sample, f"it cannot be opened ({error.strerror})") from error
        found = FileIdentity.of(os.fstat(descriptor))
        if not found.is_same_file(self._addresses.expected[sample]):
            os.close(descriptor)
            raise self._changed(sample, found)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead beyond a window
        return descriptor

    def _close_unused(self, used: set[int]) -> bool:
        """Close the least recently used half of the files that this batch does not need; return whether there was one."""
        unused = [sample for sample in self._files if sample not in used]
        for sample in unused[: -(-len(unused) // 2)]:
            os.close(self._files.pop(sample))
        return bool(unused)

    def _changed(self, sample: int, found: FileIdentity) -> DatabaseError:
        return changed_error(self._addresses.paths[sample], self._addresses.expected[sample], found)

    def _unreadable(self, sample: int, what: str, used: set[int] | None = None) -> DatabaseError:
        paths = self._addresses.paths
        others = "" if used is None or len(used) < 2 else f" (or one of {len(used) - 1} others read with it)"
        return DatabaseError(
            f"{paths[sample]}{others}: {what}. Database files must not be written while they are read. Check them: "
            f"{verify_command(_folder_of(paths[sample]))}"
        )

    def close(self) -> None:
        """Close all files."""
        while self._files:
            os.close(self._files.popitem()[1])


def _folder_of(path: Path | None) -> Path:
    return Path("SEQDB") if path is None else path.parent.parent


def _parts(
    address: Address,
    bases: int,
    to: int,
    page_bytes: int,
    memory: memoryview,
    pointers: list[bytearray],
    named_pages: list[int],
) -> list[Part]:
    """Return the reads of a window that lies on overflow pages, at least in part.

    Args:
        address: where it lies.
        bases: how many bases to read.
        to: where the first one goes in `memory`.
        page_bytes: page size of the database.
        memory: what is filled.
        pointers: takes the memory of each page pointer between the bases.
        named_pages: takes the page that each of these pointers must name.
    """
    _, at, local, overflow, start, length, _ = address
    parts: list[Part] = []
    if start < local:
        here = local - start
        parts.append((at + start, here, [memory[to : to + here]]))
        start, to, bases = local, to + here, bases - here
    room = page_bytes - POINTER_BYTES
    lock_page = LOCK_BYTE // page_bytes + 1
    number, rest = divmod(start - local, room)
    page, last = overflow + number, overflow + (length - local - 1) // room
    if overflow < lock_page:
        page, last = page + (page >= lock_page), last + (last >= lock_page)
    take = min(bases, room - rest)
    buffers: list[Any] = [memory[to : to + take]]
    position, size_bytes = (page - 1) * page_bytes + POINTER_BYTES + rest, take
    to, bases = to + take, bases - take
    while bases:
        page += 1
        if page == lock_page or len(buffers) > 2 * PAGES_AT_ONCE:
            parts.append((position, size_bytes, buffers))
            page += page == lock_page
            position, size_bytes, buffers = (page - 1) * page_bytes, 0, []
        pointer = bytearray(POINTER_BYTES)
        pointers.append(pointer)
        named_pages.append(0 if page == last else page + 1 + (page + 1 == lock_page))
        take = min(bases, room)
        buffers += [pointer, memory[to : to + take]]
        to, bases, size_bytes = to + take, bases - take, size_bytes + POINTER_BYTES + take
    parts.append((position, size_bytes, buffers))
    return parts
