"""Opening databases for reading: one small documented function each.

Readers never write, take no lock on a file that nobody writes, and cache little (a worker has a thousand of them open). Nothing
that a database contains is run: no trigger, no extension, no function with side effects.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Literal, NamedTuple, get_args
from urllib.parse import quote

import apsw

from sharded_eden.errors import DatabaseError, MissingDatabase, UsageError, printable, shown

IOMode = Literal["auto", "mmap", "read"]

MMAP_BYTES = 1 << 40
"""Larger than any file. SQLite lowers it to its compiled limit (2 GB by default), and reads bytes beyond that limit."""

READER_CACHE_KIB = 32
"""Page cache of one read-only connection whose file is not mapped completely."""
MAPPED_CACHE_PAGES = 2
"""Page cache where the file is mapped: mapped pages are not copied, and SQLite allocates nothing in advance for fewer
than 3 pages."""

READ_ERRORS = (apsw.Error, UnicodeError)
"""The exceptions that a query of a damaged or foreign database raises; `unreadable` turns them into a
`DatabaseError`."""

VIEW_SECONDS = 8.0
"""The time limit of one query of a view: a view may be an endless query."""
STEPS_PER_CHECK = 1 << 18
"""Instructions of SQLite's virtual machine (some milliseconds) between two checks for Ctrl-C and for the time limit."""


class Problem(NamedTuple):
    """One thing that is wrong with a database."""

    check: str
    """The check of `verify` that reports it, see `sharded_eden.checks.findings.CHECKS`."""
    what: str
    """What is wrong, with both values."""
    fix: str
    """The command that fixes it; empty where there is none."""

    def error(self, path: str | os.PathLike[str]) -> DatabaseError:
        """Return the error that the loader raises."""
        return DatabaseError(f"{path}: {self.what}" + (f". Rebuild: {self.fix}" if self.fix else ""))


def is_mutable_now(path: Path) -> bool:
    """Return whether a database has a write-ahead log or a journal: its file alone is then incomplete."""
    real = (
        os.path.realpath(path) if os.path.islink(path) else path
    )  # SQLite looks next to the file that a link points at
    return any(os.path.exists(f"{os.fspath(real)}{suffix}") for suffix in ("-wal", "-journal"))


def has_rows_in_log(path: Path) -> bool:
    """Return whether a database has a write-ahead log that is not empty: rows in it are not in the file."""
    try:
        return os.stat(f"{os.path.realpath(path)}-wal").st_size > 0
    except OSError:
        return False


def open_read_only(
    path: str | os.PathLike[str], *, io: IOMode = "auto", cache_kib: int = READER_CACHE_KIB
) -> apsw.Connection:
    """Open a database for reading.

    Without a `-wal` or `-journal` file it is opened as immutable: no locks, a quarter of the time per query. Triggers,
    extensions and functions with side effects are off; Ctrl-C interrupts a query.

    Args:
        path: the database.
        io: `read` uses positioned reads, and so does `auto`. `mmap` maps the file into memory: use it only for files that no
            process changes, because the system kills a process (SIGBUS) that reads a mapped file after another one cut it.
        cache_kib: page cache of this connection where the file is not mapped as a whole, in KiB.

    Raises:
        MissingDatabase: there is no such file.
        DatabaseError: it is not an SQLite database, is truncated, or may not be read.
        UsageError: `io` is not one of the three.
    """
    if io not in get_args(IOMode):
        raise UsageError(f"io must be 'auto', 'mmap' or 'read', not {shown(io)}")
    path = Path(path)
    if not path.is_file():
        raise MissingDatabase(f"{path}: no such file")
    try:
        connection = apsw.Connection(read_only_uri(path), flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    except apsw.Error as error:
        raise unreadable(path, error) from error
    try:
        trust_nothing(connection)
        connection.set_progress_handler(_go_on, STEPS_PER_CHECK)
        connection.set_busy_timeout(10_000)
        size_bytes = path.stat().st_size
        mapped = size_bytes <= int(connection.pragma("mmap_size", MMAP_BYTES if io == "mmap" else 0))
        connection.execute(f"PRAGMA cache_size = {MAPPED_CACHE_PAGES if mapped else -cache_kib}; PRAGMA shrink_memory")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        # SQLite itself notices when whole pages are missing, but reads zeros after the end of a page that was cut.
        if size_bytes % int(connection.pragma("page_size")):
            raise apsw.CorruptError("the file ends inside a page")
    except READ_ERRORS as error:
        connection.close()
        raise unreadable(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def trust_nothing(connection: apsw.Connection) -> None:
    """Run no code that a database contains: no trigger, extension or function with side effects.

    Source: https://www.sqlite.org/security.html
    """
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0)


def _go_on() -> bool:
    """SQLite calls this during a query. Python then handles signals, so that Ctrl-C ends the query."""
    return False


def limit_query_time(connection: apsw.Connection, seconds: float = VIEW_SECONDS) -> None:
    """Interrupt every query of a connection that takes longer than this many seconds: `apsw.InterruptError`."""
    deadline = [time.monotonic() + seconds]

    def begin(*_: object) -> bool:
        deadline[0] = time.monotonic() + seconds
        return True

    connection.set_exec_trace(begin)
    connection.set_progress_handler(lambda: time.monotonic() > deadline[0], STEPS_PER_CHECK)


def read_only_uri(path: Path) -> str:
    """Return the URI that opens a database for reading only, as immutable where its file alone is complete."""
    return f"file://{quote(os.fsencode(path.absolute()))}?mode=ro{'' if is_mutable_now(path) else '&immutable=1'}"


def attach_read_only(connection: apsw.Connection, path: Path, name: str) -> None:
    """Attach a database to a connection under `name`, for reading.

    Raises:
        DatabaseError: SQLite refuses it.
    """
    try:
        connection.execute(f"ATTACH ? AS {name}", (read_only_uri(path),))
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def unreadable(path: str | os.PathLike[str], error: apsw.Error | UnicodeError) -> DatabaseError:
    """Return the error for a database that cannot be read, with the usual cause."""
    cause: dict[type[Exception], str] = {
        apsw.NotADBError: "it is not an SQLite database",
        apsw.CorruptError: "it is damaged or cut short, or its disk fails to read it; copy or build it again",
        apsw.CantOpenError: "it cannot be opened; look at its permissions (and those of its folder, where there is a -wal)",
        apsw.PermissionsError: "it may not be read",
        apsw.IOError: "the system reports an input/output error; check the disk and the file system",
        apsw.FullError: "no space is left on the disk, or a quota is used up",
        apsw.BusyError: "another process keeps it locked",
        apsw.InterruptError: f"a query of it took longer than {VIEW_SECONDS:g} s; copy the rows of its view into a table",
        apsw.ReadOnlyError: "a program was stopped while writing it; open it once with sqlite3, which repairs it",
        apsw.SQLError: "its schema is damaged, or uses what is not available here",
    }
    reason = cause.get(type(error), "SQLite refuses it")
    if isinstance(error, UnicodeError):
        encoding = "UTF-16" if getattr(error, "encoding", "").startswith("utf-16") else "UTF-8"
        return DatabaseError(
            f"{path}: it contains text that is not {encoding}; copy or build it again ({shown(str(error))})"
        )
    if isinstance(error, apsw.CantOpenError) and descriptors_are_exhausted():
        reason = "this process has no file descriptor left to open it with; raise the limit (ulimit -n)"
    return DatabaseError(f"{path}: {reason} ({printable(str(error), 200)})")


def descriptors_are_exhausted() -> bool:
    """Return whether this process has reached its limit of open files."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE}
    return False


def table_columns(connection: apsw.Connection, table: str) -> list[str]:
    """Return the column names of a table, generated columns included; none where there is no such table."""
    rows = connection.execute("SELECT CAST(name AS BLOB) FROM pragma_table_xinfo(?) WHERE hidden != 1", (table,))
    encoding = {"UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}.get(str(connection.pragma("encoding")), "utf-8")
    return [bytes(name).decode(encoding, "backslashreplace") for (name,) in rows]


def table_kind(connection: apsw.Connection, table: str) -> str:
    """Return `table`, `WITHOUT ROWID table`, `view` or `virtual`; nothing where there is no such table."""
    found = connection.execute(
        "SELECT type, wr FROM pragma_table_list WHERE schema = 'main' AND name = ? COLLATE NOCASE", (table,)
    ).get
    if found is None:
        return ""
    return "WITHOUT ROWID table" if found[0] == "table" and found[1] else str(found[0])
