"""Split files: Parquet with the columns `contig_id` and `length`, read in bounded memory.

pass 1 survey: valid? sorted? how many?
pass 2   contigs in order, 20,000 at a time (one pass more for every 4 million contigs of a file that is not sorted)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from glob import glob
from itertools import pairwise
from pathlib import Path

import polars as pl

from sharded_eden.errors import InputError, printable, shown
from sharded_eden.format.commands import split_command
from sharded_eden.format.kinds import named
from sharded_eden.format.parquet import SEQUENCE_DB_DIR, parquet_errors, parquet_source
from sharded_eden.format.schema import CONTIG_ID, LENGTH

SURVEY_ROWS = 200_000
BATCH_CONTIGS = 20_000

SORT_ROWS = 4_000_000
"""Contigs sorted in memory at once."""

PART_SUFFIX = ".parquet"
PART_SUFFIXES = (PART_SUFFIX, ".pq")
"""The endings of the Parquet files of a folder, in upper or lower case."""

SAMPLE_EVERY = 1024
"""Every n-th contig ID is kept, to divide an unsorted file into ranges of about `SORT_ROWS`."""

MAX_ID_BYTES = 4000
"""A page of the index on IDs must hold four of them, see `sharded_eden.format.pages.btree`."""

MAX_LENGTH = (1 << 31) - 1
"""The longest contig: no build of SQLite stores longer values."""


STORED_ID, STORED_LENGTH = "stored contig_id", "stored length"
HINT = "Is it damaged or cut short?"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The result of the first pass over a split file."""

    contigs: int
    empty: int
    is_sorted: bool
    sampled_ids: pl.Series


SPLIT_NAME = re.compile(r"(train|val|test)(?=(idation|id|ing)?[^a-z])", re.IGNORECASE)
"""The beginning of a file name that tells its split."""


def parts_in(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder, sorted; not those whose names begin with a dot."""
    return [path for path in named(folder, "") if path.suffix.lower() in PART_SUFFIXES]


def parts_of(split: Path, *, is_pattern: bool) -> list[Path]:
    """Return the Parquet files of one split: the file itself, all `*.parquet` and `*.pq` of a folder, or what a pattern means.

    Args:
        split: a file, a folder, or a pattern such as `parts/*.parquet`, in which `*`, `?`, `[...]` and `**` have their usual
            meaning. Hidden files are left out.
        is_pattern: whether it is a pattern; a name is taken literally otherwise.

    Raises:
        InputError: no file matches, or the names are those of several splits.
    """
    if is_pattern:
        files = sorted(map(Path, glob(os.fspath(split), recursive=True)))
    elif split.is_dir():
        files = parts_in(split)
    else:
        return [split]
    if not files:
        raise InputError(
            f"{printable(split)}: no file {'matches' if is_pattern else f'*{PART_SUFFIX} is in this folder'}. "
            f"{split_command()} writes such files"
        )
    first = {match[0].lower(): file for file in files if (match := SPLIT_NAME.match(file.name))}
    if len(first) > 1:
        some = " and ".join(printable(file.name, 80) for file in list(first.values())[:2])
        raise InputError(
            f"{printable(split)}: its files belong to several splits ({some}); together they would become one. Give the files "
            "of one split"
        )
    return files


@contextmanager
def open_split(split: Path, parts: Sequence[Path] = ()) -> Iterator[pl.LazyFrame]:
    """Open a split and return its two columns as String and Int64, and the columns as stored, for `survey`.

    IDs may be strings, UTF-8 bytes, dictionaries of strings, or integers, whose decimal digits are then the ID.

    Args:
        split: the file, as messages name it.
        parts: the files that it consists of, read one after the other; itself unless given.

    Raises:
        InputError: there is no such file, it is not Parquet, or its columns have other types.
    """
    with ExitStack() as stack:
        parts = parts or [split]
        tables = [stack.enter_context(_open_part(part, is_alone=len(parts) == 1)) for part in parts]
        yield pl.concat(tables)


@contextmanager
def _open_part(part: Path, *, is_alone: bool) -> Iterator[pl.LazyFrame]:
    with parquet_source(part, HINT) as source:
        with parquet_errors(part, HINT):
            table = pl.scan_parquet(source, glob=False)
            found = table.collect_schema()
        kind = found.get(CONTIG_ID)
        for column, expected, fits in (
            (CONTIG_ID, "strings or integers", _is_text(kind) or (kind is not None and kind.is_integer())),
            (LENGTH, "integers, in bases", found[LENGTH].is_integer() if LENGTH in found else False),
        ):
            if not fits:
                there_are = ", ".join(map(printable, list(found)[:20])) or "none"
                what = f"holds {shown(found[column])}" if column in found else f"is missing, there are {there_are}"
                raise InputError(
                    f"{printable(part)}: column {column!r} {what}; expected {expected}. {split_command()} writes such files"
                )
        contig_id = pl.col(CONTIG_ID)
        yield table.select(
            contig_id.map_batches(_decoded, pl.String) if kind == pl.Binary else contig_id.cast(pl.String),
            pl.col(LENGTH).cast(pl.Int64, strict=False),
            (contig_id if is_alone or kind == pl.Binary else contig_id.cast(pl.String).cast(pl.Binary)).alias(
                STORED_ID
            ),
            (pl.col(LENGTH) if is_alone else pl.col(LENGTH).cast(pl.Int128)).alias(STORED_LENGTH),
        )


def _is_text(kind: pl.DataType | None) -> bool:
    return kind in {pl.String, pl.Binary} or isinstance(kind, pl.Categorical | pl.Enum)


def _decoded(ids: pl.Series) -> pl.Series:
    """Return bytes as text, null where they are not UTF-8."""
    try:
        return ids.cast(pl.String)
    except pl.exceptions.PolarsError:
        return pl.Series(ids.name, [_decoded_one(each) for each in ids], dtype=pl.String)


def _decoded_one(stored: bytes | None) -> str | None:
    try:
        return None if stored is None else stored.decode()
    except UnicodeDecodeError:
        return None


def survey(contigs: pl.LazyFrame, split: Path) -> Survey:
    """Read a split file once and raise an error for invalid rows.

    Raises:
        InputError: with the first such row, and how many there are among the rows read with it.
    """
    contig_id, length = pl.col(CONTIG_ID), pl.col(LENGTH)
    checks = {
        "has a contig_id that is not UTF-8 (its type is Binary)": contig_id.is_null() & pl.col(STORED_ID).is_not_null(),
        "has no contig_id": contig_id.is_null() | (contig_id == ""),
        f"is longer than any contig can be ({MAX_LENGTH:,})": pl.col(STORED_LENGTH) > MAX_LENGTH,
        "has no length": length.is_null(),
        "has a negative length": length < 0,
        f"has a contig_id of more than {MAX_ID_BYTES:,} bytes": contig_id.str.len_bytes() > MAX_ID_BYTES,
        "has a contig_id with a NUL character": contig_id.str.contains("\0", literal=True),
    }
    rows = empty = 0
    is_sorted, last = True, ""
    sampled = []
    with parquet_errors(split, HINT):
        for batch in contigs.collect_batches(chunk_size=SURVEY_ROWS, maintain_order=True):
            if batch.is_empty():
                continue
            suspect = batch.select(**{reason: wrong.any() for reason, wrong in checks.items()}).row(0, named=True)
            for reason, wrong in checks.items():
                if suspect[reason]:
                    found = batch.with_row_index("row", offset=rows).filter(wrong)
                    row, _, _, stored_id, stored_length = found.row(0)
                    more = f", as do {found.height - 1:,} of the rows after it" if found.height > 1 else ""
                    raise InputError(
                        f"{printable(split)}: row {row} {reason} (contig_id={shown(stored_id)}, length={stored_length})"
                        f"{more}. Correct or drop such rows"
                    )
            ids = batch[CONTIG_ID]
            is_sorted = is_sorted and last <= ids[0] and ids.is_sorted()
            last = ids[-1]
            sampled.append(ids.gather_every(SAMPLE_EVERY))
            rows += batch.height
            empty += int((batch[LENGTH] == 0).sum())
    sampled_ids = pl.concat(sampled).sort() if sampled else pl.Series([], dtype=pl.String)
    return Survey(contigs=rows, empty=empty, is_sorted=is_sorted, sampled_ids=sampled_ids)


def contigs_in_order(contigs: pl.LazyFrame, survey: Survey, split: Path) -> Iterator[pl.DataFrame]:
    """Yield the contigs in batches, sorted by the bytes of their IDs as in SQLite's BINARY collation, each once.

    Raises:
        InputError: a contig appears twice, or the file cannot be read.
    """
    last: str | None = None
    batches = _sorted_batches(contigs.select(CONTIG_ID, LENGTH), survey)
    while True:
        with parquet_errors(split, HINT):
            batch = next(batches, None)
        if batch is None:
            return
        if batch.is_empty():
            continue
        ids = batch[CONTIG_ID]
        repeated = ids.filter(ids == ids.shift(1, fill_value=last))
        if not repeated.is_empty():
            raise InputError(
                f"{printable(split)}: contig_id {shown(repeated[0])} appears more than once. Keep one row for each contig"
            )
        last = ids[-1]
        yield batch


def _sorted_batches(contigs: pl.LazyFrame, survey: Survey) -> Iterator[pl.DataFrame]:
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


def sequence_db_dir_of(split_file: str | os.PathLike[str]) -> Path | None:
    """Return the folder of sequence databases that a split file was made from, None where the file does not name it.

    Raises:
        InputError: the file does not exist or is not Parquet.
    """
    with parquet_source(split_file, HINT) as source, parquet_errors(split_file, HINT):
        folder = pl.read_parquet_metadata(source).get(SEQUENCE_DB_DIR)
    return Path(folder) if folder else None
