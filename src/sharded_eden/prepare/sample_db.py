"""The records of one sample -> its sequence database, and the rows of the contig table that tell what they were.

Enter: records in input order. Leave: a database that is whole and synced, under a name of its own. The memory is that of one
record, and 100,000 rows of the contig table.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import apsw
import numpy as np
import polars as pl
import xxhash

from sharded_eden import schema
from sharded_eden.errors import InputError
from sharded_eden.prepare.records import Record, describe
from sharded_eden.sqlite import create_database

MAX_CONTIG_BASES = 999_999_000
"""SQLite holds values of at most 1,000,000,000 bytes, the row's other column included."""

CONTIG_COLUMNS: dict[str, type[pl.DataType]] = {
    "contig_id": pl.String,
    "original_id": pl.String,
    "description": pl.String,
    "sample": pl.String,
    "length": pl.Int64,
    "source_file": pl.String,
}
"""The columns of `contigs.parquet`."""

ORDINAL = "ordinal"
"""In the rows of an unfinished build, beside those: a record's place in its file."""

ROWS_IN_MEMORY = 100_000


@dataclass(frozen=True, kw_only=True)
class SampleResult:
    """One sequence database as written."""

    sample: str
    contigs: int
    bases: int
    bytes_on_disk: int
    rows_hash: str
    """XXH3 (128 bits) over every (contig ID, length, sequence) in their order, hexadecimal."""


class ContigRows:
    """Rows of the contig table: a few in memory, the others in files of a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._parts: list[Path] = []
        self._in_parts = 0
        self._rows: list[tuple[str, str, str, str, int, str, int]] = []
        self.append = self._rows.append

    def __len__(self) -> int:
        return self._in_parts + len(self._rows)

    def flush(self, at: int = ROWS_IN_MEMORY) -> None:
        """Write what is in memory to a file where that is `at` rows or more."""
        if len(self._rows) >= at:
            self._parts.append(self._folder / f"{self._name}.rows{len(self._parts)}.parquet")
            self._frame().write_parquet(self._parts[-1])
            self._in_parts += len(self._rows)
            self._rows.clear()

    def table(self) -> pl.LazyFrame:
        """Return all rows, in their order."""
        return pl.concat([*(pl.scan_parquet(part) for part in self._parts), self._frame().lazy()])

    def discard(self) -> None:
        """Remove the files."""
        for part in self._parts:
            part.unlink(missing_ok=True)

    def _frame(self) -> pl.DataFrame:
        return pl.DataFrame(self._rows, schema={**CONTIG_COLUMNS, ORDINAL: pl.Int64}, orient="row")


def write_sample(
    path: Path, sample: str, tag: str, records: Iterable[tuple[Record, str]], rows: ContigRows
) -> SampleResult:
    """Write the database of one sample.

    Args:
        path: where; there is nothing yet.
        sample: its ID. A record whose name has the form of a sequence ID keeps it; any other gets one.
        tag: what the IDs given begin with.
        records: each with the name of its file, in input order.
        rows: takes in the row of each.

    Raises:
        InputError: two records share a name or an ID, or one is longer than SQLite holds.
    """
    first_row = len(rows)
    digest = xxhash.xxh3_128()
    names = array("q")  # hashes of the names that did not become IDs
    bases = count = 0
    record, file = None, ""

    def contigs() -> Iterator[tuple[str, str]]:
        nonlocal bases, count, record, file
        append, update = rows.append, digest.update
        for record, file in records:
            name, description, sequence, ordinal = record
            length = len(sequence)
            if length > MAX_CONTIG_BASES:
                raise InputError(
                    f"{describe(file, ordinal, name)}: {length:,} bases are more than SQLite holds in one value "
                    f"({MAX_CONTIG_BASES:,})"
                )
            count += 1
            if schema.has_sequence_id_form(name):
                contig_id = name
            else:
                contig_id = schema.make_sequence_id(tag, sample, count)
                if name:
                    names.append(hash(name))
            bases += length
            append((contig_id, name, description, sample, length, file, ordinal))
            if not count % ROWS_IN_MEMORY:
                rows.flush()
            update(f"{contig_id}\t{length}\t".encode())
            update(sequence.encode())
            yield contig_id, sequence

    with closing(create_database(path)) as database:
        database.execute(f"BEGIN; {schema.CREATE_SEQUENCES}")
        try:
            database.executemany("INSERT INTO sequences VALUES (?, ?)", contigs())
        except apsw.ConstraintError as error:
            taken = rows.table().slice(first_row).collect()
            raise _taken(taken, "contig_id", taken["contig_id"][-1], sample) from error
        database.execute("COMMIT")
    _check_names(names, rows, first_row, sample)
    with path.open("rb") as written:
        os.fsync(written.fileno())
    return SampleResult(
        sample=sample,
        contigs=count,
        bases=bases,
        bytes_on_disk=path.stat().st_size,
        rows_hash=digest.hexdigest(),
    )


def _check_names(names: array[int], rows: ContigRows, first_row: int, sample: str) -> None:
    """Refuse names that appear twice. Hashes first: eight bytes a name, and what they suspect is looked at."""
    hashes = np.sort(np.frombuffer(names, dtype=np.int64))
    if not (hashes[1:] == hashes[:-1]).any():
        return
    table = (
        rows.table()
        .slice(first_row)
        .filter((pl.col("original_id") != "") & (pl.col("original_id") != pl.col("contig_id")))
    )
    again = table.filter(~pl.col("original_id").is_first_distinct()).first().collect()
    if not again.is_empty():
        name = again["original_id"][0]
        raise _taken(table.filter(pl.col("original_id") == name).collect(), "original_id", name, sample)


def _taken(rows: pl.DataFrame, column: str, name: str, sample: str) -> InputError:
    first, second, *_ = rows.filter(pl.col(column) == name).select("source_file", ORDINAL, "original_id").rows()
    return InputError(
        f"{describe(second[0], second[1], second[2])}: {name!r} is taken within sample {sample!r} by record {first[1]} of "
        f"{first[0]}. Names within a sample must differ; those of JSON lines and tables may be left out (--id-field '')"
    )
