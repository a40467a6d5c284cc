"""From a split's Parquet file to its window database.

Enter: a Parquet file with the columns `contig_id` and `length`. Leaves: one SQLite file, whose windows are numbered from 0
in the order of their contig IDs. Costs two passes over these two columns (and one more for every 4 million contigs of a
file that is not sorted) and some hundred megabytes, however long the file is.

    pass 1   survey: sound? sorted? how many?
    pass 2   contigs in order ──20,000 at a time──▶ temp.batch(row, contig_id) ──SQL, without Python rows──▶ window_mappings
                                                                                                        ▶ contig_lengths
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import apsw
import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden import schema
from sharded_eden.errors import InputError, UsageError, warn
from sharded_eden.fingerprint import Fingerprint
from sharded_eden.prepare.ambiguity import AmbiguityFilter
from sharded_eden.prepare.packs import PackResult, write_packs
from sharded_eden.progress import Progress
from sharded_eden.schema import CONTIG_ID, LENGTH
from sharded_eden.sqlite import create_database, publishing
from sharded_eden.windows import WindowGeometry

SURVEY_ROWS = 200_000
BATCH_CONTIGS = 20_000
BATCH_WINDOWS = 1 << 17
"""The most windows that numpy arrays are made for at once."""

SORT_ROWS = 4_000_000
"""Contigs that are sorted in memory at once."""

SAMPLE_EVERY = 1024
"""One contig ID of so many is kept to cut an unsorted file into ranges of about `SORT_ROWS`."""

PAGE_BYTES = 16_384
"""Pages four times the usual size: a fifth less time to write, and as fast to read from."""

LENGTH_BITS = 31
MAX_LENGTH = (1 << LENGTH_BITS) - 1
"""SQLite holds no longer value, whatever it was compiled for, so there is no such contig."""

_INSERT_BATCH = "INSERT INTO temp.batch SELECT rowid - 1, value FROM carray(?)"
_INSERT_LENGTHS = f"""
INSERT INTO contig_lengths
SELECT ?1 + (value >> {LENGTH_BITS}), value & {MAX_LENGTH} FROM carray(?2)"""
_INSERT_WINDOWS = f"""
INSERT INTO window_mappings
SELECT ?1 + window.rowid - 1, batch.contig_id, window.value & {MAX_LENGTH}
FROM carray(?2) AS window CROSS JOIN temp.batch ON batch.row = window.value >> {LENGTH_BITS}"""


@dataclass(frozen=True, kw_only=True)
class PrecomputeResult:
    """What was written, and what was not."""

    path: Path
    windows: int
    sequences: int
    """Contigs with at least one window."""
    contigs_left_out: int
    """Contigs below the threshold, without a window."""
    bases: int
    """Bases of all contigs of the split."""
    unseen_bases: int
    """Bases that no window shows: tails, gaps between windows, contigs and windows left out."""
    ambiguous_windows: int = 0
    """Windows left out because too many of their letters are ambiguous."""
    packs: PackResult | None = None
    """What packing them came to, where that was asked for."""


@dataclass(frozen=True, kw_only=True)
class _Survey:
    """What the first pass over a split file found."""

    contigs: int
    empty: int
    is_sorted: bool
    sampled_ids: pl.Series


def precompute_window_database(
    split_parquet_file: str | os.PathLike[str],
    output_window_db: str | os.PathLike[str],
    window_size: int = 8192,
    stride: int = 7992,
    window_min_length_threshold: int = 0,
    *,
    keep_tail: bool = False,
    special_tokens: int = 3,
    max_ambiguous: float | None = None,
    sequences: str | os.PathLike[str] | None = None,
    pack: bool = False,
    pack_seed: int = 42,
    progress: Progress | None = None,
) -> PrecomputeResult:
    """Write the window database of a split.

    Args:
        split_parquet_file: a Parquet file with the columns `contig_id` (string) and `length` (integer, bases).
        output_window_db: the database; one that is there is replaced once the new one is whole.
        window_size: tokens of a training row, and bases that a window spans; the dataset's `seq_length`.
        stride: bases from the start of one window to the start of the next.
        window_min_length_threshold: windows with fewer bases than this are left out.
        keep_tail: add windows until the last base of every contig is shown.
        special_tokens: tokens of a row that are no bases (BOS, SEP, EOS), which take room from `window_size`.
        max_ambiguous: leave out windows of whose bases a larger share than this are letters other than A, C, G, T.
        sequences: the folder of sequence databases, which only `max_ambiguous` reads.
        pack: add packs, see `sharded_eden.prepare.packs`.
        pack_seed: another seed mixes other windows in a pack.
        progress: called with the contigs done and their total.

    Raises:
        UsageError: a size that cannot be meant, or an output that cannot be written.
        DatabaseError: a contig of the split is not in `sequences`, or has another length there.
        InputError: the split file is not such a table, or holds nulls, negative lengths or a contig twice.

    Warns:
        EdenWarning: no window is left, the stride leaves gaps, or contigs have no bases.
    """
    split, output = Path(split_parquet_file), Path(output_window_db)
    geometry = WindowGeometry(
        window_size=window_size,
        stride=stride,
        min_length=window_min_length_threshold,
        special_tokens=special_tokens,
        keep_tail=keep_tail,
    )
    if (max_ambiguous is None) != (sequences is None):
        raise UsageError(
            "--max-ambiguous must read the bases (--sequences SEQDB)"
            if sequences is None
            else "--sequences is only read to leave out windows (--max-ambiguous 0.5)"
        )
    contigs = _scan(split)
    if output.exists() and output.samefile(split):
        raise UsageError(f"{output} is the split file itself; give the window database another name")
    with ExitStack() as stack:
        ambiguity = None
        if max_ambiguous is not None and sequences is not None:
            ambiguity = stack.enter_context(closing(AmbiguityFilter(sequences, max_ambiguous, geometry)))
        stack.enter_context(_explaining(split))
        survey = _survey(contigs, split)
        unfinished = stack.enter_context(publishing(output))
        database = stack.enter_context(closing(create_database(unfinished, page_size=PAGE_BYTES)))
        writer = _Writer(database, geometry, ambiguity)
        for batch in _without_duplicates(_in_order(contigs, survey), split):
            writer.add(batch)
            if progress is not None:
                progress(writer.contigs, survey.contigs)
        writer.finish(max_ambiguous)
        packs = write_packs(database, output, seed=pack_seed, progress=progress) if pack else None
        database.execute("COMMIT")
    result = PrecomputeResult(
        path=output,
        windows=writer.windows,
        sequences=writer.sequences,
        contigs_left_out=writer.contigs - writer.sequences,
        bases=writer.bases,
        unseen_bases=writer.unseen_bases,
        ambiguous_windows=writer.ambiguous_windows,
        packs=packs,
    )
    if result.windows == 0:
        many = f", or all have more ambiguous letters than {max_ambiguous:.0%}" if result.ambiguous_windows else ""
        warn(
            f"{output} holds no window: none of {survey.contigs:,} contigs has {geometry.min_length:,} bases or more{many}"
        )
    if stride > geometry.usable:
        warn(
            f"stride={stride} is more than the {geometry.usable} bases that a window shows (window_size={window_size} less "
            f"{special_tokens} special tokens): no window shows {result.unseen_bases:,} of {result.bases:,} bases"
        )
    if survey.empty and geometry.min_length == 0:
        warn(
            f"{split}: {survey.empty:,} contigs have length 0 and get a window without bases each. "
            "Leave them out: --window-min-length-threshold 1"
        )
    return result


def _scan(split: Path) -> pl.LazyFrame:
    """Return the two columns of a split file, of the right types."""
    if not split.is_file():
        raise InputError(f"{split}: no such file")
    with _explaining(split):
        table = pl.scan_parquet(split, glob=False)
        found = table.collect_schema()
    for column, expected, fits in (
        (CONTIG_ID, "strings", found.get(CONTIG_ID) == pl.String),
        (LENGTH, "integers, in bases", found[LENGTH].is_integer() if LENGTH in found else False),
    ):
        if not fits:
            what = (
                f"holds {found[column]}" if column in found else f"is missing, there are {', '.join(found) or 'none'}"
            )
            raise InputError(
                f"{split}: column {column!r} {what}; expected {expected}. sharded-eden split writes such files"
            )
    return table.select(CONTIG_ID, pl.col(LENGTH).cast(pl.Int64))


@contextmanager
def _explaining(split: Path) -> Iterator[None]:
    """Turn what Polars raises while it reads a split file into an `InputError`."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{split}: cannot be read as Parquet ({error}). Is it damaged or cut short?") from error


def _survey(contigs: pl.LazyFrame, split: Path) -> _Survey:
    """Read a split file once and refuse rows that cannot be meant."""
    checks = {
        "has no contig_id": pl.col(CONTIG_ID).is_null() | (pl.col(CONTIG_ID) == ""),
        "has no length": pl.col(LENGTH).is_null(),
        "has a negative length": pl.col(LENGTH) < 0,
        f"is longer than any contig can be ({MAX_LENGTH:,})": pl.col(LENGTH) > MAX_LENGTH,
        "has a contig_id with a NUL character": pl.col(CONTIG_ID).str.contains("\0", literal=True),
    }
    rows = empty = 0
    is_sorted, last = True, ""
    sampled = []
    for batch in contigs.collect_batches(chunk_size=SURVEY_ROWS, maintain_order=True):
        if batch.is_empty():
            continue
        for reason, wrong in checks.items():
            found = batch.with_row_index("row", offset=rows).filter(wrong)
            if not found.is_empty():
                row, contig_id, length = found.row(0)
                raise InputError(
                    f"{split}: row {row} {reason} (contig_id={contig_id!r}, length={length}), as do {found.height - 1} of "
                    f"the rows after it. Mend or drop such rows"
                )
        ids = batch[CONTIG_ID]
        is_sorted = is_sorted and last <= ids[0] and ids.is_sorted()
        last = ids[-1]
        sampled.append(ids.gather_every(SAMPLE_EVERY))
        rows += batch.height
        empty += int((batch[LENGTH] == 0).sum())
    sampled_ids = pl.concat(sampled).sort() if sampled else pl.Series([], dtype=pl.String)
    return _Survey(contigs=rows, empty=empty, is_sorted=is_sorted, sampled_ids=sampled_ids)


def _in_order(contigs: pl.LazyFrame, survey: _Survey) -> Iterator[pl.DataFrame]:
    """Yield the contigs in batches, sorted by the bytes of their IDs, as SQLite's BINARY collation has it."""
    if survey.is_sorted:
        yield from contigs.collect_batches(chunk_size=BATCH_CONTIGS, maintain_order=True)
        return
    ranges = -(-survey.contigs // SORT_ROWS)
    cuts = [survey.sampled_ids[i * len(survey.sampled_ids) // ranges] for i in range(1, ranges)]
    for low, high in pairwise([None, *cuts, None]):
        part = contigs
        if low is not None:
            part = part.filter(pl.col(CONTIG_ID) >= low)
        if high is not None:
            part = part.filter(pl.col(CONTIG_ID) < high)
        yield from part.collect(engine="streaming").sort(CONTIG_ID).iter_slices(BATCH_CONTIGS)


def _without_duplicates(batches: Iterator[pl.DataFrame], split: Path) -> Iterator[pl.DataFrame]:
    last: str | None = None
    for batch in batches:
        if batch.is_empty():
            continue
        ids = batch[CONTIG_ID]
        repeated = ids.filter(ids == ids.shift(1, fill_value=last))
        if not repeated.is_empty():
            raise InputError(f"{split}: contig_id {repeated[0]!r} appears more than once. Keep one row for each contig")
        last = ids[-1]
        yield batch


class _Writer:
    """Fills a new window database, batch by batch."""

    def __init__(
        self, database: apsw.Connection, geometry: WindowGeometry, ambiguity: AmbiguityFilter | None = None
    ) -> None:
        self._database, self._geometry, self._ambiguity = database, geometry, ambiguity
        self._fingerprint = Fingerprint(geometry)
        self.contigs = self.sequences = self.windows = self.bases = self.unseen_bases = self.ambiguous_windows = 0
        # IDs come sorted, so that the index grows at its end: cheaper than sorting them again, and in no temporary file.
        for statement in (
            schema.CREATE_METADATA,
            schema.CREATE_WINDOW_MAPPINGS,
            schema.CREATE_SEQUENCE_ID_INDEX,
            schema.CREATE_CONTIG_LENGTHS,
            "PRAGMA temp_store = MEMORY",
            "CREATE TEMP TABLE batch (row INTEGER PRIMARY KEY, contig_id TEXT)",
            "PRAGMA temp.journal_mode = OFF",
            "BEGIN",
        ):
            database.execute(statement)

    def add(self, contigs: pl.DataFrame) -> None:
        """Add the windows of the next contigs, which are sorted, to those that are there."""
        lengths = contigs[LENGTH].to_numpy()
        self.contigs += contigs.height
        self.bases += int(lengths.sum())
        self.unseen_bases += int(lengths.sum())
        counts = self._geometry.counts(lengths)
        self._insert(contigs.filter(pl.Series(counts > 0)), counts[counts > 0])

    def _insert(self, contigs: pl.DataFrame, counts: NDArray[np.int64]) -> None:
        if contigs.is_empty():
            return
        ends = np.cumsum(counts)  # (C,) int64, where each contig's windows end, counted from the first of them all
        total = int(ends[-1])
        if total > BATCH_WINDOWS and contigs.height > 1:
            half = contigs.height // 2
            self._insert(contigs[:half], counts[:half])
            self._insert(contigs[half:], counts[half:])
            return
        self._database.execute("DELETE FROM temp.batch")
        self._database.execute(_INSERT_BATCH, (apsw.carray(tuple(contigs[CONTIG_ID].to_list())),))
        last = (-1, 0)
        for first in range(0, total, BATCH_WINDOWS):
            window = np.arange(first, min(first + BATCH_WINDOWS, total))
            row = np.searchsorted(ends, window, side="right")
            in_contig = window - (ends - counts)[row]
            if self._ambiguity is not None:
                kept = self._unambiguous(contigs, row, in_contig)
                row, in_contig = row[kept], in_contig[kept]
            if len(row):
                last = self._write(contigs, row, in_contig, last)

    def _unambiguous(
        self, contigs: pl.DataFrame, row: NDArray[np.int64], in_contig: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Tell which windows to keep, and count the others."""
        assert self._ambiguity is not None  # noqa: S101 - narrows the type
        kept = np.ones(len(row), dtype=np.bool_)
        for low, high in pairwise([*np.flatnonzero(np.diff(row, prepend=-1)).tolist(), len(row)]):
            contig_id, length = contigs.row(int(row[low]))
            kept[low:high] = self._ambiguity.keep(contig_id, length, in_contig[low:high])
        self.ambiguous_windows += len(kept) - int(np.count_nonzero(kept))
        return kept

    def _write(
        self, contigs: pl.DataFrame, row: NDArray[np.int64], in_contig: NDArray[np.int64], last: tuple[int, int]
    ) -> tuple[int, int]:
        """Write windows: contig and number within it of each.

        Args:
            contigs: the contigs of this batch.
            row: (n,) int64, the contig of each window.
            in_contig: (n,) int64, its number within the contig.
            last: the contig of the window written before, and where in it that ended: returned for the next call.
        """
        execute = self._database.execute
        lengths = contigs[LENGTH].to_numpy()
        is_first = np.diff(row, prepend=last[0]) > 0
        firsts = np.flatnonzero(is_first)
        if len(firsts):
            self._fingerprint.update(contigs[row[firsts]])
            execute(_INSERT_LENGTHS, (self.windows, apsw.carray(firsts << LENGTH_BITS | lengths[row[firsts]])))
        execute(_INSERT_WINDOWS, (self.windows, apsw.carray(row << LENGTH_BITS | in_contig)))
        starts = in_contig * self._geometry.stride
        ends = np.minimum(starts + self._geometry.usable, lengths[row])
        if self._ambiguity is not None:
            self._fingerprint.update_windows(self.sequences - 1 + np.cumsum(is_first), in_contig)
        # What a window shows begins where the one before it ended, if that one is of the same contig.
        before = np.concatenate(([last[1]], ends[:-1]))
        self.unseen_bases -= int((ends - np.maximum(starts, np.where(is_first, 0, before))).sum())
        self.windows += len(row)
        self.sequences += len(firsts)
        return int(row[-1]), int(ends[-1])

    def finish(self, max_ambiguous: float | None) -> None:
        """Write the metadata; the transaction stays open."""
        metadata: dict[str, float] = {
            **self._geometry.as_metadata(),
            "total_windows": self.windows,
            "distinct_sequences": self.sequences,
            "fingerprint": self._fingerprint.value(),
        }
        if max_ambiguous is not None:
            metadata["max_ambiguous"] = max_ambiguous
        self._database.executemany("INSERT INTO metadata VALUES (?, ?)", metadata.items())
