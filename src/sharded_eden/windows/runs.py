"""The windows of a window database as runs: consecutive windows of one contig.

Input: a window database. Output: a row for each run. Costs one pass over the windows, and about 100 bytes of memory a run.
The windows may be in any order: some may have been left out, and other programs may have shuffled them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import apsw
import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, printable, shown
from sharded_eden.format import schema
from sharded_eden.format.fingerprint import fingerprint_of_rows
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.index import NO_TAG
from sharded_eden.format.schema import CONTIG_ID, LENGTH
from sharded_eden.format.sqlite import table_columns
from sharded_eden.format.window_db import as_integer

ROWS_AT_ONCE = 1 << 17
"""Windows read at once."""
MAX_TAGS = 1 << 16
"""With more distinct control tags than this, the index holds none: the sequence IDs then give them."""

FIRST, IN_CONTIG, LAST, SAMPLE_NUMBER, TAG = "first_window", "first_in_contig", "last_in_contig", "sample", "tag"

_WINDOWS = "SELECT window_idx, sequence_id, window_in_seq_idx FROM window_mappings ORDER BY window_idx"


class WindowRuns:
    """The windows of a window database.

    Args:
        database: an open window database.
        path: its name in messages.
    """

    def __init__(self, database: apsw.Connection, path: Path) -> None:
        self._database, self._path = database, path
        for table in ("metadata", "window_mappings"):
            if not table_columns(database, table):
                raise DatabaseError(f"{printable(path)}: not a window database: it has no table {table}")
        rows = database.execute("SELECT key, value FROM metadata")
        metadata = {key: number for key, value in rows if (number := as_integer(value)) is not None}
        try:
            self.geometry = WindowGeometry.from_metadata(metadata)
            self._stated = None if metadata.get("total_windows") is None else int(metadata["total_windows"])
            stated_fingerprint = metadata.get("fingerprint")
            self.fingerprint = None if stated_fingerprint is None else int(stated_fingerprint)
        except (KeyError, TypeError, ValueError) as error:
            raise DatabaseError(
                f"{printable(path)}: not a window database: its metadata are incomplete ({shown(error)})"
            ) from error
        self._metadata = metadata
        self.total = 0
        self.tags: list[str] = []
        self.used: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        """For each sample, whether a window names it."""

    def runs(self, samples: Sequence[str]) -> pl.DataFrame:
        """Return the runs, sorted by window.

        Columns: `contig_id`, `first_window`, `first_in_contig`, `last_in_contig`, `length` (as `contig_lengths` has it, or -1),
        `sample` (its number; -1 where it has no database, -2 where the ID names none), `tag`.
        """
        parts = list(self._parts())
        if self._stated is not None and self._stated != self.total:
            raise DatabaseError(
                f"{printable(self._path)}: its metadata say {self._stated} windows, its table window_mappings has {self.total}"
            )
        if self.fingerprint is None:
            self.fingerprint = fingerprint_of_rows(self._database, self._metadata, self.total)
        if not parts:
            parts = [_run_frame([], [], [], [])]
        frame = pl.concat(parts).with_columns(self._sample_numbers(samples, parts))
        del parts
        numbers = frame[SAMPLE_NUMBER].to_numpy().astype(np.int64)
        self.used = np.bincount(numbers[numbers >= 0], minlength=len(samples)) > 0
        return frame.with_columns(self._tag_numbers(frame), self._recorded_lengths(frame))

    def _parts(self) -> Iterator[pl.DataFrame]:
        cursor = self._database.execute(_WINDOWS)
        last: tuple[str, int] | None = None  # contig and window_in_seq_idx of the previous window
        open_run: pl.DataFrame | None = None
        while rows := list(islice(cursor, ROWS_AT_ONCE)):
            window, ids, in_contig = zip(*rows, strict=True)
            try:
                numbers = np.array(window, dtype=np.int64), np.array(in_contig, dtype=np.int64)
                if set(map(type, window)) | set(map(type, in_contig)) != {int} or set(map(type, ids)) != {str}:
                    raise TypeError
                text = pl.Series(CONTIG_ID, ids, dtype=pl.String)
            except (TypeError, ValueError, OverflowError) as error:
                raise DatabaseError(
                    f"{printable(self._path)}: a row of window_mappings from window {shown(window[0])} on holds other values"
                ) from error
            expected = np.arange(self.total, self.total + len(rows))
            wrong = np.flatnonzero(numbers[0] != expected)
            if len(wrong):
                raise DatabaseError(
                    f"{printable(self._path)}: its windows are not numbered from 0 without gaps: window "
                    f"{numbers[0][wrong[0]]} comes where {expected[wrong[0]]} should"
                )
            if numbers[1].min() < 0 or numbers[1].max() > np.iinfo(np.uint32).max - ROWS_AT_ONCE:
                raise DatabaseError(
                    f"{printable(self._path)}: a window_in_seq_idx from window {self.total} on is out of range"
                )
            is_first = np.ones(len(rows), dtype=np.bool_)
            is_first[1:] = (text[1:] != text[:-1]).to_numpy() | (np.diff(numbers[1]) != 1)
            if last is not None:
                is_first[0] = ids[0] != last[0] or in_contig[0] != last[1] + 1
            firsts = np.flatnonzero(is_first)
            lasts = np.append(firsts, len(rows))[1:] - 1
            frame = _run_frame(text.gather(firsts), numbers[0][firsts], numbers[1][firsts], numbers[1][lasts])
            if open_run is not None:
                if not is_first[0]:
                    end = numbers[1][firsts[0] - 1 if len(firsts) else -1]
                    open_run = open_run.with_columns(pl.lit(end, dtype=pl.Int64).alias(LAST))
                frame = pl.concat([open_run, frame])
            yield frame[:-1]
            open_run, last = frame[-1:], (ids[-1], in_contig[-1])
            self.total += len(rows)
        if open_run is not None:
            yield open_run

    def _sample_numbers(self, samples: Sequence[str], parts: Sequence[pl.DataFrame]) -> pl.Series:
        """Return the number of the sample of each run: -1 where it has no database, -2 where its ID names none."""
        if len(samples) == 1:
            return pl.Series(SAMPLE_NUMBER, np.zeros(sum(map(len, parts)), dtype=np.int64))
        numbers = {name: number for number, name in enumerate(samples)}
        found = []
        for part in parts:
            prefix = part[CONTIG_ID].str.split_exact("__", 2).struct.field("field_1")
            distinct = prefix.unique().to_list()
            of_prefix = {p: -2 if p is None else numbers.get(".".join(p.split("-")[1:]), -1) for p in distinct}
            found.append(
                prefix.replace_strict(of_prefix, return_dtype=pl.Int64).cast(pl.Int64)
            )  # an empty one keeps its type
        return pl.concat(found).alias(SAMPLE_NUMBER)

    def _tag_numbers(self, frame: pl.DataFrame) -> pl.Series:
        prefixes = frame[CONTIG_ID].str.split_exact("__", 1).struct.field("field_0")
        distinct = prefixes.unique(maintain_order=True)
        names = {prefix: schema.control_name(prefix) for prefix in islice(distinct, 2 * MAX_TAGS)}
        self.tags = sorted(set(names.values()))
        if len(distinct) > len(names) or len(self.tags) > MAX_TAGS:
            self.tags = []
            return pl.Series(TAG, np.full(len(frame), NO_TAG, dtype=np.uint32))
        number = {name: k for k, name in enumerate(self.tags)}
        return (
            prefixes.replace_strict({p: number[n] for p, n in names.items()}, return_dtype=pl.UInt32)
            .cast(pl.UInt32)
            .alias(TAG)
        )

    def _recorded_lengths(self, frame: pl.DataFrame) -> pl.Series:
        """Return the length of each run's contig from `contig_lengths`, -1 where it has none."""
        found = np.full(len(frame), -1, dtype=np.int64)
        if {"first_window_idx", "length"} <= set(table_columns(self._database, "contig_lengths")):
            firsts, lengths = [], []
            cursor = self._database.execute(
                "SELECT first_window_idx, length FROM contig_lengths WHERE typeof(first_window_idx) = 'integer' "
                "AND typeof(length) = 'integer' ORDER BY first_window_idx"
            )
            while rows := list(islice(cursor, ROWS_AT_ONCE)):
                part = np.array(rows, dtype=np.int64)
                firsts.append(part[:, 0])
                lengths.append(part[:, 1])
            if firsts:
                first, length = np.concatenate(firsts), np.concatenate(lengths)
                at = np.searchsorted(first, frame[FIRST].to_numpy(), side="right") - 1
                found = np.where(at >= 0, length[np.maximum(at, 0)], -1)
        return pl.Series(LENGTH, found)


def _run_frame(
    ids: Sequence[str] | pl.Series,
    first: Sequence[int] | NDArray[np.int64],
    in_contig: Sequence[int] | NDArray[np.int64],
    last: Sequence[int] | NDArray[np.int64],
) -> pl.DataFrame:
    types = {CONTIG_ID: pl.String, FIRST: pl.Int64, IN_CONTIG: pl.Int64, LAST: pl.Int64}
    return pl.DataFrame(dict(zip(types, (ids, first, in_contig, last), strict=True)), schema=types)
