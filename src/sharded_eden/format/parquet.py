"""Reads single Parquet files by their literal names, and turns errors of Polars into errors of this package.

Polars expands `*`, `?`, `[...]` and `~` in paths, treats `s3://` as a URL and refuses names that are not UTF-8. It is
therefore given `/dev/fd/N`, the name of a file that is open already: the file stays the same if another one replaces it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from sharded_eden.errors import DatabaseError, InputError, printable

SEQUENCE_DB_DIR = "sequence_db_dir"
"""The key under which a split file names the folder of sequence databases it was made from."""


@contextmanager
def parquet_errors(
    path: str | os.PathLike[str], hint: str, kind: type[InputError | DatabaseError] = InputError
) -> Iterator[None]:
    """Raise `kind`, naming the file and a hint, instead of what Polars or the system raises while the file is read."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        if isinstance(error, (InputError, DatabaseError)):
            raise
        reason = printable(error.strerror or str(error) if isinstance(error, OSError) else str(error), 200)
        raise kind(f"{printable(path)}: cannot be read as Parquet ({reason}). {hint}") from error


@contextmanager
def parquet_source(
    path: str | os.PathLike[str], hint: str, kind: type[InputError | DatabaseError] = InputError
) -> Iterator[str]:
    """Open a Parquet file and return the name by which Polars reads it, valid inside the `with` block.

    Pass `glob=False` to Polars as well. Wrap the reading in `parquet_errors`.

    Args:
        path: the file; its name is taken literally.
        hint: the last sentence of the error message.
        kind: the class of the error.

    Raises:
        InputError, DatabaseError: the file does not exist, is not a regular file, or may not be read.
    """
    if not Path(path).is_file():
        raise kind(f"{printable(path)}: no such file")
    with parquet_errors(path, hint, kind):
        file = open(path, "rb")  # noqa: SIM115 - closed below; opening alone is guarded by `parquet_errors`
    with file:
        yield f"/dev/fd/{file.fileno()}"


def write_parquet(table: pl.DataFrame, path: Path, metadata: dict[str, str]) -> None:
    """Write a Parquet file to a path that is taken literally, with metadata."""
    with path.open("wb") as file:
        table.write_parquet(file, metadata=metadata)


def is_text(name: str) -> bool:
    """Return whether a path is valid UTF-8: a file name may hold any bytes."""
    return not any("\ud800" <= c <= "\udfff" for c in name)
