"""The kind of file or folder at a path, for messages that name what was given and what was expected."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from sharded_eden.errors import EdenError, MissingDatabase, UsageError, printable, shown
from sharded_eden.format.schema import SPLIT_SUFFIX, WINDOWS_SUFFIX, discover_sample_databases
from sharded_eden.format.sqlite import READ_ERRORS, open_read_only, table_columns

SQLITE_MAGIC, PARQUET_MAGIC = b"SQLite format 3\0", b"PAR1"


def named(folder: str | os.PathLike[str], suffix: str) -> list[Path]:
    """Return the files of a folder whose names end so, sorted; not those whose names begin with a dot."""
    return sorted(path for path in Path(folder).glob(f"*{suffix}") if not path.name.startswith("."))


def kinds_of(path: Path) -> list[str]:
    """Return the kinds of a path: several for a folder with several kinds of files, none for anything else."""
    try:
        if path.is_dir():
            found = []
            with suppress(EdenError):
                discover_sample_databases(path)
                found.append("a folder of sequence databases")
            if named(path, WINDOWS_SUFFIX):
                found.append("a folder of window databases")
            if named(path, SPLIT_SUFFIX):
                found.append("a folder of split files")
            return found
        if not path.is_file():  # opening a pipe would wait for a writer
            return []
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
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text) and not os.path.lexists(Path(text).parts[0]):
        url = re.sub(":/+", "://", text, count=1)  # a Path has one slash
        raise UsageError(
            f"{name}: {shown(url)} is a URL, but data are read from and written to a file system. Copy them to a local disk"
        )


def expect(path: Path, name: str, *kinds: str) -> None:
    """Refuse a URL, and a path that is known to be of another kind than expected.

    Args:
        path: the path.
        name: the argument that holds it, for the message.
        kinds: the accepted kinds, see `kinds_of`.

    Raises:
        UsageError: with both kinds.
    """
    refuse_url(path, name)
    found = kinds_of(path)
    if found and not set(found) & set(kinds):
        raise UsageError(f"{name}: {printable(path)} is {found[0]}; expected {' or '.join(kinds)}")


def check_replaceable(path: Path, name: str, what: str, is_own: Callable[[Path], bool]) -> None:
    """Refuse to replace a file that is not an earlier result.

    Args:
        path: where a result is written.
        name: the argument that holds it, for the message.
        what: the kind of the result.
        is_own: whether an existing file is such a result.

    Raises:
        UsageError: another file, or a folder, is there.
    """
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        with suppress(Exception):  # of a library that reads another file
            if path.stat().st_size == 0 or is_own(path):
                return
    is_known = kinds_of(path)
    there = is_known[0] if is_known else "a folder" if path.is_dir() else f"not {what}"
    raise UsageError(f"{name}: {printable(path)} exists and is {there}: give another name, or remove it first")


def begins_with(path: Path, magic: bytes) -> bool:
    """Return whether a file begins with these bytes."""
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def sequence_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of sequence databases that a user names.

    Raises:
        UsageError: it is a URL, or something else.
    """
    refuse_url(path, "SEQDB")
    expect(Path(path), "SEQDB", "a folder of sequence databases")
    return Path(path)


def window_database_or_folder(path: str | os.PathLike[str]) -> list[Path]:
    """Return the window database that a user names, or those of a folder that `precompute` wrote.

    Raises:
        UsageError: it is a URL, or something else.
    """
    refuse_url(path, "WINDOWS.db")
    expect(Path(path), "WINDOWS.db", "a window database", "a folder of window databases")
    return named(path, WINDOWS_SUFFIX) or [Path(path)]


def window_databases(path: Path) -> list[Path]:
    """Return a window database that is to be changed, or those of a folder.

    Raises:
        MissingDatabase: the folder holds none.
        UsageError: it is a URL, or something else.
    """
    expect(path, "WINDOWS.db", "a window database", "a folder of window databases")
    found = named(path, WINDOWS_SUFFIX) if path.is_dir() else [path]
    if not found:
        raise MissingDatabase(f"{printable(path)}: holds no window database: looked for *{WINDOWS_SUFFIX}")
    return found
