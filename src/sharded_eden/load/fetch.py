"""(epoch, window index) -> the bases of a window, its strand and its header: locate, read, and refuse what does not fit.

Enters: integers. Leaves: letters as bytes. Costs two index lookups and one BLOB read.
"""

from __future__ import annotations

from typing import NamedTuple

import apsw
import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, MissingSequence, warn
from sharded_eden.format.sqlite import unreadable
from sharded_eden.load.connections import PerThread
from sharded_eden.load.example import RowFormat, is_reversed
from sharded_eden.load.locate import Row, WindowIndex, pack_options, rebuild_command
from sharded_eden.load.read import SequenceReader
from sharded_eden.load.sequences import Contig
from sharded_eden.load.tags import ControlTags


class Window(NamedTuple):
    """A window as it was read, and where it came from."""

    bases: NDArray[np.uint8]
    """(n,) uint8: the letters, in the case and on the strand of the database. Overwritten by the thread's next window."""
    reverse: bool
    """Show the reverse complement."""
    header: NDArray[np.int64]
    """(H,) int64: BOS, control tag, SEP."""
    window_idx: int
    sequence_id: str
    window_in_seq_idx: int
    epoch: int


Located = tuple[int, int, Row]
"""(epoch, window index, its row of the window database)."""


class WindowFetcher:
    """Fetches the windows of one split.

    Args:
        index: the windows.
        reader: the sequences.
        row_format: how many bases a row shows.
        tags: the control tags; None for rows without.
        split: the name of the split, for messages.
        seed: decides strands.
        rc_aug: show half of the windows as their reverse complement.
    """

    def __init__(
        self,
        index: WindowIndex,
        reader: SequenceReader,
        row_format: RowFormat,
        *,
        tags: ControlTags | None,
        split: str,
        seed: int,
        rc_aug: bool,
    ) -> None:
        self._index = index
        self._reader = reader
        self._tags = tags
        self._split = split
        self._seed = seed
        self._rc_aug = rc_aug
        header = row_format.header([])
        self._untagged = header, row_format.room(header)
        self._has_eos = int(row_format.include_eos)
        self._stride = index.geometry.stride
        self._window_size = index.geometry.window_size
        self._letters = PerThread(self._make_letters, _forget)

    def _make_letters(self) -> NDArray[np.uint8]:
        return np.empty(self._window_size, dtype=np.uint8)

    @property
    def least_room(self) -> int:
        """The fewest bases that a row shows."""
        return self._untagged[1] if self._tags is None else self._tags.least_room

    def read(self, epoch: int, window_idx: int, row: Row) -> Window:
        """Return a window that was located already; raises as `place`."""
        letters = self._letters.get()
        header, first, end, reverse = self.place(epoch, window_idx, row, letters, 0)
        return Window(letters[first:end], reverse, header, window_idx, row[0], row[1], epoch)

    def place(
        self, epoch: int, window_idx: int, row: Row, out: NDArray[np.uint8], at: int
    ) -> tuple[NDArray[np.int64], int, int, bool]:
        """Read a window that was located already into `out`, where its header, which begins at `at`, ends.

        Args:
            epoch: decides the strand.
            window_idx: its index.
            row: where it is.
            out: (T,) uint8, written.
            at: where it begins in the row.

        Returns:
            Its header, where its bases begin and end in `out`, and whether to show the reverse complement.

        Raises:
            MissingSequence: its contig is absent, or too short for it.
            DatabaseError: a database cannot be read, or the window does not fit into its row.
        """
        sequence_id, window_in_seq_idx, recorded = row
        contig = self._reader.contig(sequence_id)
        start = window_in_seq_idx * self._stride
        if contig is None or start < 0:
            raise self._missing(window_idx, sequence_id, start, recorded, contig)
        remaining = contig.length - start
        # Where the whole window is there, it does not matter where its contig should end.
        if remaining < self._window_size and contig.length < self._needed_bases(window_idx, start, recorded):
            raise self._missing(window_idx, sequence_id, start, recorded, contig)
        header, room = self._untagged if self._tags is None else self._tags.header(sequence_id)
        first = at + len(header)
        length = room if room < remaining else remaining
        end = first + length
        if end + self._has_eos > len(out):
            raise self.overfull_pack(end + self._has_eos, len(out))
        try:
            contig.read(start, out, first, length)
        except apsw.Error as error:
            raise unreadable(self._reader.paths[contig.sample_id], error) from error
        reverse = self._rc_aug and is_reversed(self._seed, epoch, window_idx)
        return header, first, end, reverse

    def _needed_bases(self, window_idx: int, start: int, recorded: int | None) -> int:
        """Return the least length, in bases, that a contig must have for its window at `start`."""
        contig_length = self._index.contig_length(window_idx) if recorded is None else recorded
        if contig_length is not None:
            return max(start + 1, min(start + self._window_size, contig_length))
        # Without recorded lengths: a contig's first window may be short, the later ones are whole unless tails are kept.
        geometry = self._index.geometry
        whole = start > 0 and not geometry.keep_tail
        return start + (self._window_size if whole else max(1, geometry.min_length))

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
        return MissingSequence(
            f"{self._split} split, window {window_idx}: contig {sequence_id!r} must have at least {needed} bases; {path} has "
            + ("no such contig" if contig is None else f"{contig.length} bases of it")
            + f". {self._index.path} belongs to other sequence databases. Make the splits and windows of these anew: "
            f"sharded-eden split {path.parent.parent} --out DIR, then {self._index.rebuild_command(self._index.geometry)}"
        )

    def overfull_pack(self, tokens: int, seq_length: int) -> DatabaseError:
        """Return the error to raise where the windows of a pack do not fit into a row."""
        return DatabaseError(
            f"{self._index.path}: the windows of a pack need {tokens} tokens, a row has {seq_length}. The packs belong to "
            f"other windows. Pack again: sharded-eden pack {self._index.path}"
        )

    def check_loss(self, any_loss: bool) -> None:
        """Say so where no label of a batch earns a loss: the mean over none is NaN."""
        if not any_loss:
            folder = next(iter(self._reader.paths.values())).parent.parent
            command = rebuild_command(self._index.path, self._index.geometry) + pack_options(self._index.metadata)
            warn(
                f"{self._split} split: no label of a batch earns a loss, all of its letters are masked: the mean over them is "
                f"NaN. Leave such windows out: {command} --max-ambiguous 0.5 --sequences {folder}"
            )

    def unreadable_letters(self, sequence_id: str, window_in_seq_idx: int, error: UnicodeError) -> DatabaseError:
        """Return the error to raise where the letters of a window cannot be encoded."""
        path = self._reader.paths[self._reader.sample_of(sequence_id)]
        return DatabaseError(
            f"{path}: contig {sequence_id!r} holds characters that are no letters "
            f"near base {window_in_seq_idx * self._stride}: {error}"
        )


def _forget(letters: NDArray[np.uint8]) -> None:
    """Memory needs no closing."""
