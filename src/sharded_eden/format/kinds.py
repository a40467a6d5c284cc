"""What kind of thing a path is, for messages that name what was given and what was expected."""

from __future__ import annotations

import os
import re
from contextlib import closing
from pathlib import Path

from sharded_eden.errors import EdenError, UsageError, printable, shown
from sharded_eden.format.schema import MANIFEST_FILE, discover_sample_databases
from sharded_eden.format.sqlite import READ_ERRORS, open_read_only, table_columns

WINDOW_DBS_PATTERN = "*_windows.db"
SQLITE_MAGIC, PARQUET_MAGIC = b"SQLite format 3\0", b"PAR1"


def kind_of(path: Path) -> str:
    """Return what a path is, in words; nothing where there is no such path or it cannot be read."""
    try:
        if path.is_dir():
            if any(path.glob(WINDOW_DBS_PATTERN)):
                return "a folder of window databases"
            if any(path.glob("*_split.parquet")):
                return "a folder of split files"
            try:
                return "a folder of sequence databases" if discover_sample_databases(path) else ""
            except EdenError:
                return "a folder without databases"
        with path.open("rb") as file:
            head = file.read(16)
        if head.startswith(PARQUET_MAGIC):
            return "a Parquet file"
        if head != SQLITE_MAGIC:
            return "a file that is no database"
        with closing(open_read_only(path)) as database:
            if table_columns(database, "window_mappings"):
                return "a window database"
            if table_columns(database, "sequences"):
                return "a sequence database"
            return "the manifest of a build" if path.name == MANIFEST_FILE else "another SQLite database"
    except (OSError, EdenError, *READ_ERRORS):
        return ""


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
    """Refuse a path that exists and is of another kind than expected.

    Args:
        path: the path.
        name: what it was given as, for the message.
        kinds: the accepted kinds, see `kind_of`.

    Raises:
        UsageError: with both kinds.
    """
    kind = kind_of(path)
    if kind in {"a folder of sequence databases", "a folder of window databases", "a window database", "a sequence database",
                "a folder of split files", "a Parquet file"} and kind not in kinds:  # fmt: skip
        raise UsageError(f"{name}: {printable(path)} is {kind}; expected {' or '.join(kinds)}")
