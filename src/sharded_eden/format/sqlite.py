"""Opening, creating and publishing files: one small documented function each.

Readers never write, lock nothing where nothing can change, and cache next to nothing (a thousand of them live in one
worker). Writers write to a hidden name in the same folder and rename: a file that bears its final name is whole.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote

import apsw

from sharded_eden.errors import DatabaseError, EdenError, MissingDatabase, UsageError, WriteError, printable

IOMode = Literal["auto", "mmap", "read"]

MMAP_BYTES = 1 << 40
"""More than any file: SQLite lowers it to what its build allows (2 GB by default); beyond that it reads."""

READER_CACHE_KIB = 32
"""Page cache of one read-only connection whose file is not mapped as a whole."""
MAPPED_CACHE_PAGES = 2
"""Page cache where it is: mapped pages are not copied, and for fewer than 3 pages SQLite reserves nothing beforehand."""

NETWORK_FILE_SYSTEMS = frozenset({
    "9p", "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "orangefs", "panfs", "pvfs2", "smb2", "smb3", "smbfs", "wekafs",
})  # fmt: skip
"""File systems on which mapped memory is slow or rationed; FUSE mounts count as such too."""


def is_mutable_now(path: Path) -> bool:
    """Tell whether a write-ahead log or a journal stands beside a database: its file alone is then not the truth."""
    real = path.resolve()  # SQLite looks beside the file that a link points at
    return any(real.with_name(real.name + suffix).exists() for suffix in ("-wal", "-journal"))


def open_read_only(
    path: str | os.PathLike[str], *, io: IOMode = "auto", cache_kib: int = READER_CACHE_KIB
) -> apsw.Connection:
    """Open a database for reading.

    Without a `-wal` or `-journal` beside it the file is opened as immutable: no locks, a quarter of the time per query.

    Args:
        path: the database.
        io: `mmap` maps the file, `read` uses positioned reads, `auto` maps on local disks only.
        cache_kib: page cache of this connection where the file is not mapped as a whole, in KiB.

    Raises:
        MissingDatabase: there is no such file.
        DatabaseError: it is no SQLite database, is truncated, or may not be read.
        UsageError: `io` is none of the three.
    """
    if io not in get_args(IOMode):
        raise UsageError(f"io must be 'auto', 'mmap' or 'read', not {io!r}")
    path = Path(path)
    if not path.is_file():
        raise MissingDatabase(f"{path}: no such file")
    try:
        connection = apsw.Connection(read_only_uri(path), flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    except apsw.Error as error:
        raise unreadable(path, error) from error
    try:
        connection.set_busy_timeout(10_000)
        wanted = MMAP_BYTES if io == "mmap" or (io == "auto" and not on_network_file_system(path)) else 0
        size_bytes = path.stat().st_size
        mapped = size_bytes <= int(connection.pragma("mmap_size", wanted))
        connection.execute(f"PRAGMA cache_size = {MAPPED_CACHE_PAGES if mapped else -cache_kib}; PRAGMA shrink_memory")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        # SQLite itself notices when whole pages are missing, but reads zeros behind the end of a page that was cut.
        if size_bytes % int(connection.pragma("page_size")):
            raise apsw.CorruptError("the file ends inside a page")
    except apsw.Error as error:
        connection.close()
        raise unreadable(path, error) from error
    return connection


def read_only_uri(path: Path) -> str:
    """Return the URI that opens a database for reading only, as immutable where its file alone is the truth."""
    return f"file://{quote(os.fsencode(path.absolute()))}?mode=ro{'' if is_mutable_now(path) else '&immutable=1'}"


def attach_read_only(connection: apsw.Connection, path: Path, name: str) -> None:
    """Attach a database to a connection under `name`, for reading.

    Raises:
        DatabaseError: SQLite refuses it.
    """
    try:
        connection.execute(f"ATTACH ? AS {name}", (read_only_uri(path),))
    except apsw.Error as error:
        raise unreadable(path, error) from error


def unreadable(path: str | os.PathLike[str], error: apsw.Error) -> DatabaseError:
    """Return the error to raise where SQLite refuses a database, with what usually lies behind it."""
    cause: dict[type[apsw.Error], str] = {
        apsw.NotADBError: "it is not an SQLite database",
        apsw.CorruptError: "it is damaged or cut short; copy or build it again",
        apsw.CantOpenError: "it cannot be opened; look at its permissions (and its folder's, where a -wal stands beside it)",
        apsw.PermissionsError: "it may not be read",
        apsw.IOError: "the disk does not deliver it",
        apsw.BusyError: "another process keeps it locked",
        apsw.ReadOnlyError: "its writer was stopped halfway; let sqlite3 open it once, to undo that by the -journal beside it",
    }
    reason = cause.get(type(error), "SQLite refuses it")
    if isinstance(error, apsw.CantOpenError) and descriptors_are_exhausted():
        reason = "this process has no file descriptor left to open it with; raise the limit (ulimit -n)"
    return DatabaseError(f"{path}: {reason} ({error})")


def descriptors_are_exhausted() -> bool:
    """Tell whether this process can open no further file at this moment."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE}
    return False


def table_columns(connection: apsw.Connection, table: str) -> list[str]:
    """Return the column names of a table, none where there is no such table."""
    return [row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))]


def on_network_file_system(path: Path) -> bool:
    """Tell whether a file lies on a network or FUSE file system; False where the system does not say."""
    try:
        mounts = _mounts()
    except OSError:  # no such table on this system, or no file descriptor left at this moment
        return False
    real = str(path.resolve())
    for mount_point, kind in mounts:
        if real == mount_point or real.startswith(mount_point.rstrip("/") + "/"):
            return kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse")
    return False


@lru_cache(maxsize=1)
def _mounts() -> list[tuple[str, str]]:
    """Return (mount point, type) of every mount, the deepest first. Source: proc_pid_mountinfo(5)."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        mount_point = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), before.split()[4])
        mounts.append((os.fsdecode(mount_point), os.fsdecode(after.split()[0])))
    return sorted(mounts, key=lambda mount: len(mount[0]), reverse=True)


def create_database(path: Path, *, page_size: int = 4096, cache_kib: int = 65_536) -> apsw.Connection:
    """Open a new database for bulk writing, without journal, locks or syncs: `publishing` makes it durable as a whole.

    Args:
        path: a name that `publishing` or `staging` handed out.
        page_size: bytes a page, a power of two in [512, 65536].
        cache_kib: page cache, in KiB.
    """
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
