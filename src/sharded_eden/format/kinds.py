"""The kind of file or folder at a path, for messages that name what was given and what was expected."""

from __future__ import annotations

import os
import re
from contextlib import closing, suppress
from pathlib import Path

from sharded_eden.errors import EdenError, UsageError, printable, shown
from sharded_eden.format.schema import discover_sample_databases
from sharded_eden.format.sqlite import READ_ERRORS, open_read_only, table_columns

WINDOW_DBS_PATTERN = "*_windows.db"
SQLITE_MAGIC, PARQUET_MAGIC = b"SQLite format 3\0", b"PAR1"


def kinds_of(path: Path) -> list[str]:
    """Return the kinds of a path: several for a folder with several kinds of files, none for anything else."""
    try:
        if path.is_dir():
            found = []
            with suppress(EdenError):
                discover_sample_databases(path)
                found.append("a folder of sequence databases")
            if any(path.glob(WINDOW_DBS_PATTERN)):
                found.append("a folder of window databases")
            if any(path.glob("*_split.parquet")):
                found.append("a folder of split files")
            return found
        with path.open("rb") as file:
            head = file.read(16)
        if head.startswith(PARQUET_MAGIC):
            return ["a Parquet file"]
        if head != SQLITE_MAGIC:
            return []
        with closing(open_read_only(path)) as database:
            tables = {"window_mappings": "a window database", "sequences": "a sequence database"}
            return [kind for table, kind in tables.items() if table_columns(database, table)]
    except (OSError, EdenError, *READ_ERRORS):
        return []


def refuse_url(path: str | os.PathLike[str], name: str) -> None:
    """Refuse `s3://...` and other URLs.

    Raises:
        UsageError: databases are read from file systems only.
    """
    text = os.fspath(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text) and not Path(text).exists():
        raise UsageError(
            f"{name}: {shown(text)} is a URL, but databases are read from a file system. Copy them to a local disk"
        )


def expect(path: Path, name: str, *kinds: str) -> None:
    """Refuse a path that is known to be of another kind than expected.

    Args:
        path: the path.
        name: the argument that holds it, for the message.
        kinds: the accepted kinds, see `kinds_of`.

    Raises:
        UsageError: with both kinds.
    """
    found = kinds_of(path)
    if found and not set(found) & set(kinds):
        raise UsageError(f"{name}: {printable(path)} is {found[0]}; expected {' or '.join(kinds)}")
