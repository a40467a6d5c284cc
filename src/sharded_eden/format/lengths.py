"""How long contigs are, and the windows cut from them.

Input: a window database, and a split or sequence databases where it has no lengths. Output: the bases of each window,
in the order of the windows. Costs one pass over the windows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import apsw
import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, InputError, UsageError, printable, shown
from sharded_eden.format import schema
from sharded_eden.format.commands import precompute_command, split_command
from sharded_eden.format.geometry import MOST, WindowGeometry
from sharded_eden.format.parquet import parquet_errors, parquet_source
from sharded_eden.format.schema import CONTIG_ID, LENGTH
from sharded_eden.format.sequence_db import sequence_db_problems
from sharded_eden.format.sqlite import READ_ERRORS, open_read_only, table_columns, unreadable

ROWS_PER_FETCH = 1 << 16
CHUNK_WINDOWS = 1 << 17

_WINDOWS = """
SELECT total(typeof(window_idx) <> 'integer' OR typeof(window_in_seq_idx) <> 'integer'),
group_concat(window_idx), group_concat(window_in_seq_idx) FROM (
SELECT window_idx, window_in_seq_idx FROM window_mappings WHERE window_idx >= ? AND window_idx < ? ORDER BY window_idx)"""
_LENGTHS = """
SELECT total(typeof(first_window_idx) <> 'integer' OR typeof(length) <> 'integer'),
group_concat(first_window_idx), group_concat(length) FROM (
SELECT first_window_idx, length FROM contig_lengths WHERE first_window_idx < ?2 AND first_window_idx >=
(SELECT max(first_window_idx) FROM contig_lengths WHERE first_window_idx <= ?1) ORDER BY first_window_idx)"""
_JOINED = """
SELECT total(typeof(window_idx) <> 'integer' OR typeof(window_in_seq_idx) <> 'integer'),
group_concat(window_idx), group_concat(window_in_seq_idx), group_concat(bases) FROM (
SELECT w.window_idx, w.window_in_seq_idx, coalesce(c.length, -1) AS bases FROM window_mappings AS w
LEFT JOIN temp.contig_bases AS c ON c.contig_id = w.sequence_id
WHERE w.window_idx >= ? AND w.window_idx < ? ORDER BY w.window_idx)"""


def window_lengths(
    database: apsw.Connection,
    path: Path,
    geometry: WindowGeometry,
    total: int,
    *,
    lengths: str | os.PathLike[str] | None = None,
    sequences: str | os.PathLike[str] | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Yield how many bases there are from the start of each window to the end of its contig, (n,) int64, window after window.

    Args:
        database: the window database, open for writing where it has no table `contig_lengths`.
        path: its name in messages.
        geometry: how its windows were cut.
        total: its number of windows.
        lengths: the split's Parquet file, used where the database has no `contig_lengths`.
        sequences: the folder of sequence databases, used where there is neither.

    Raises:
        UsageError: no source of the lengths of the contigs is given.
        DatabaseError: windows are missing, or begin after the end of their contigs, or values have other types.
        InputError: the Parquet file is no split.
    """
    has_table = bool(table_columns(database, "contig_lengths"))
    if not has_table:
        _fill_temporary_table(database, path, lengths, sequences)
    for low in range(0, total, CHUNK_WINDOWS):
        high = min(low + CHUNK_WINDOWS, total)
        window, in_contig, *known_bases = _columns(database, path, _WINDOWS if has_table else _JOINED, low, high)
        if not np.array_equal(window, np.arange(low, high)):
            missing = high - low - len(np.unique(window))
            raise DatabaseError(
                f"{printable(path)}: {missing} of its windows {low} to {high - 1} are missing"
                + (", and others are there more than once" if len(window) > high - low - missing else "")
            )
        if has_table:
            firsts, all_lengths = _columns(database, path, _LENGTHS, low, high)
            if not len(firsts):
                again = precompute_command(path, geometry=geometry, pack=True, force=True)
                raise DatabaseError(
                    f"{printable(path)}: its table contig_lengths says nothing of window {low}. Make it again: {again}"
                )
            # A window that does not come after the one before it in a contig begins another contig.
            begins = window[1:][np.diff(in_contig) <= 0]
            if not np.isin(begins, firsts).all():
                lost = int(begins[~np.isin(begins, firsts)][0])
                again = precompute_command(path, geometry=geometry, pack=True, force=True)
                raise DatabaseError(
                    f"{printable(path)}: its table contig_lengths lacks the contig that begins with window {lost}. Make it "
                    f"again: {again}"
                )
            contig_bases = all_lengths[np.searchsorted(firsts, window, side="right") - 1]
        else:
            (contig_bases,) = known_bases
        wrong = np.flatnonzero(
            (contig_bases < 0) | (contig_bases > MOST) | (in_contig < 0) | (in_contig > contig_bases // geometry.stride)
        )
        if len(wrong):
            window_idx, k = low + int(wrong[0]), int(in_contig[wrong[0]])
            query = "SELECT CAST(sequence_id AS BLOB) FROM window_mappings WHERE window_idx = ?"
            name = bytes(database.execute(query, (window_idx,)).get or b"").decode("utf-8", "replace")
            known, source = int(contig_bases[wrong[0]]), printable(lengths or sequences or "")
            raise DatabaseError(
                f"{printable(path)}: window {window_idx} begins at base {k * geometry.stride} of contig {shown(name)}, "
                + (f"which has {known} bases" if known >= 0 else f"whose length is not in {source}")
                + ". They do not belong together"
            )
        bases = contig_bases - in_contig * geometry.stride
        yield bases


def _columns(database: apsw.Connection, path: Path, query: str, low: int, high: int) -> list[NDArray[np.int64]]:
    """Return the result of a query of `group_concat`s, (n,) int64 each: four times as fast as rows of integers."""
    not_integers, *found = database.execute(query, (low, high)).get
    if not_integers:
        raise DatabaseError(
            f"{printable(path)}: {int(not_integers):,} rows about its windows {low} to {high - 1} hold values that are not "
            "integers (window_idx, window_in_seq_idx, first_window_idx or length)"
        )
    return [np.fromstring(text, dtype=np.int64, sep=",") if text else np.empty(0, dtype=np.int64) for text in found]


def _fill_temporary_table(
    database: apsw.Connection,
    path: Path,
    lengths: str | os.PathLike[str] | None,
    sequences: str | os.PathLike[str] | None,
) -> None:
    """Write the lengths of all contigs to a temporary table, which SQLite keeps on disk."""
    if lengths is None and sequences is None:
        raise UsageError(
            f"{printable(path)} has no table contig_lengths, so the lengths of its windows are unknown. Name the split that it "
            "was made from (--lengths SPLIT.parquet) or the sequence databases (--sequences SEQDB)"
        )
    database.execute("CREATE TEMP TABLE contig_bases (contig_id TEXT PRIMARY KEY, length INTEGER) WITHOUT ROWID")
    source = lengths if lengths is not None else sequences
    for batch in _split_batches(Path(lengths)) if lengths is not None else _database_batches(sequences):
        try:
            database.executemany("INSERT INTO temp.contig_bases VALUES (?, ?)", batch.iter_rows())
        except apsw.ConstraintError as error:
            raise InputError(
                f"{printable(source or '')}: a contig appears more than once, or has no contig_id. Keep one row for each contig"
            ) from error


def _split_batches(split: Path) -> Iterator[pl.DataFrame]:
    hint = f"Expected a split with contig_id and length: {split_command()}"
    with parquet_source(split, hint) as source, parquet_errors(split, hint):
        table = pl.scan_parquet(source, glob=False).select(CONTIG_ID, LENGTH)
        if not table.collect_schema()[LENGTH].is_integer():
            raise InputError(f"{printable(split)}: its column length does not hold integers. {hint}")
        columns = (pl.col(CONTIG_ID).cast(pl.String), pl.col(LENGTH).cast(pl.Int64))
        yield from table.select(columns).collect_batches(chunk_size=ROWS_PER_FETCH)


def _database_batches(folder: str | os.PathLike[str] | None) -> Iterator[pl.DataFrame]:
    for path in schema.discover_sample_databases(folder or "").values():
        yield contigs_of_database(path)


def contigs_of_database(path: Path) -> pl.DataFrame:
    """Return (contig_id, length) of every contig of a sequence database, without loading a sequence.

    Raises:
        DatabaseError: it cannot be read, or holds no such table, no row, or rows without text.
    """
    size_bytes = path.stat().st_size if path.is_file() else 0
    with closing(open_read_only(path)) as database:
        parts = []
        try:
            for problem in sequence_db_problems(database, path):
                raise problem.error(path)
            # octet_length() does not load the value; it counts bases only where a base is a byte.
            length = "octet_length" if database.pragma("encoding") == "UTF-8" else "length"
            query = (
                "SELECT iif(typeof(contig_id) = 'text', contig_id, NULL), "
                f"iif(typeof(nt_sequence) IN ('text', 'blob'), {length}(nt_sequence), NULL) FROM sequences"
            )
            rows = database.execute(query)
            while chunk := list(islice(rows, ROWS_PER_FETCH)):
                parts.append(pl.DataFrame(chunk, schema={CONTIG_ID: pl.String, LENGTH: pl.Int64}, orient="row"))
                if (len(parts) - 2) * ROWS_PER_FETCH > size_bytes:
                    raise DatabaseError(
                        f"{printable(path)}: its sequences have more rows than the file has bytes; are they an endless view?"
                    )
        except READ_ERRORS as error:
            raise unreadable(path, error) from error
    if not parts:
        raise DatabaseError(f"{printable(path)}: its table sequences is empty")
    contigs = pl.concat(parts)
    if contigs.null_count().sum_horizontal().item():
        raise DatabaseError(
            f"{printable(path)}: a row of its table sequences has no text as contig_id, or no nt_sequence"
        )
    return contigs
