"""Access logs as one Polars frame.

Input: the folder that `log_dir` named. Output: a row for each window that was read. Costs one pass over the files; the lazy
frame needs the memory of a query, not of the logs, except for a file of a running or killed process that is not Parquet yet: at
most 2 million rows. See `sharded_eden.load.access_log` for the files.
"""

from __future__ import annotations

import io
import os
import re
from contextlib import closing
from pathlib import Path

import polars as pl

from sharded_eden.errors import InputError, MissingDatabase, printable, shown, warn
from sharded_eden.load import access_rows
from sharded_eden.load.access_log import split_in
from sharded_eden.load.access_rows import COLUMNS, TEXT_COLUMNS, Column

_NAME = re.compile(r"window_access_(.*)_rank(\d+)_[0-9a-f]{8}\.(csv|parquet|rows)")

SCHEMA = {name: pl.String if name in TEXT_COLUMNS else pl.Int64 for name in COLUMNS}
"""The columns and their types; `split` (String), from the name of the file, comes last."""


def read_access_logs(folder: str | os.PathLike[str]) -> pl.DataFrame:
    """Return the windows that all processes of a job have read, CSV and Parquet files together.

    Rows of a Parquet log of a running or killed process need the window database that was read.

    Args:
        folder: the `log_dir` of the job; folders in it are not read.

    Returns:
        A row for each window, file after file, and in each file in the order of reading: `window_idx`, `sequence_id`,
        `sample_id`, `window_in_seq_idx`, `rank`, `access_ts` (nanoseconds since 1970), `worker` (-1: the main process),
        `epoch`, `split`.

    Raises:
        MissingDatabase: there is no such folder, no log in it, or not the window database of a process that was killed.
        InputError: a file is no access log, or is damaged, or that window database was replaced.
        DatabaseError: that window database cannot be read.

    Example:
        >>> from sharded_eden import read_access_logs
        >>> read_access_logs("logs")["window_idx"].to_list()
        [0, 1]
    """
    frame = scan_access_logs(folder)
    try:
        return frame.collect()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{printable(folder)}: an access log in it is damaged ({shown(str(error), 200)})") from error


def scan_access_logs(folder: str | os.PathLike[str]) -> pl.LazyFrame:
    """Return the same rows as a lazy frame, for queries of logs that are larger than memory.

    Raises:
        MissingDatabase: there is no such folder, no log in it, or not the window database of a process that was killed.
        InputError: a file has other columns or is damaged, or that window database was replaced.
        DatabaseError: that window database cannot be read.
    """
    return pl.concat([scan_access_log(path) for path in access_log_files(folder)])


def access_log_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the access logs in a folder, sorted by name. A Parquet file replaces the file that it was made of.

    Raises:
        MissingDatabase: there is no such folder, or no log in it.
    """
    folder = Path(folder)
    # Twice: a file of rows that a running process replaces may be in neither form in the first listing.
    listed = {path for _ in range(2) for path in folder.glob("window_access_*")} if folder.is_dir() else set()
    found = sorted(
        path
        for path in listed
        if _NAME.fullmatch(path.name) and (path.is_file() or path.with_suffix(".parquet").is_file())
    )
    if not found:
        what = (
            "holds no access log (window_access_*.csv, .parquet or .rows)"
            if folder.is_dir()
            else "no such folder of access logs"
        )
        raise MissingDatabase(
            f"{printable(folder)}: {what}. Training writes them with log_windows=True, log_dir=FOLDER"
        )
    finished = {path.stem for path in found if path.suffix == ".parquet"}
    return [path for path in found if path.suffix == ".parquet" or path.stem not in finished]


def split_of(path: Path) -> str:
    """Return the split that the name of an access log states; empty where the name is no such name."""
    match = _NAME.fullmatch(path.name)
    return split_in(match[1]) if match else ""


def scan_access_log(path: Path) -> pl.LazyFrame:
    """Return one file as `scan_access_logs` does.

    Raises:
        MissingDatabase, InputError, DatabaseError: see `scan_access_logs`.
    """
    if path.suffix == ".parquet":
        frame = _scan_parquet(path)
    elif path.suffix == access_rows.SUFFIX:
        frame = _scan_rows(path)
    else:
        frame = _scan_csv(path)
    return frame.with_columns(pl.lit(split_of(path)).alias("split"))


def _scan_parquet(path: Path) -> pl.LazyFrame:
    try:
        frame = pl.scan_parquet(path, glob=False)
        names = frame.collect_schema().names()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{printable(path)}: is damaged, or no access log ({shown(str(error), 200)})") from error
    _check_columns(path, names)
    return frame.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())


def _scan_rows(path: Path) -> pl.LazyFrame:
    """Return the rows of a process that is running, or was killed; of the Parquet file, if they have become one by now."""
    try:
        visits = access_rows.read(path)
    except OSError as error:
        finished = path.with_suffix(".parquet")
        if isinstance(error, FileNotFoundError) and finished.is_file():
            return _scan_parquet(finished)
        raise InputError(f"{printable(path)}: cannot be read ({error.strerror})") from error
    return _rows(path, visits).lazy()


def _rows(path: Path, visits: access_rows.Visits) -> pl.DataFrame:
    if not visits.is_whole:
        warn(
            f"{printable(path)}: its last rows are incomplete, because the disk was full or the machine stopped. "
            "They are left out"
        )
    if not len(visits.window_idx):
        return pl.DataFrame(schema=SCHEMA)
    with closing(access_rows.window_db_of(path, visits)) as index:
        return pl.concat(
            [
                pl.DataFrame(
                    {
                        name: pl.Series(each.values, dtype=pl.String).gather(each.number)
                        if isinstance(each, Column)
                        else pl.Series(each, dtype=pl.Int64)
                        for name, each in found.items()
                    }
                )
                for found in access_rows.columns(visits, index, None)
            ]
        )


def _scan_csv(path: Path) -> pl.LazyFrame:
    header = ",".join(COLUMNS).encode() + b"\n"
    with path.open("rb") as file:
        head = file.readline(1 << 12)
        if header.startswith(head) and head != header:  # the process was stopped at its first write
            if head:
                warn(
                    f"{printable(path)}: ends inside its first line, because the disk was full or the process stopped. "
                    "It has no row"
                )
            return pl.LazyFrame(schema=SCHEMA)
        _check_columns(path, head.decode("utf-8", "replace").strip().split(","))
        file.seek(-1, os.SEEK_END)
        is_whole = file.read(1) == b"\n"
        source: Path | io.BytesIO = path
        if not is_whole:
            file.seek(0)
            data = file.read()
            warn(
                f"{printable(path)}: its last row is incomplete, because the disk was full or the machine stopped. "
                "It is left out"
            )
            source = io.BytesIO(data[: data.rfind(b"\n") + 1])
    frame = pl.scan_csv(source, schema=SCHEMA, glob=False)
    return frame.with_columns(pl.col(name).fill_null("").str.replace("^'", "") for name in TEXT_COLUMNS)


def _check_columns(path: Path, found: list[str]) -> None:
    if tuple(found) != COLUMNS:
        raise InputError(
            f"{printable(path)}: is no access log: expected the columns {', '.join(COLUMNS)}, found {shown(found)}"
        )
