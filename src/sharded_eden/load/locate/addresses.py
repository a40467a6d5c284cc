"""window index -> where its bytes are in the sequence databases, from the index file, which is mapped into memory.

Input: window indices. Output: addresses (see `sharded_eden.format.index`), and bases, which `sharded_eden.load.read.positioned`
reads. Costs one binary search over a sampled list and one page of the index a window.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError
from sharded_eden.format.commands import index_command
from sharded_eden.format.index import (
    RUN,
    RUNS_PER_BLOCK,
    FileIdentity,
    IndexFile,
    identities_of,
    index_path,
)
from sharded_eden.format.many_files import for_many_files
from sharded_eden.format.sqlite import has_rows_in_log, is_mutable_now
from sharded_eden.load.read.connections import PerThread
from sharded_eden.load.read.plan import Address, Request
from sharded_eden.load.read.positioned import PositionedReader

logger = logging.getLogger(__name__)

FEW = 8
"""Up to this many windows are found faster one by one than with NumPy."""

FEW_RUNS = 1 << 22
"""Up to this many runs (32 MB of first windows) are searched directly; with more, a sampled list gives the block of 64."""

_RUN = Struct("<qqIIIIII")
_IN_BLOCK = np.arange(RUNS_PER_BLOCK)


WINDOWS_AHEAD = 64
BYTES_AHEAD = 8 << 20
"""The most that each worker announces beyond a batch. This is enough to keep the queue of a fast disk full."""


class Lengths(NamedTuple):
    """Columns of the index for some windows, (n,) each."""

    remaining: NDArray[np.int64]
    """Bases from the start of the window to the end of its contig."""
    tag: NDArray[np.uint32]
    """The number of its control tag."""
    known: NDArray[np.bool_]
    """Whether the contig is as it was indexed; for others, the window database has to be asked."""


class WindowAddresses:
    """The index of a window database, as far as it describes the files that are there.

    Args:
        window_db: the window database.
        window_db_identity: its identity when the dataset was opened.
        paths: {sample ID: sequence database}.
        identities: {sample ID: identity of its database when the dataset was opened}.
        stride: bases from one window to the next.
        total_windows: windows of the window database.
        read_ahead: announce windows that are not in the page cache to the kernel.

    Raises:
        DatabaseError: the file is damaged.
    """

    has_every_sample: bool
    """The samples of all windows have sequence databases: all contigs have addresses, and the files are those indexed."""
    was_alone: bool
    """There was one sequence database, which has all contigs, whatever sample their IDs name; now there are others."""

    ahead = (WINDOWS_AHEAD, BYTES_AHEAD)
    """The most windows, and bytes, that a worker announces beyond a batch."""

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
        self._window_db = window_db
        self._stride = stride
        self._read_ahead = read_ahead
        self._window_db_identity = window_db_identity
        self._total_windows = total_windows
        self._all_paths, self._identities = paths, identities
        self._readers: PerThread[PositionedReader] = PerThread(self._make_reader, methodcaller("close"))
        self._open()

    def _open(self) -> None:
        file = IndexFile(self.path)
        meta = file.meta
        described = FileIdentity(*meta["identity"])
        if not len(file.runs):
            raise StaleIndex("it has no windows")
        if has_rows_in_log(self._window_db):
            raise StaleIndex("the window database has a -wal file, whose rows may be others")
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
        self.expected = identities_of(file.samples)
        usable = for_many_files(self._is_as_indexed, range(len(self.names)))
        # Samples without a window in this split have no entry: they are not read.
        has_entry = [size > 0 for size in self.page_bytes]
        has_all = all(path is not None for path, entry in zip(self.paths, has_entry, strict=True) if entry)
        self.was_alone = len(self.names) == 1 < len(self._all_paths)
        self.changed_samples = [
            name for name, good, entry in zip(self.names, usable, has_entry, strict=True) if entry and not good
        ]
        self.has_every_sample = (
            has_all and not meta["without_address"] and not self.changed_samples and not self.was_alone
        )
        self._usable = np.array(usable, dtype=np.bool_) if self.changed_samples else None
        digests = np.ascontiguousarray(file.samples["digest"]).view(np.uint8).reshape(-1, 16)
        was_read: list[int] = np.count_nonzero(digests, axis=1).tolist()
        self.sound_samples = frozenset(
            name for name, good, read in zip(self.names, usable, was_read, strict=True) if good and read
        )
        self._top = file.top
        self._top_view = memoryview(file.top)  # type: ignore[arg-type]  # a buffer
        self._runs = file.runs
        self._words = file.runs.view("<i8").reshape(len(file.runs), RUN.itemsize // 8)  # (R, 5)
        self._first = file.firsts
        self._first_view = memoryview(self._first)  # type: ignore[arg-type]
        self._checked = np.zeros(len(file.top), dtype=np.bool_)
        self._unchecked = len(file.top)
        self._checked_view = memoryview(self._checked)  # type: ignore[arg-type]
        self._runs_offset = file.runs.ctypes.data - np.frombuffer(file.memory, np.uint8).ctypes.data

    def _is_as_indexed(self, number: int) -> bool:
        path, found = self.paths[number], self._identities.get(self.names[number])
        return (
            path is not None
            and found is not None
            and found.is_same_file(self.expected[number])
            and not is_mutable_now(path)
        )

    def _make_reader(self) -> PositionedReader:
        return PositionedReader(self.paths, self.expected, self.page_bytes, read_ahead=self._read_ahead)

    def find(self, windows: Sequence[int]) -> list[Address]:
        """Return where windows lie, in their order."""
        if len(windows) <= FEW:
            return [self.find_one(window) for window in windows]
        words = self._words.take(self._runs_of(np.array(windows, dtype=np.int64)), axis=0, mode="clip")  # (n, 5) int64
        if self._usable is not None:
            words[~self._usable[words.view("<u4")[:, 4]], 1] = -1
        stride = self._stride
        return [
            (sample if at >= 0 else -1, at, local, overflow, (window - first + first_in_contig) * stride, length, tag)
            for window, (first, at, sample, first_in_contig, length, local, overflow, tag) in zip(
                windows, _RUN.iter_unpack(words.data), strict=True
            )
        ]

    def contigs(self, windows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the run of each window, a number that windows of no other contig have, and its window_in_seq_idx."""
        if len(windows) <= FEW:
            numbers = []
            runs = list(map(self._run_of, windows))
            for window, run in zip(windows, runs, strict=True):
                first, _, _, before, *_ = _RUN.unpack_from(self._file.memory, self._runs_offset + run * RUN.itemsize)
                numbers.append(window - first + before)
            return runs, numbers
        found, places = self.places(np.array(windows, dtype=np.int64))
        return found.tolist(), places.tolist()

    def places(self, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return what `contigs` returns, (n,) int64 each."""
        found = self._runs_of(windows)
        words = self._words.take(found, axis=0, mode="clip")  # (n, 5) int64
        return found, windows - words[:, 0] + words.view("<u4")[:, 5]

    def lengths(self, windows: NDArray[np.int64]) -> Lengths:
        """Return what the useful tokens of windows follow from, (n,) each; fastest where windows ascend."""
        words = self._words.take(self._runs_of(windows), axis=0, mode="clip")  # (n, 5) int64
        halves = words.view("<u4")  # (n, 10)
        known = words[:, 1] >= 0
        if self._usable is not None:
            known &= self._usable[halves[:, 4]]
        starts = (windows - words[:, 0] + halves[:, 5]) * self._stride
        return Lengths(halves[:, 6] - starts, halves[:, 9], known)

    def _runs_of(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the run of each window, in blocks that equal their checksums."""
        if len(self._runs) <= FEW_RUNS:
            runs: NDArray[np.int64] = self._first.searchsorted(wanted, side="right") - 1
        else:
            block = (self._top.searchsorted(wanted, side="right") - 1) * RUNS_PER_BLOCK
            near = self._first.take(
                block[:, None] + _IN_BLOCK, mode="clip"
            )  # (n, 64): after the end, the last one again
            runs = block + (near <= wanted[:, None]).sum(axis=1) - 1
        if self._unchecked:
            blocks = np.maximum(runs, 0) // RUNS_PER_BLOCK
            if not (known := self._checked.take(blocks)).all():
                for unknown in set(blocks[~known].tolist()):
                    self._check(unknown)
        return runs

    def _run_of(self, window: int) -> int:
        """Return the run of one window, as `_runs_of` does for many."""
        number = max(bisect_right(self._top_view, window) - 1, 0)
        if not self._checked_view[number]:
            self._check(number)
        block = number * RUNS_PER_BLOCK
        return bisect_right(self._first_view, window, block, min(block + RUNS_PER_BLOCK, len(self._runs))) - 1

    def find_one(self, window: int) -> Address:
        """Return where one window lies, by plain integers: as `find` does for many."""
        offset = self._runs_offset + self._run_of(window) * RUN.itemsize
        first, at, sample, first_in_contig, length, local, overflow, tag = _RUN.unpack_from(self._file.memory, offset)
        if at < 0 or (self._usable is not None and not self._usable[sample]):
            sample = -1
        return sample, at, local, overflow, (window - first + first_in_contig) * self._stride, length, tag

    def _check(self, block: int) -> None:
        """Compare a block of runs with its checksum when it is first used."""
        self._file.check(block)
        if not self._checked[block]:
            self._checked[block] = True
            self._unchecked -= 1

    def read(self, requests: Sequence[Request], memory: memoryview) -> None:
        """Read windows into memory; see `PositionedReader.read`."""
        self._readers.get().read(requests, memory)

    @property
    def is_cold(self) -> bool:
        """Whether this thread waited for windows lately that were not in the page cache."""
        return self._readers.get().cold_batches > 0

    def announce(self, requests: Sequence[Request]) -> None:
        """Announce windows that are read later; see `PositionedReader.announce`."""
        self._readers.get().announce(requests)

    def close(self) -> None:
        """Close the files of this process."""
        self._readers.close()

    def __getstate__(self) -> dict[str, Any]:
        dropped = {
            "_file",
            "_top",
            "_top_view",
            "_runs",
            "_words",
            "_first",
            "_first_view",
            "_checked",
            "_checked_view",
        }
        return {name: value for name, value in self.__dict__.items() if name not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        try:
            self._open()
        except (StaleIndex, KeyError, TypeError, ValueError) as error:  # its meta.json may hold anything
            raise DatabaseError(
                f"{self.path}: it, or its window database, was written after the dataset was opened: {error}. Open the dataset "
                "again"
            ) from error


class StaleIndex(DatabaseError):
    """The index describes other files than the existing ones."""


def open_addresses(window_db: Path, *, sequence_db_dir: Path, **options: Any) -> WindowAddresses | None:
    """Return the index of a window database; None, with one line in the log, where none describes it.

    Args:
        window_db: the window database.
        sequence_db_dir: the folder of sequence databases, for the command that is recommended.
        options: see `WindowAddresses`.
    """
    command = index_command(sequence_db_dir, window_db)
    if not hasattr(os, "preadv") or not options["total_windows"]:
        return None
    if not index_path(window_db).is_file():
        logger.info("%s has no index: windows are located and read by SQLite. Write it: %s", window_db, command)
        return None
    try:
        addresses = WindowAddresses(window_db, **options)
    except (DatabaseError, KeyError, TypeError, ValueError) as error:  # its meta.json may hold anything
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
