"""Counts of one sequence database and of its windows in each split. One task: it can be pickled and run anywhere.

Input: the database and the window databases. Output: groups of counts. Every base is read once, unless a share is requested.
Memory: a few MB, and the distinct lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import apsw
import numpy as np
from numpy.typing import NDArray

from sharded_eden.describe.group import By, Groups, sample_of
from sharded_eden.describe.letters import COLUMNS, LetterCounts, StrangeLetter, count_letters
from sharded_eden.describe.window_table import OpenSplit, Split
from sharded_eden.errors import DatabaseError, printable, shown
from sharded_eden.format.commands import verify_command
from sharded_eden.format.sequence_db import blob_obstacle, rowid_name, sequence_db_problems
from sharded_eden.format.sqlite import READ_ERRORS, open_read_only, unreadable
from sharded_eden.jobs import Say

PIECE_BASES = 1 << 22
"""Longer contigs are read in pieces."""
CHUNK_BASES = 1 << 22
CHUNK_CONTIGS = 4096
"""Contigs that are counted together."""
REPORT_BASES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class SampleTask:
    """What to count."""

    sample: str
    path: Path
    by: By | None
    splits: tuple[Split, ...] = ()
    share: float = 1.0
    """The share of the contigs whose letters are counted."""
    seed: int = 42
    check_samples: bool = False
    """Whether each ID must name this sample: where there are windows and several sequence databases."""
    letters: bool = True
    """Whether letters are counted at all."""


@dataclass(kw_only=True, eq=False)
class SampleCounts:
    """What was counted."""

    contigs: Groups
    splits: list[Groups]
    """The contigs that have a window, for each split."""
    unassigned_contigs: int
    """Contigs without a window in any of the splits."""
    unassigned_bases: int
    too_short_bases: int
    """Those of them whose lengths make no window in any of the splits."""


class _Contig(NamedTuple):
    contig_id: str
    length: int
    letters: bytes
    """Empty unless the letters are counted with those of other contigs."""
    counts: NDArray[np.int64] | None
    """The counts of a contig that was read in pieces."""
    is_counted: bool


def count_sample(task: SampleTask, say: Say) -> SampleCounts:
    """Count one sequence database; `say` is called with the share that is done.

    Raises:
        DatabaseError: it cannot be read, holds other letters than nucleotides, or does not belong to the windows.
    """
    with closing(open_read_only(task.path)) as database, ExitStack() as stack:
        try:
            for problem in sequence_db_problems(database, task.path):
                raise problem.error(task.path)
            splits = [OpenSplit(split, stack) for split in task.splits]
            return _Counting(task, database, splits, say).run()
        except READ_ERRORS as error:
            raise unreadable(task.path, error) from error


class _Counting:
    """The state of one task."""

    def __init__(self, task: SampleTask, database: apsw.Connection, splits: Sequence[OpenSplit], say: Say) -> None:
        self._task, self._database, self._splits, self._say = task, database, splits, say
        self._encoding = str(database.pragma("encoding"))
        self._unit = 1 if self._encoding == "UTF-8" else 2
        self._size = max(1, task.path.stat().st_size)
        self._bases, self._next_report = 0, REPORT_BASES
        self._counts = SampleCounts(
            contigs=Groups(task.by),
            splits=[Groups(task.by, split.geometry) for split in task.splits],
            unassigned_contigs=0,
            unassigned_bases=0,
            too_short_bases=0,
        )

    def run(self) -> SampleCounts:
        for chunk in self._chunks():
            self._add(chunk)
        return self._counts

    def _chunks(self) -> Iterator[list[_Contig]]:
        chunk: list[_Contig] = []
        bases = 0
        for contig in self._contigs():
            chunk.append(contig)
            bases += len(contig.letters)
            if bases >= CHUNK_BASES or len(chunk) >= CHUNK_CONTIGS:
                yield chunk
                chunk, bases = [], 0
        if chunk:
            yield chunk

    def _contigs(self) -> Iterator[_Contig]:
        in_pieces = not blob_obstacle(self._database)
        rowid = rowid_name(self._database) if in_pieces else "NULL"
        most = PIECE_BASES * self._unit if in_pieces else 1 << 40
        if not self._task.letters:
            most = -1
        size = "octet_length(nt_sequence)"
        rows = self._database.execute(
            f"SELECT contig_id, typeof(contig_id), typeof(nt_sequence), {size}, "
            f"iif({size} <= {most}, CAST(nt_sequence AS BLOB), NULL), {rowid} FROM sequences"
        )
        for contig_id, id_kind, kind, size_bytes, data, row in rows:
            if id_kind != "text" or kind not in {"text", "blob"}:
                raise DatabaseError(
                    f"{printable(self._task.path)}: contig {shown(contig_id)} is {id_kind} with a sequence that is {kind}; "
                    f"both must be text. Check it: {verify_command(self._task.path.parent.parent)}"
                )
            if "\0" in contig_id:
                raise DatabaseError(
                    f"{printable(self._task.path)}: contig {shown(contig_id)} has a NUL character in its ID, so it cannot have "
                    "windows. Build the sample again with another ID"
                )
            if self._task.check_samples and sample_of(contig_id) != self._task.sample:
                raise DatabaseError(
                    f"{printable(self._task.path)}: contig {shown(contig_id)} names sample {shown(sample_of(contig_id))}, so "
                    f"its windows are read from another database. Check it: "
                    f"{verify_command(self._task.path.parent.parent, full=True)}"
                )
            length = size_bytes if kind == "blob" else size_bytes // self._unit
            is_counted = self._task.letters and self._is_chosen(contig_id)
            letters, counts = b"", None
            if is_counted and data is None:
                counts = self._count_pieces(contig_id, row, length)
            elif is_counted:
                letters = self._as_letters(data) if kind == "text" and self._unit == 2 else data
                length = len(letters)
            self._report(length)
            yield _Contig(contig_id, length, letters, counts, is_counted)

    def _is_chosen(self, contig_id: str) -> bool:
        if self._task.share >= 1:
            return True
        key = self._task.seed.to_bytes(16, "little", signed=True)
        digest = blake2b(contig_id.encode(errors="surrogatepass"), digest_size=8, key=key).digest()
        return int.from_bytes(digest, "little") < self._task.share * 2**64

    def _as_letters(self, data: bytes) -> bytes:
        """Return UTF-16 text as one byte a letter, 255 for letters that are not ASCII."""
        units = np.frombuffer(data, dtype=np.dtype("<u2" if self._encoding == "UTF-16le" else ">u2"))
        return np.minimum(units, 0xFF).astype(np.uint8).tobytes()

    def _count_pieces(self, contig_id: str, row: int, length: int) -> NDArray[np.int64]:
        piece = np.empty(PIECE_BASES, dtype=np.uint8)
        counts = np.zeros((1, COLUMNS), dtype=np.int64)
        with closing(self._database.blob_open("main", "sequences", "nt_sequence", row, False)) as blob:
            for start in range(0, length, PIECE_BASES):
                n = min(PIECE_BASES, length - start)
                blob.read_into(piece, 0, n)  # type: ignore[arg-type]  # any writable buffer will do
                counts += self._count(piece[:n], None, [(contig_id, start)])
                self._report(0, start + n)
        return counts

    def _count(
        self, letters: NDArray[np.uint8], ends: NDArray[np.int64] | None, contigs: Sequence[tuple[str, int]]
    ) -> NDArray[np.int64]:
        """Count letters; `contigs` names each contig, and the base that the letters begin with."""
        try:
            return count_letters(letters, ends)
        except StrangeLetter as error:
            k = 0 if ends is None else int(np.searchsorted(ends, error.at, side="right"))
            name, start = contigs[k]
            at = start + error.at - (0 if ends is None or not k else int(ends[k - 1]))
            raise DatabaseError(
                f"{printable(self._task.path)}: contig {shown(name)} holds {chr(error.letter)!r} at base {at}, which is no "
                f"nucleotide letter. Check it: {verify_command(self._task.path.parent.parent, full=True)}"
            ) from None

    def _report(self, bases: int, within: int = 0) -> None:
        self._bases += bases
        if self._bases + within >= self._next_report:
            self._next_report = self._bases + within + REPORT_BASES
            self._say(min(1.0, (self._bases + within) * self._unit / self._size))

    def _add(self, chunk: list[_Contig]) -> None:
        ids = [contig.contig_id for contig in chunk]
        lengths = np.array([contig.length for contig in chunk], dtype=np.int64)
        counted = np.array([contig.is_counted for contig in chunk], dtype=np.bool_)
        ends = np.cumsum([len(contig.letters) for contig in chunk])
        letters = np.frombuffer(b"".join(contig.letters for contig in chunk), dtype=np.uint8)
        counts = self._count(letters, ends, [(each, 0) for each in ids])
        for k, contig in enumerate(chunk):
            if contig.counts is not None:
                counts[k] = contig.counts[0]
        self._put(self._counts.contigs, ids, lengths, counts, counted)
        has_window = np.zeros(len(chunk), dtype=np.bool_)
        could_have = np.zeros(len(chunk), dtype=np.bool_)
        for split, groups in zip(self._splits, self._counts.splits, strict=True):
            found = split.windows_of(ids, lengths)
            could_have |= split.split.geometry.counts(lengths) > 0
            if not len(found.places):
                continue
            has_window[found.places] = True
            at = found.places
            of_split = [ids[k] for k in at.tolist()]
            self._put(groups, of_split, lengths[at], counts[at], counted[at])
            for group, where in groups.of(of_split, self._task.sample):
                found.add_to(group.all_windows, lengths[at], where)
        if self._splits:
            self._counts.unassigned_contigs += int(np.count_nonzero(~has_window))
            self._counts.unassigned_bases += int(lengths[~has_window].sum())
            self._counts.too_short_bases += int(lengths[~has_window & ~could_have].sum())

    def _put(
        self,
        groups: Groups,
        ids: list[str],
        lengths: NDArray[np.int64],
        counts: NDArray[np.int64],
        counted: NDArray[np.bool_],
    ) -> None:
        for group, where in groups.of(ids, self._task.sample):
            group.lengths.add(lengths[where])
            if self._task.letters:
                group.letters = group.letters or LetterCounts()
                group.letters.add(counts[where][counted[where]])
