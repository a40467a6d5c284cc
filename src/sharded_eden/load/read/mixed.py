"""Windows of several datasets -> the rows of one batch. Reads as `WindowFetcher` does, all sources together.

Input: (epoch, `SourceWindow`) pairs. Output: letters in rows. Cost: one positioned read for a window with
an address, through descriptors that all sources share; for any other window, the cost of the fetcher of its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, warn
from sharded_eden.format.commands import precompute_command
from sharded_eden.format.index import RUN, FileIdentity
from sharded_eden.load.encode.example import strands
from sharded_eden.load.encode.tag_table import TableTags
from sharded_eden.load.locate.addresses import WindowAddresses
from sharded_eden.load.read.connections import PerThread
from sharded_eden.load.read.fetch import NOWHERE, Header, Letters, One, Placed, Wanted, WindowFetcher
from sharded_eden.load.read.plan import Address, Request
from sharded_eden.load.read.positioned import PositionedReader


class SourceWindow(int):
    """A window index that knows its source."""

    source: int

    @classmethod
    def of(cls, source: int, window_idx: int) -> SourceWindow:
        """Return the window of a source."""
        window = cls(window_idx)
        window.source = source
        return window


class MixedFetcher:
    """Fetches windows of sources whose rows have one layout; as `WindowFetcher`.

    Args:
        fetchers: those of all sources.
        members: the numbers of the sources that are read here.
    """

    def __init__(self, fetchers: Sequence[WindowFetcher], members: Sequence[int]) -> None:
        self._fetchers = {k: fetchers[k] for k in members}
        self._first = self._fetchers[members[0]]
        self.lacks_loss = self._are_masked = False
        # Addresses of other types read otherwise, and tags of a table need the epoch and the index of their own source.
        can_join = all(
            type(each._addresses) in {WindowAddresses, type(None)} and not isinstance(each.tags, TableTags)
            for each in self._fetchers.values()
        )
        self._joint = _JointFetcher(self._fetchers) if can_join else None

    @property
    def least_room(self) -> int:
        """The fewest bases that a row shows."""
        return min(fetcher.least_room for fetcher in self._fetchers.values())

    def fill(self, wanted: Sequence[Wanted], sizes: Sequence[int], rows: NDArray[np.uint8]) -> Placed:
        """Read windows into rows; see `WindowFetcher.fill`."""
        if self._joint is not None:
            return self._joint.fill(wanted, sizes, rows)
        return self._fill_by_source(wanted, sizes, rows)

    def one(self, wanted: Wanted, memory: NDArray[np.uint8]) -> One | None:
        """Read one window; see `WindowFetcher.one`."""
        return None if self._joint is None else self._joint.one(wanted, memory)

    def _fill_by_source(self, wanted: Sequence[Wanted], sizes: Sequence[int], rows: NDArray[np.uint8]) -> Placed:
        parts: dict[int, _Part] = {}
        at = 0
        for row, size in enumerate(sizes):
            if size:
                source = _source_of(wanted[at][1])
                part = parts.get(source)
                if part is None:
                    part = parts[source] = _Part([], [], [])
                part.rows.append(row)
                part.sizes.append(size)
                part.numbers.extend(range(at, at + size))
                at += size
        for source, part in parts.items():  # the windows of all sources are requested before the first is waited for
            if len(parts) > 1 and self._fetchers[source].windows_ahead:
                self._fetchers[source].announce([wanted[k][1] for k in part.numbers])
        count = len(wanted)
        row_of, at_of, first, end, reverse = [0] * count, [0] * count, [0] * count, [0] * count, [False] * count
        headers: list[NDArray[np.int64]] | None = None
        for source, part in parts.items():
            placed = self._fetchers[source].fill([wanted[k] for k in part.numbers], part.sizes, rows, part.rows)
            if placed.headers is not None and headers is None:
                headers = [placed.headers[0]] * count
            for k, number in enumerate(part.numbers):
                row_of[number], at_of[number] = placed.row[k], placed.at[k]
                first[number], end[number], reverse[number] = placed.first[k], placed.end[k], placed.reverse[k]
                if headers is not None and placed.headers is not None:
                    headers[number] = placed.headers[k]
        return Placed(row_of, at_of, first, end, headers, reverse)

    @property
    def windows_ahead(self) -> int:
        """The most windows to announce beyond a batch: 0 while the windows read are in the page cache."""
        if self._joint is not None:
            return self._joint.windows_ahead
        return max(fetcher.windows_ahead for fetcher in self._fetchers.values())

    def announce(self, windows: Sequence[int]) -> None:
        """Tell the kernel which windows are read soon."""
        if self._joint is not None:
            self._joint.announce(windows)
            return
        by_source: dict[int, list[int]] = {}
        for window in windows:
            by_source.setdefault(_source_of(window), []).append(window)
        for source, of_source in by_source.items():
            if self._fetchers[source].windows_ahead:
                self._fetchers[source].announce(of_source)

    def check_fits(self, tokens: int, seq_length: int) -> None:
        """Refuse windows of a pack that do not fit into a row; see `WindowFetcher.check_fits`."""
        self._first.check_fits(tokens, seq_length)

    def check_loss(self, any_loss: bool, *, masked: bool = False) -> None:
        """Note whether a label of these rows counts in the loss: other rows of the batch may have another layout."""
        self.lacks_loss, self._are_masked = not any_loss, masked

    def warn_of_loss(self) -> None:
        """Warn that no label of a batch counts in the loss: the mean over none is NaN."""
        if self._are_masked or len(self._fetchers) == 1:
            self._first.check_loss(any_loss=False, masked=self._are_masked)
            return
        warn(
            "mixture: no label of a batch earns a loss, all of its letters are masked: the mean over them is NaN. Leave "
            f"such windows out of the sources: {precompute_command('WINDOWS.db', max_ambiguous=0.5)}"
        )

    def close(self) -> None:
        """Close the files that sources share in this process."""
        if self._joint is not None:
            self._joint.close()

    def unreadable_letters(self, window: int, error: UnicodeError) -> DatabaseError:
        """Return the error to raise where the letters of a window cannot be encoded."""
        return self._fetchers[_source_of(window)].unreadable_letters(window, error)


class _Part(NamedTuple):
    """What one source gives to a batch."""

    rows: list[int]
    sizes: list[int]
    numbers: list[int]
    """The number of each window among all windows of the batch."""


def _source_of(window: int) -> int:
    source: int = window.source  # type: ignore[attr-defined]
    return source


class _JointFetcher(WindowFetcher):
    """A `WindowFetcher` over the addresses of several sources of one layout."""

    def __init__(self, fetchers: dict[int, WindowFetcher]) -> None:
        first = next(iter(fetchers.values()))
        vars(self).update(vars(first))
        self._members = fetchers
        seeds = {each._seed if each._rc_aug else None for each in fetchers.values()}
        self._one_seed = seeds.pop() if len(seeds) == 1 else None
        """The seed of the strands, where all sources have it and use reverse complements."""
        self._by_tag: dict[int, Header] = {}
        self._joint = _JointAddresses(fetchers)
        self._addresses = self._joint  # type: ignore[assignment]

    def _read_by_sqlite(self, windows: Sequence[int], given: Sequence[Header] | None = None) -> list[Letters]:
        numbers: dict[int, list[int]] = {}
        for k, window in enumerate(windows):
            numbers.setdefault(_source_of(window), []).append(k)
        letters: list[Any] = [None] * len(windows)
        for source, of_source in numbers.items():
            read = self._members[source]._read_by_sqlite([windows[k] for k in of_source])
            for k, each in zip(of_source, read, strict=True):
                letters[k] = each
        return letters

    def _strands(self, wanted: Sequence[Wanted]) -> list[bool]:
        plain = [(epoch, int(window)) for epoch, window in wanted]
        if self._one_seed is not None:
            return strands(self._one_seed, plain)
        reverse = [False] * len(wanted)
        by_seed: dict[int, list[int]] = {}
        for k, (_, window) in enumerate(wanted):
            fetcher = self._members[_source_of(window)]
            if fetcher._rc_aug:
                by_seed.setdefault(fetcher._seed, []).append(k)
        for seed, numbers in by_seed.items():
            for k, is_reversed in zip(numbers, strands(seed, [plain[k] for k in numbers]), strict=True):
                reverse[k] = is_reversed
        return reverse

    def close(self) -> None:
        """Close the files of this process."""
        self._joint._readers.close()

    def _header_of(self, tag: int, window_idx: int) -> Header:
        source = _source_of(window_idx)
        own = tag - self._joint.first_tag[source]
        header = self._members[source]._header_of(own, window_idx)
        if own < self._joint.unnumbered_tag[source]:
            self._by_tag[tag] = header
        return header

    def check_fits(self, tokens: int, seq_length: int) -> None:
        """Refuse windows of a pack that do not fit into a row."""
        if tokens > seq_length:
            paths = ", ".join(str(fetcher._index.path) for fetcher in self._members.values())
            raise DatabaseError(
                f"the windows of a pack need {tokens} tokens, a row has {seq_length}. The packs of one of these belong to "
                f"other windows, pack it again: {paths[:400]}"
            )


MOST_JOINT_RUNS = 1 << 18
"""Up to this many runs of all sources (19 MB) are copied to one table; with more, each window is looked up by itself."""


class _Table(NamedTuple):
    """The runs of all sources, one after another, see `sharded_eden.format.index`."""

    firsts: NDArray[np.int64]
    """(R,): the first window of each run, numbered on from source to source."""
    runs: NDArray[np.int64]
    """(R, 8): the same, the first window in its contig, sample, offset, local bases, overflow page, contig length, tag."""
    first_window: NDArray[np.int64]
    """(S,): the number of the first window of each source."""


class _JointAddresses:
    """The addresses of several sources. Sequence databases and tags are numbered on from source to source."""

    ahead = getattr(WindowAddresses, "ahead", None)

    def __init__(self, fetchers: dict[int, WindowFetcher]) -> None:
        self._sources = len(fetchers)
        self._of = {k: each._addresses for k, each in fetchers.items() if each._addresses is not None}
        self._strides = {k: addresses._stride for k, addresses in self._of.items()}
        self._first_sample: dict[int, int] = {}
        self.first_tag: dict[int, int] = {}
        self.unnumbered_tag: dict[int, int] = {}
        """Of each source, the first number that is no tag: windows of contigs with rare tags have it or a larger one."""
        samples = tags = 0
        for k, addresses in self._of.items():
            self._first_sample[k], self.first_tag[k] = samples, tags
            self.unnumbered_tag[k] = len(addresses.tags)
            samples += len(addresses.names)
            tags += len(addresses.tags) + 1
        self._table: _Table | None = None
        self._readers = PerThread(self._make_reader, PositionedReader.close)

    def _make_reader(self) -> PositionedReader:
        each = self._of.values()
        paths = [path for addresses in each for path in addresses.paths]
        expected: list[FileIdentity] = [identity for addresses in each for identity in addresses.expected]
        page_bytes = [size for addresses in each for size in addresses.page_bytes]
        return PositionedReader(paths, expected, page_bytes, read_ahead=any(each._read_ahead for each in each))

    def find(self, windows: Sequence[int]) -> list[Address]:
        """Return where windows lie, in their order."""
        if self._table is None:
            self._table = self._make_table()
        if not len(self._table.firsts) or not windows:
            return [self.find_one(window) for window in windows]
        table = self._table
        source: list[int] = [window.source for window in windows]  # type: ignore[attr-defined]
        on = np.array(list(map(int, windows))) + table.first_window[source]
        runs = table.runs[table.firsts.searchsorted(on, side="right") - 1]
        strides = self._strides
        return [
            (sample if at >= 0 else -1, at, local, overflow, (w - first + in_contig) * strides[k], length, tag)
            for w, k, (first, in_contig, sample, at, local, overflow, length, tag) in zip(
                on.tolist(), source, runs.tolist(), strict=True
            )
        ]

    def find_one(self, window: int) -> Address:
        """Return where one window lies."""
        source = _source_of(window)
        addresses = self._of.get(source)
        if addresses is None:
            return NOWHERE
        sample, at, local, overflow, start, length, tag = addresses.find_one(window)
        if sample >= 0:
            sample += self._first_sample[source]
        return sample, at, local, overflow, start, length, self._joint_tag(source, tag)

    def _joint_tag(self, source: int, tag: int) -> int:
        return min(tag, self.unnumbered_tag[source]) + self.first_tag[source]

    def _make_table(self) -> _Table:
        """Return the runs of all sources in one table, so that windows of all are found at once; empty where there are many."""
        each = list(self._of.items())
        if len(each) < self._sources or sum(len(addresses._runs) for _, addresses in each) > MOST_JOINT_RUNS:
            return _Table(np.empty(0, np.int64), np.empty((0, 8), np.int64), np.empty(0, np.int64))
        parts = []
        first_window = np.zeros(max(self._of) + 1, dtype=np.int64)
        windows = 0
        for k, addresses in each:
            for block in range(len(addresses._top)):
                addresses._check(block)
            first_window[k] = windows
            columns = np.stack([addresses._runs[name].astype(np.int64) for name in RUN.names or ()], axis=1)
            first, at, sample, in_contig, length, local, overflow, tag = columns.T
            if addresses._usable is not None:
                at = np.where(addresses._usable[sample], at, -1)
            sample = sample + self._first_sample[k]
            tag = np.minimum(tag, self.unnumbered_tag[k]) + self.first_tag[k]
            parts.append(np.stack([first + windows, in_contig, sample, at, local, overflow, length, tag], axis=1))
            windows += addresses._total_windows
        table = np.concatenate(parts)
        return _Table(np.ascontiguousarray(table[:, 0]), table, first_window)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    @property
    def is_cold(self) -> bool:
        """Whether this thread waited for windows lately that were not in the page cache."""
        return self._readers.get().cold_batches > 0

    def announce(self, requests: Sequence[Request]) -> None:
        """Announce windows that are read later; see `PositionedReader.announce`."""
        self._readers.get().announce(requests)

    def read(self, requests: Sequence[Request], memory: memoryview) -> None:
        """Read windows into memory; see `PositionedReader.read`."""
        self._readers.get().read(requests, memory)
