"""Opening, creating and publishing files: one small documented function each.

Readers never write, take no lock on a file that nobody writes, and cache little (a worker has a thousand of them open). Nothing
that a database contains is run: no trigger, no extension, no function with side effects. Writers write to a hidden name in the
same folder and rename it: a file with its final name is complete.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args
from urllib.parse import quote

import apsw

from sharded_eden.errors import DatabaseError, EdenError, MissingDatabase, UsageError, WriteError, printable, shown

IOMode = Literal["auto", "mmap", "read"]

MMAP_BYTES = 1 << 40
"""More than any file: SQLite lowers it to what its build allows (2 GB by default); beyond that it reads."""

READER_CACHE_KIB = 32
"""Page cache of one read-only connection whose file is not mapped as a whole."""
MAPPED_CACHE_PAGES = 2
"""Page cache where it is: mapped pages are not copied, and for fewer than 3 pages SQLite reserves nothing beforehand."""

READ_ERRORS = (apsw.Error, UnicodeError)
"""What a query of a damaged or foreign database raises; `unreadable` turns it into a `DatabaseError`."""

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
    """Tell whether a database has a write-ahead log or a journal: its file alone is then incomplete."""
    real = path.resolve()  # SQLite looks next to the file that a link points at
    return any(real.with_name(real.name + suffix).exists() for suffix in ("-wal", "-journal"))


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
        UsageError: `io` is none of the three.
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
    """Let nothing run that a database from elsewhere contains: no trigger, extension or function with side effects.

    Source: https://www.sqlite.org/security.html
    """
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0)


def _go_on() -> bool:
    """Python handles signals when it runs this, so that Ctrl-C ends a query."""
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
    """Return the error to raise where a database cannot be read, with the usual cause."""
    cause: dict[type[Exception], str] = {
        apsw.NotADBError: "it is not an SQLite database",
        apsw.CorruptError: "it is damaged or cut short, or its disk fails to read it; copy or build it again",
        apsw.CantOpenError: "it cannot be opened; look at its permissions (and those of its folder, where there is a -wal)",
        apsw.PermissionsError: "it may not be read",
        apsw.IOError: "the system reports an input/output error; check the disk and the file system",
        apsw.FullError: "no space is left on the disk, or a quota is used up",
        apsw.BusyError: "another process keeps it locked",
        apsw.InterruptError: f"a query of it took longer than {VIEW_SECONDS:g} s; copy the rows of its view into a table",
        apsw.ReadOnlyError: "its writer was stopped halfway; let sqlite3 open it once, which undoes that with the -journal",
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
    """Tell whether this process can open no further file at this moment."""
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


MAX_PATH_BYTES = 500
"""SQLite opens paths of at most 512 bytes, a suffix such as `-journal` included. Source: MAX_PATHNAME in its os_unix.c."""


def check_path_length(path: Path) -> None:
    """Refuse a path that is too long for SQLite.

    Raises:
        WriteError: with the length.
    """
    length = len(os.fsencode(path.absolute()))
    if length > MAX_PATH_BYTES:
        raise write_error(path, f"its path has {length} bytes, and SQLite opens at most {MAX_PATH_BYTES}")


def create_database(path: Path, *, page_size: int = 4096, cache_kib: int = 65_536) -> apsw.Connection:
    """Open a new database for bulk writing, without journal, locks or syncs: `publishing` makes it durable as a whole.

    Args:
        path: a name that `publishing` or `staging` handed out.
        page_size: bytes a page, a power of two in [512, 65536].
        cache_kib: page cache, in KiB.

    Raises:
        WriteError: the path is longer than SQLite can open.
    """
    check_path_length(path)
    connection = apsw.Connection(
        f"file://{quote(os.fsencode(path.absolute()))}?nolock=1",
        flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI,
    )
    connection.execute(
        f"PRAGMA page_size = {page_size}; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; "
        f"PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -{cache_kib}"
    )
    return connection


def copy_database(path: Path, copy: Path) -> None:
    """Copy a database that no -wal or -journal belongs to; the copy keeps no write-ahead log, whatever the first one kept.

    Source: https://www.sqlite.org/fileformat2.html, section 1.3.3: bytes 18 and 19 are 2 with such a log, 1 without.
    """
    shutil.copyfile(path, copy)
    with copy.open("r+b") as file:
        file.seek(18)
        if file.read(2) == b"\2\2":
            file.seek(18)
            file.write(b"\1\1")


@contextmanager
def publishing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a hidden name to write to; sync and rename it to `path` at the end, remove it after an error.

    A killed process leaves the hidden file; the next run for the same `path` reuses it. Of two processes that publish the same
    `path` at once, the second is refused. Links under the hidden name are never followed.

    Raises:
        UsageError: another process is writing this file, or a `-wal` or `-journal` of an older database, which SQLite would
            apply to the new file, is beside it.
        WriteError: the folder cannot be written to, the disk is full, or a link or a folder has the hidden name.
    """
    path = Path(path)
    with writing(path):
        if is_mutable_now(path):
            raise UsageError(
                f"{printable(path)}: a -wal or -journal file is beside it: a program has it open, or was stopped while writing "
                "it. Close that program, or remove these files together with the old database"
            )
        partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(partial, path)
        try:
            os.ftruncate(descriptor, 0)
            try:
                yield partial
                if path.is_dir():
                    raise WriteError(f"{printable(path)}: cannot be written: a folder has this name")
                if not _is_open_as(descriptor, partial):
                    raise UsageError(
                        f"{printable(path)}: another process has removed or replaced {printable(partial)} meanwhile. Run one "
                        "command at a time that writes it"
                    )
                os.fsync(descriptor)
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        finally:
            os.close(descriptor)
        sync_folder(path.parent)


_WRITE_ERRORS = frozenset({
    apsw.SQLITE_FULL, apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_TRUNCATE,
    apsw.SQLITE_IOERR_DIR_FSYNC,
})  # fmt: skip


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of the system, SQLite and Polars while a file or folder is written into a `WriteError` that names it."""
    try:
        yield
    except EdenError:
        raise
    except OSError as error:
        raise write_error(path, error.strerror or str(error)) from error
    except apsw.Error as error:
        if getattr(error, "extendedresult", 0) not in _WRITE_ERRORS:
            raise
        reason = (
            "no space is left on the disk, or the quota is reached" if isinstance(error, apsw.FullError) else str(error)
        )
        raise write_error(path, reason) from error
    except Exception as error:
        if type(error).__module__ != "polars.exceptions" or "(os error" not in str(error):
            raise
        raise write_error(path, str(error)) from error


def write_error(path: str | os.PathLike[str], reason: str) -> WriteError:
    """Return the error to raise where a file or folder cannot be written."""
    return WriteError(f"{printable(path)}: cannot be written ({reason})")


def real_folder(folder: Path) -> None:
    """Make a folder, or accept the one that is there, unless it is a link: what is written there could end up elsewhere.

    Raises:
        WriteError: the name belongs to a link or a file, or the folder cannot be made.
    """
    with writing(folder), suppress(FileExistsError):
        folder.mkdir()
    with writing(folder):
        mode = os.lstat(folder).st_mode
    if not stat.S_ISDIR(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "not a folder"
        raise WriteError(f"{printable(folder)}: is {what}, and nothing is written through it. Remove or rename it")


def _open_locked(partial: Path, path: Path) -> int:
    """Return a descriptor of the hidden file, which no other process has locked.

    Raises:
        UsageError: another process has locked it.
        WriteError: its name belongs to a link, or to anything but a file.
    """
    while True:
        try:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if partial.is_symlink():
                raise _planted(partial, "a symbolic link") from error
            raise
        try:
            lock(descriptor, path)
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise _planted(partial, "not a file")
            if state.st_nlink > 1:
                raise _planted(partial, "a hard link to another file")
            if _is_open_as(descriptor, partial):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its writer published or removed it between the two calls


def _planted(partial: Path, what: str) -> WriteError:
    return WriteError(f"{printable(partial)}: is {what}, and nothing is written through it. Remove it")


def _is_open_as(descriptor: int, path: Path) -> bool:
    """Tell whether a path is the very file that a descriptor has open."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def lock(descriptor: int, path: Path) -> None:
    """Lock an open file or folder against other writers until it is closed.

    A file system without locks is accepted: `publishing` then notices a second writer only after the fact.

    Raises:
        UsageError: another process has locked it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"{printable(path)}: another process is writing here at the moment") from error
    except OSError:
        return


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
