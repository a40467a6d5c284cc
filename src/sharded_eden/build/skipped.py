"""Bad records that `--skip-bad` leaves out, and the table that lists them, `skipped.parquet`.

Input: the error of each such record. Output: a table sorted by file and record, as complete as the databases beside it: a
sample that is not built again keeps its rows, and a file that is not read again keeps those of records without a sample.

    BadRecord      the error of one record; without --skip-bad it is raised as any other error
    SkippedRows    those of one task; rows of a receipt, or of a run that was scattered
    skipped.parquet
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import polars as pl

from sharded_eden.build.contig_rows import ORDINAL, ContigRows, polars_path, scan_rows
from sharded_eden.errors import DatabaseError, InputError, printable
from sharded_eden.format import schema
from sharded_eden.format.publish import publishing

REASONS = {
    "letters": "a character that is not allowed in sequences",
    "empty": "no sequence",
    "name": "no name, or one with white space or control characters",
    "field": "a missing field, or a value of another type",
    "sample": "no sample in its name or field",
    "tag": "different phylogenetic tags in one sequence",
    "long": "more bases than SQLite holds in one value",
    "duplicate": "a name or an ID that an earlier record of the sample has",
}
"""Why a record is bad, as in the column `reason`."""

REASON = "reason"

ROW_COLUMNS: dict[str, type[pl.DataType]] = {
    "source_file": pl.String,
    ORDINAL: pl.Int64,
    "original_id": pl.String,
    "sample": pl.String,
    REASON: pl.String,
    "problem": pl.String,
}
"""Columns of a row while it is built; the table calls `ordinal` and `original_id` `record` and `name`."""


class BadRecord(InputError):
    """The error of one record; those after it can still be read.

    Args:
        message: with file, record and position.
        reason: one of `REASONS`.
        name: of the record, "" where it has none.
    """

    def __init__(self, message: str, reason: str = "letters", name: str = "") -> None:
        super().__init__(message)
        self.reason, self.name = reason, name


Skip: TypeAlias = Callable[[str, int, BadRecord], object]
"""Called with the file's name in messages, the place of the record in it, and its error."""


class SkippedRows:
    """The bad records of one task: some in memory, the others in files of a folder.

    Args:
        folder: for these files.
        paths: {the file's name in messages: its absolute path}.
    """

    def __init__(self, folder: Path, paths: Mapping[str, str]) -> None:
        self._rows = ContigRows(folder, "skipped", ROW_COLUMNS)
        self._paths = paths
        self.sample: str | None = None
        """The sample that is built from the records; None while records of many are read."""

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, called: str, ordinal: int, error: BadRecord) -> None:
        """Add a record; a `Skip`."""
        row = (self._paths[called], ordinal, printable(error.name, 200), self.sample, error.reason, str(error))
        for append, value in zip(self._rows.appends(), row, strict=True):
            append(value)
        self._rows.flush()

    def table(self) -> pl.LazyFrame:
        """Return all rows, in their order."""
        return self._rows.table()


def with_skipped(rows: pl.LazyFrame, skipped: SkippedRows | None) -> pl.LazyFrame:
    """Return the rows of a receipt: contigs, then bad records, which have a `reason`."""
    return pl.concat([rows, skipped.table()], how="diagonal") if skipped is not None and len(skipped) else rows


def contigs_only(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Return the rows of a receipt that are contigs."""
    return rows.filter(pl.col(REASON).is_null()) if REASON in rows.collect_schema() else rows


def update_skipped_table(
    out: Path,
    receipts: Sequence[tuple[Path, Iterable[str], Iterable[str]]],
    runs: Sequence[tuple[Path | None, Iterable[str]]],
) -> None:
    """Write the table with new rows in the place of earlier ones, or remove it where no row is left.

    Args:
        out: the output folder.
        receipts: for each file of rows, the samples that count in it, and the absolute paths of the files that were read for
            it (none where they were scattered).
        runs: for each scattered run, its bad records, None if there are none, and the absolute paths of its files.

    Raises:
        DatabaseError: the table that is there cannot be read.
    """
    path = out / schema.SKIPPED_FILE
    samples = [sample for _, built, _ in receipts for sample in built]
    files = [file for *_, read in receipts for file in read] + [file for _, read in runs for file in read]
    parts = []
    if path.exists():
        rows = _read(path).lazy()
        is_replaced = pl.col("sample").is_null() & pl.col("source_file").is_in(files)
        parts.append(rows.filter(~pl.col("sample").is_in(samples).fill_null(value=False) & ~is_replaced))
    for file, built, _ in receipts:
        rows = scan_rows(file)
        if REASON in rows.collect_schema():
            new = rows.filter(pl.col(REASON).is_not_null() & pl.col("sample").is_in(list(built)))
            parts.append(new.select(list(ROW_COLUMNS)).rename(_NAMES))
    parts += [scan_rows(file).rename(_NAMES) for file, _ in runs if file is not None]
    if not parts:
        return
    table = pl.concat(parts).sort("source_file", "record", "sample", nulls_last=True, maintain_order=True).collect()
    if table.is_empty():
        path.unlink(missing_ok=True)
        return
    with publishing(path) as unfinished:
        table.write_parquet(polars_path(unfinished))


def skipped_table(out: Path) -> pl.DataFrame:
    """Return the table of an output folder: `source_file`, `record` (its place, from 1), `name`, `sample`, `reason`, `problem`.

    Raises:
        DatabaseError: it cannot be read.
    """
    path = out / schema.SKIPPED_FILE
    return _read(path) if path.exists() else pl.DataFrame(schema={_NAMES.get(n, n): t for n, t in ROW_COLUMNS.items()})


_NAMES = {ORDINAL: "record", "original_id": "name"}


def _read(path: Path) -> pl.DataFrame:
    expected = {_NAMES.get(name, name): kind for name, kind in ROW_COLUMNS.items()}
    try:
        table = scan_rows(path).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DatabaseError(f"{printable(path)}: cannot be read ({printable(str(error), 300)}). {_CURE}") from error
    if dict(table.schema) != expected:
        raise DatabaseError(f"{printable(path)}: is not the table of skipped records that build writes. {_CURE}")
    return table


_CURE = "Remove it; samples that are not built again are then missing in the new one: --force builds all again"
