"""Split files: Parquet with the columns `contig_id` and `length`, read in bounded memory.

pass 1   survey: sound? sorted? how many?
pass 2   contigs in order, 20,000 at a time (one pass more for every 4 million contigs of a file that is not sorted)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import polars as pl

from sharded_eden.errors import InputError
from sharded_eden.format.schema import CONTIG_ID, LENGTH

SURVEY_ROWS = 200_000
BATCH_CONTIGS = 20_000

SORT_ROWS = 4_000_000
"""Contigs that are sorted in memory at once."""

SAMPLE_EVERY = 1024
"""One contig ID of so many is kept to cut an unsorted file into ranges of about `SORT_ROWS`."""

MAX_ID_BYTES = 4000
"""A page of the index on IDs must hold four of them, see `sharded_eden.format.pages.btree`."""

MAX_LENGTH = (1 << 31) - 1
"""SQLite holds no longer value, whatever it was compiled for, so there is no such contig."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the first pass over a split file found."""

    contigs: int
    empty: int
    is_sorted: bool
    sampled_ids: pl.Series


def scan(split: Path) -> pl.LazyFrame:
    """Return the two columns of a split file, of the right types."""
    if not split.is_file():
        raise InputError(f"{split}: no such file")
    with explaining(split):
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
def explaining(split: Path) -> Iterator[None]:
    """Turn what Polars raises while it reads a split file into an `InputError`."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{split}: cannot be read as Parquet ({error}). Is it damaged or cut short?") from error


def survey(contigs: pl.LazyFrame, split: Path) -> Survey:
    """Read a split file once and refuse rows that cannot be meant."""
    checks = {
        "has no contig_id": pl.col(CONTIG_ID).is_null() | (pl.col(CONTIG_ID) == ""),
        "has no length": pl.col(LENGTH).is_null(),
        "has a negative length": pl.col(LENGTH) < 0,
        f"is longer than any contig can be ({MAX_LENGTH:,})": pl.col(LENGTH) > MAX_LENGTH,
        f"has a contig_id of more than {MAX_ID_BYTES:,} bytes": pl.col(CONTIG_ID).str.len_bytes() > MAX_ID_BYTES,
        "has a contig_id with a NUL character": pl.col(CONTIG_ID).str.contains("\0", literal=True),
    }
    rows = empty = 0
    is_sorted, last = True, ""
    sampled = []
    for batch in contigs.collect_batches(chunk_size=SURVEY_ROWS, maintain_order=True):
        if batch.is_empty():
            continue
        suspect = batch.select(**{reason: wrong.any() for reason, wrong in checks.items()}).row(0, named=True)
        for reason, wrong in checks.items():
            if suspect[reason] is False:
                continue
            found = batch.with_row_index("row", offset=rows).filter(wrong)
            if not found.is_empty():
                row, contig_id, length = found.row(0)
                raise InputError(
                    f"{split}: row {row} {reason} (contig_id={_short(contig_id)}, length={length}), as do "
                    f"{found.height - 1} of the rows after it. Mend or drop such rows"
                )
        ids = batch[CONTIG_ID]
        is_sorted = is_sorted and last <= ids[0] and ids.is_sorted()
        last = ids[-1]
        sampled.append(ids.gather_every(SAMPLE_EVERY))
        rows += batch.height
        empty += int((batch[LENGTH] == 0).sum())
    sampled_ids = pl.concat(sampled).sort() if sampled else pl.Series([], dtype=pl.String)
    return Survey(contigs=rows, empty=empty, is_sorted=is_sorted, sampled_ids=sampled_ids)


def _short(contig_id: str | None) -> str:
    return repr(contig_id) if contig_id is None or len(contig_id) <= 80 else f"{contig_id[:80]!r}..."


def in_order(contigs: pl.LazyFrame, survey: Survey) -> Iterator[pl.DataFrame]:
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


def without_duplicates(batches: Iterator[pl.DataFrame], split: Path) -> Iterator[pl.DataFrame]:
    """Yield batches that come sorted, and refuse a contig that comes twice."""
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
