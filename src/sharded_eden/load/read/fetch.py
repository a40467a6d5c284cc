"""(epoch, window index) -> the letters of windows in rows of memory: locate, read, and refuse what does not fit.

Input: pairs of integers. Output: letters as bytes; those of a window begin where its header ends. Cost: one positioned read for
a window with an address (`sharded_eden.load.locate.addresses`); two index lookups and one BLOB read in SQLite for all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, MissingSequence, printable, shown, warn
from sharded_eden.format.commands import pack_command, precompute_command, split_command
from sharded_eden.format.sqlite import READ_ERRORS, unreadable
from sharded_eden.load.encode.example import RowFormat, strands
from sharded_eden.load.encode.tag_table import TableTags
from sharded_eden.load.encode.tags import ControlTags
from sharded_eden.load.locate.addresses import WindowAddresses
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.read.databases import SequenceReader
from sharded_eden.load.read.plan import Address, Request
from sharded_eden.load.read.sequences import Contig

Wanted = tuple[int, int]
"""(epoch, window index)."""

Header = tuple[NDArray[np.int64], int]
"""BOS, control tag and SEP, (H,) int64, and how many bases fit after it."""


NOWHERE: Address = (-1, 0, 0, 0, 0, 0, 0)
_NONE: list[int] = []
"""Copying it makes a typed list; `list[int]()` costs ten times as much, once for each batch."""


class Window(NamedTuple):
    """A window as it was read, with its contig and place."""

    bases: NDArray[np.uint8]
    """(n,) uint8: the letters, in the case and on the strand of the database."""
    reverse: bool
    """Use the reverse complement."""
    header: NDArray[np.int64]
    """(H,) int64: BOS, control tag, SEP."""
    window_idx: int
    sequence_id: str
    window_in_seq_idx: int
    epoch: int


class Letters(NamedTuple):
    """A window that SQLite read."""

    bases: NDArray[np.uint8]
    header: NDArray[np.int64]


class Placed(NamedTuple):
    """Where windows lie in rows of memory: a list each, in the order of the windows."""

    row: Sequence[int]
    at: Sequence[int]
    """Where the header of each begins."""
    first: list[int]
    """Where its letters begin."""
    end: list[int]
    """Where its letters end."""
    headers: list[NDArray[np.int64]] | None
    """BOS, control tag, SEP of each; None without control tags."""
    reverse: list[bool]
    """Use the reverse complement."""


class One(NamedTuple):
    """A window that was read by itself."""

    bases: NDArray[np.uint8]
    """(n,) uint8: the letters, on the strand of the database."""
    header: NDArray[np.int64]
    """BOS, control tag, SEP: (H,) int64."""
    reverse: bool
    """Use the reverse complement."""


class WindowFetcher:
    """Fetches the windows of one split.

    Args:
        index: the windows.
        reader: the sequences, through SQLite.
        addresses: the addresses of windows; None if there is no index file.
        row_format: how many bases a row shows.
        tags: the control tags; None for rows without control tags.
        split: the name of the split, for messages.
        seed: the seed of the strands.
        rc_aug: use the reverse complement of half of the windows.
    """

    def __init__(
        self,
        index: WindowIndex,
        reader: SequenceReader,
        addresses: WindowAddresses | None,
        row_format: RowFormat,
        *,
        tags: ControlTags | TableTags | None,
        split: str,
        seed: int,
        rc_aug: bool,
    ) -> None:
        self._index = index
        self._reader = reader
        self._addresses = addresses
        self.tags = tags
        self._by_tag: dict[int, Header] = {}
        self._split = split
        self._seed = seed
        self._rc_aug = rc_aug
        header = row_format.header([])
        self._untagged: Header = header, row_format.room(header)
        self._has_eos = int(row_format.include_eos)
        self._stride = index.geometry.stride
        self._window_size = index.geometry.window_size

    @property
    def least_room(self) -> int:
        """The fewest bases that a row shows."""
        return self._untagged[1] if self.tags is None else self.tags.least_room

    def fill(
        self,
        wanted: Sequence[Wanted],
        sizes: Sequence[int],
        rows: NDArray[np.uint8],
        into: Sequence[int] | None = None,
    ) -> Placed:
        """Read windows into rows, one after another, with room for the header and EOS of each.

        Args:
            wanted: the windows of all rows.
            sizes: windows of each row.
            rows: (B, T) uint8, contiguous, written where letters are.
            into: the number of each row in `rows`; None for 0, 1, 2, ...

        Raises:
            MissingSequence: a contig is absent, or too short.
            DatabaseError: a database cannot be read or has changed, or the windows of a row do not fit into it.
        """
        windows = [window_idx for _, window_idx in wanted]
        if self._addresses is None:
            addresses = [NOWHERE] * len(windows)
            without = windows
        else:
            addresses = self._addresses.find(windows)
            without = [window_idx for window_idx, each in zip(windows, addresses, strict=True) if each[0] < 0]
        given = self.tags.of_windows(wanted) if isinstance(self.tags, TableTags) else None
        of_others = given and [known for known, each in zip(given, addresses, strict=True) if each[0] < 0]
        letters = iter(self._read_by_sqlite(without, of_others)) if without else iter(())
        has_tags, length, has_eos = self.tags is not None, rows.shape[1], self._has_eos
        header, room = self._untagged
        before = len(header)
        row_of: Sequence[int] = range(len(sizes)) if into is None else into
        if sizes.count(1) != len(sizes):
            row_of = [row for row, size in zip(row_of, sizes, strict=True) for _ in range(size)]
        headers: list[NDArray[np.int64]] = []
        requests: list[Request] = []
        at_of, first_of, end_of = _NONE[:], _NONE[:], _NONE[:]
        by_sqlite: list[tuple[int, int, NDArray[np.uint8]]] = []
        at, last_row = 0, -1
        for row, window_idx, (sample, offset, local, overflow, start, contig_length, tag) in zip(
            row_of, windows, addresses, strict=True
        ):
            if row != last_row:
                at, last_row = 0, row
            if sample >= 0:
                if has_tags:
                    header, room = (
                        given[len(at_of)] if given else self._by_tag.get(tag) or self._header_of(tag, window_idx)
                    )
                    before = len(header)
                first = at + before
                bases = contig_length - start
                if bases > room:  # noqa: PLR1730 - a call of min() costs twice as much
                    bases = room
                requests.append((sample, offset, local, overflow, start, contig_length, bases, row * length + first))
            else:
                read, header = next(letters)
                bases = len(read)
                first = at + len(header)
                by_sqlite.append((row, first, read))
            at_of.append(at)
            first_of.append(first)
            end = first + bases
            end_of.append(end)
            if has_tags:
                headers.append(header)
            at = end + has_eos
            if at > length:
                self.check_fits(at, length)
        for row, first, read in by_sqlite:
            rows[row, first : first + len(read)] = read
        if requests:
            self._addresses.read(requests, memoryview(rows.reshape(-1)))  # type: ignore[arg-type, union-attr]
        return Placed(row_of, at_of, first_of, end_of, headers if has_tags else None, self._strands(wanted))

    def one(self, wanted: Wanted, memory: NDArray[np.uint8]) -> One | None:
        """Read one window that has an address, which costs less than `fill`; return None where `fill` has to read it.

        Args:
            wanted: the window.
            memory: (T,) uint8, contiguous; the letters are written to it.

        Raises:
            DatabaseError: the database cannot be read or has changed.
        """
        addresses, tags, window_idx = self._addresses, self.tags, wanted[1]
        if addresses is None or isinstance(tags, TableTags):
            return None
        sample, offset, local, overflow, start, contig_length, tag = addresses.find_one(window_idx)
        if sample < 0:
            return None
        header, room = self._untagged if tags is None else self._by_tag.get(tag) or self._header_of(tag, window_idx)
        bases = min(contig_length - start, room)
        request = sample, offset, local, overflow, start, contig_length, bases, 0
        addresses.read((request,), memoryview(memory))  # type: ignore[arg-type]
        return One(memory[:bases], header, self._strands((wanted,))[0])

    def _strands(self, wanted: Sequence[Wanted]) -> list[bool]:
        """Return which windows are shown as their reverse complement."""
        return strands(self._seed, wanted) if self._rc_aug else [False] * len(wanted)

    @property
    def windows_ahead(self) -> int:
        """The most windows to announce beyond a batch: 0 while the windows read are in the page cache."""
        if self._addresses is None or not self._addresses.is_cold:
            return 0
        windows, size_bytes = self._addresses.ahead
        return min(windows, size_bytes // self._window_size)

    def announce(self, windows: Sequence[int]) -> None:
        """Tell the kernel which windows are read soon; windows without an address are left out."""
        if self._addresses is not None:
            room = self._untagged[1]
            self._addresses.announce(
                [
                    (sample, at, local, overflow, start, length, min(length - start, room), 0)
                    for sample, at, local, overflow, start, length, _ in self._addresses.find(windows)
                    if sample >= 0
                ]
            )

    def _header_of(self, tag: int, window_idx: int) -> Header:
        """Return the header of a window with this number of a tag, and remember it by its number."""
        header = self.tags.header(self._name_of(tag, window_idx))  # type: ignore[union-attr]
        if tag < len(self._addresses.tags):  # type: ignore[union-attr]  # others have no number of their own
            self._by_tag[tag] = header
        return header

    def _name_of(self, tag: int, window_idx: int) -> str:
        names = self._addresses.tags  # type: ignore[union-attr]
        return names[tag] if tag < len(names) else self._index.locate(window_idx)[0]

    def _read_by_sqlite(self, windows: Sequence[int], given: Sequence[Header] | None = None) -> list[Letters]:
        """Return the letters of windows, as many as fit into a row, in the order of the windows; `given` are their headers."""
        letters: list[Letters] = []
        samples: set[str] = set()
        for window_idx, (sequence_id, window_in_seq_idx, recorded) in zip(
            windows, self._index.locate_many(windows), strict=True
        ):
            contig = self._reader.contig(sequence_id)
            start = window_in_seq_idx * self._stride
            if contig is None or start < 0:
                raise self._missing(window_idx, sequence_id, start, recorded, contig)
            samples.add(contig.sample_id)
            remaining = contig.length - start
            # Where the whole window is there, it does not matter where its contig should end.
            if remaining < self._window_size and contig.length < self._needed_bases(window_idx, start, recorded):
                raise self._missing(window_idx, sequence_id, start, recorded, contig)
            if given is not None:
                header, room = given[len(letters)]
            else:
                header, room = self._untagged if self.tags is None else self.tags.header(sequence_id)
            bases = np.empty(min(room, remaining), dtype=np.uint8)
            try:
                contig.read(start, bases)
            except READ_ERRORS as error:
                raise unreadable(self._reader.paths[contig.sample_id], error) from error
            letters.append(Letters(bases, header))
        self._reader.check_unchanged(samples)
        return letters

    def _needed_bases(self, window_idx: int, start: int, recorded: int | None) -> int:
        """Return the least length, in bases, that a contig must have for its window at `start`."""
        contig_length = self._index.contig_length(window_idx) if recorded is None else recorded
        if contig_length is None:
            number = np.array([start // self._stride], dtype=object)  # a damaged one may be of any size
            return int(self._index.geometry.least_lengths(number)[0])
        least = 1 if start else 0  # the one window of a contig without bases is a row without bases
        return max(start + least, min(start + self._window_size, contig_length))

    def _missing(
        self,
        window_idx: int,
        sequence_id: str,
        start: int,
        recorded: int | None,
        contig: Contig | None,
    ) -> MissingSequence:
        needed = self._needed_bases(window_idx, start, recorded)
        path = self._reader.paths[self._reader.sample_of(sequence_id)]
        again = self._index.rebuild_command(self._index.geometry)
        short_last = ""
        if contig is not None and 0 < start < contig.length < needed and self._index.contig_length(window_idx) is None:
            short_last = (
                ". If its last windows are short on purpose, say so in it: "
                "INSERT OR REPLACE INTO metadata VALUES ('keep_tail', 1)"
            )
        return MissingSequence(
            f"{self._split} split, window {window_idx}: contig {sequence_id!r} must have at least {needed} bases; {path} has "
            + ("no such contig" if contig is None else f"{contig.length} bases of it")
            + f". {self._index.path} belongs to other sequence databases. Make the splits and windows of these "
            f"again: {split_command(path.parent.parent)}, then {again}{short_last}"
        )

    def check_fits(self, tokens: int, seq_length: int) -> None:
        """Refuse windows of a pack that do not fit into a row.

        Raises:
            DatabaseError: they need more tokens than the row has.
        """
        if tokens > seq_length:
            raise DatabaseError(
                f"{self._index.path}: the windows of a pack need {tokens} tokens, a row has {seq_length}. The packs belong "
                f"to other windows. Pack again: {pack_command(self._index.path, force=True)}"
            )

    def check_loss(self, any_loss: bool, *, masked: bool = False) -> None:
        """Warn where no label of a batch counts in the loss: the mean over none is NaN. `masked`: rows of the objective mlm."""
        if not any_loss and masked:
            warn(
                f"{self._split} split: no masked base of a batch earns a loss: the mean over them is NaN. Use larger micro "
                "batches or a larger mlm_share, or divide the sum of the losses by at least 1"
            )
        elif not any_loss:
            folder = next(iter(self._reader.paths.values())).parent.parent
            command = precompute_command(
                self._index.path,
                geometry=self._index.geometry,
                max_ambiguous=0.5,
                sequences=folder,
                metadata=self._index.metadata,
            )
            warn(
                f"{self._split} split: no label of a batch earns a loss, all of its letters are masked: the mean over them is "
                f"NaN. Leave such windows out: {command}"
            )

    def unreadable_letters(self, window_idx: int, error: UnicodeError) -> DatabaseError:
        """Return the error to raise where the letters of a window cannot be encoded."""
        sequence_id, window_in_seq_idx, _ = self._index.locate(window_idx)
        path = self._reader.paths[self._reader.sample_of(sequence_id)]
        return DatabaseError(
            f"{printable(path)}: contig {shown(sequence_id)} cannot be encoded near base "
            f"{window_in_seq_idx * self._stride}: {error}"
        )
