"""The records of one sample -> its sequence database, and their rows of the contig table.

Input: records in input order. Output: a complete and synced database under a temporary name. Needs the memory of one
record and of 100,000 rows of the contig table.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import apsw
import numpy as np
import polars as pl
import xxhash

from sharded_eden.build.contig_rows import ORDINAL, ROWS_IN_MEMORY, ContigRows
from sharded_eden.build.records import Record
from sharded_eden.build.skipped import BadRecord, Skip
from sharded_eden.build.source import MAX_CONTIG_BASES, describe
from sharded_eden.errors import InputError, shown
from sharded_eden.format import schema
from sharded_eden.format.publish import create_database, writing

SMALL_PAGE = 4096
LARGE_PAGE = 65_536
"""Page sizes in bytes. In a large page a contig of some kilobases lies in one piece, so that any of its windows is one read.
Large pages are written twice as fast; but a database has at least three pages."""

LARGE_SAMPLE_BASES = 8_000_000
"""Samples of this size and more get large pages by default: three of them are then at most 2.5% of the database."""

HASHED_AT_ONCE = 1 << 20
"""Bases encoded and hashed at once."""

REPORTED_BASES = 1_000_000
"""Bases between two calls of the progress callback."""


def page_size_for(bases: int) -> int:
    """Return the page size for a sample of about this many bases."""
    return LARGE_PAGE if bases >= LARGE_SAMPLE_BASES else SMALL_PAGE


@dataclass(frozen=True, kw_only=True)
class SampleResult:
    """One sequence database as written."""

    sample: str
    contigs: int
    bases: int
    bytes_on_disk: int
    rows_hash: str
    """XXH3 (128 bits) over every (contig ID, length, sequence) in their order, hexadecimal."""


def write_sample(
    path: Path,
    sample: str,
    tag: str,
    files: Iterable[tuple[str, Iterable[Record]]],
    rows: ContigRows,
    *,
    page_size: int = SMALL_PAGE,
    report: Callable[[int, int], object] = lambda records, bases: None,
    other: Callable[[str, str], Exception] | None = None,
    skip: Skip | None = None,
) -> SampleResult:
    """Write the database of one sample.

    Args:
        path: the file to write; it must not exist.
        sample: its ID. A record whose name has the form of a sequence ID keeps it; any other gets one.
        tag: the beginning of the IDs that records get.
        files: each file's name in messages, and its records, in input order.
        rows: receives the row of each record.
        page_size: of the database, in bytes.
        report: called regularly with the number of records and bases since its last call.
        other: called with a description of a record that names another sample, and that sample; returns the error to raise.
            None: all records are known to belong to this sample.
        skip: called with each record that is too long, or whose name or ID an earlier one has; such records are left out.
            None: they are errors. Needs the memory of all names and IDs.

    Raises:
        InputError: two records share a name or an ID, or one is longer than SQLite can hold.
        WriteError: the database cannot be written.
    """
    first_row = len(rows)
    digest, names = xxhash.xxh3_128(), array("q")  # names: hashes of those that are not IDs
    bases = count = 0
    seen: set[str] = set()

    def contigs() -> Iterator[tuple[str, str]]:
        nonlocal bases, count
        update, add_hash = digest.update, names.append
        add_id, add_name, add_description, add_sample, add_length, add_file, add_ordinal = rows.appends()
        given, reported_records, reported_bases = schema.make_sequence_id(tag, sample, 0)[:-1], 0, 0
        for file, records in files:
            for record in records:
                name, description, sequence, ordinal, _ = record
                length = len(sequence)
                if (length > MAX_CONTIG_BASES or name in seen) and _is_skipped(file, record, sample, skip):
                    continue
                count += 1
                if "__" in name and schema.has_sequence_id_form(name):
                    contig_id = name
                    if other is not None and (named := schema.extract_sample_id(name)) != sample:
                        raise other(describe(file, ordinal, name), named)
                else:
                    contig_id = f"{given}{count}"
                    if name:
                        add_hash(hash(name))
                if skip is not None:
                    seen.update((name or contig_id, contig_id))
                bases += length
                add_id(contig_id)
                add_name(name)
                add_description(description)
                add_sample(sample)
                add_length(length)
                add_file(file)
                add_ordinal(ordinal)
                update(f"{contig_id}\t{length}\t".encode())
                if length <= HASHED_AT_ONCE:
                    update(sequence.encode())
                else:
                    _hash_parts(update, sequence)
                yield contig_id, sequence
                del record, sequence  # frees this record before the next one is read
                if bases - reported_bases > REPORTED_BASES:
                    report(count - reported_records, bases - reported_bases)
                    reported_records, reported_bases = count, bases
                    rows.flush()
                if not count % ROWS_IN_MEMORY:
                    rows.flush()
        rows.flush()
        report(count - reported_records, bases - reported_bases)

    _insert(path, page_size, contigs(), rows, first_row, sample)
    _check_names(names, rows, first_row, sample)
    return SampleResult(
        sample=sample,
        contigs=count,
        bases=bases,
        bytes_on_disk=path.stat().st_size,
        rows_hash=digest.hexdigest(),
    )


def _hash_parts(update: Callable[[bytes], object], sequence: str) -> None:
    for start in range(0, len(sequence), HASHED_AT_ONCE):
        update(sequence[start : start + HASHED_AT_ONCE].encode())


def _is_skipped(file: str, record: Record, sample: str, skip: Skip | None) -> bool:
    """Leave a record out that is too long, or whose name or ID an earlier record has.

    Raises:
        BadRecord: bad records are errors.
    """
    where, length = describe(file, record.ordinal, record.name), len(record.sequence)
    if length > MAX_CONTIG_BASES:
        held = f"{length:,} bases are more than SQLite holds in one value ({MAX_CONTIG_BASES:,})"
        bad = BadRecord(f"{where}: {held}", "long", record.name)
    else:
        taken = f"{shown(record.name)} is taken within sample {sample!r} by an earlier record"
        bad = BadRecord(f"{where}: {taken}", "duplicate", record.name)
    if skip is None:
        raise bad
    skip(file, record.ordinal, bad)
    return True


def _insert(
    path: Path, page_size: int, contigs: Iterator[tuple[str, str]], rows: ContigRows, first_row: int, sample: str
) -> None:
    with writing(path):
        with closing(create_database(path, page_size=page_size)) as database:
            database.execute(f"BEGIN; {schema.CREATE_SEQUENCES}")
            try:
                database.executemany("INSERT INTO sequences VALUES (?, ?)", contigs)
            except apsw.ConstraintError as error:
                so_far = rows.table().slice(first_row).collect()
                raise _taken(so_far, "contig_id", so_far["contig_id"][-1], sample) from error
            database.execute("COMMIT")
        with path.open("rb") as written:
            os.fsync(written.fileno())


def _check_names(names: array[int], rows: ContigRows, first_row: int, sample: str) -> None:
    """Raise an error for names that appear twice. Hashes are compared first, at eight bytes a name."""
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
        f"{describe(second[0], second[1], second[2])}: {shown(name)} is taken within sample {sample!r} by record {first[1]} of "
        f"{first[0]}. Names within a sample must differ; those of JSON lines and tables may be left out (--id-field '')"
    )
