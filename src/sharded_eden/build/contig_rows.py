"""Rows of the contig table while they are collected, and of other tables with a place in a file.

Input: values by column. Output: a lazy frame. Needs the memory of 100,000 rows; the others are in files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from sharded_eden.format.publish import writing

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
"""A column of an unfinished build only: a record's place in its file."""

ROW_COLUMNS: dict[str, type[pl.DataType]] = {**CONTIG_COLUMNS, ORDINAL: pl.Int64}

ROWS_IN_MEMORY = 100_000


def polars_path(path: Path) -> str:
    """Return a path that Polars reads literally: `~` at its beginning would otherwise mean the home folder."""
    return os.path.join(".", path)


def scan_rows(path: Path) -> pl.LazyFrame:
    """Return the rows of one Parquet file; its name is never a pattern."""
    return pl.scan_parquet(polars_path(path), glob=False)


class ContigRows:
    """Rows of the contig table: some in memory, by column, the others in files of a folder."""

    def __init__(self, folder: Path, name: str, columns: dict[str, type[pl.DataType]] = ROW_COLUMNS) -> None:
        self._folder, self._name, self._types = folder, name, columns
        self._parts: list[Path] = []
        self._in_parts = 0
        self._columns: dict[str, list[Any]] = {column: [] for column in columns}

    def __len__(self) -> int:
        return self._in_parts + len(self._columns[ORDINAL])

    def appends(self) -> list[Callable[[Any], None]]:
        """Return the method that appends to each column, in their order."""
        return [column.append for column in self._columns.values()]

    def flush(self) -> None:
        """Write the rows in memory to a file if there are many."""
        if len(self._columns[ORDINAL]) >= ROWS_IN_MEMORY:
            self._parts.append(self._folder / f"{self._name}.rows{len(self._parts)}.parquet")
            frame = self._frame()
            with writing(self._parts[-1]):
                frame.write_parquet(polars_path(self._parts[-1]))
            self._in_parts += frame.height
            for column in self._columns.values():
                column.clear()

    def cut(self, length: int) -> None:
        """Drop all rows after the first `length`."""
        while self._in_parts > length:
            part = scan_rows(self._parts.pop()).collect()
            self._in_parts -= part.height
            for name, column in self._columns.items():
                column[:] = part[name].to_list()  # its rows come before all those in memory
        for column in self._columns.values():
            del column[length - self._in_parts :]

    def table(self) -> pl.LazyFrame:
        """Return all rows, in their order."""
        return pl.concat([*(scan_rows(part) for part in self._parts), self._frame().lazy()])

    def _frame(self) -> pl.DataFrame:
        return pl.DataFrame(self._columns, schema=self._types)
