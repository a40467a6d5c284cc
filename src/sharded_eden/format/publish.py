"""Creating and publishing files: written under a hidden name in the same folder, synced, and renamed when whole.

A file with its final name is complete. A link or another file under the hidden name is an error.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import apsw

from sharded_eden.errors import EdenError, UsageError, WriteError, printable
from sharded_eden.format.kinds import refuse_url
from sharded_eden.format.sqlite import is_mutable_now

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
        path: a name from `publishing` or `staging`.
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
    """Copy a database that has no -wal or -journal; the copy is not in WAL mode, even if the original is.

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
        UsageError: it is a URL, another process is writing this file, or a `-wal` or `-journal` of an older database, which
            SQLite would apply to the new file, is beside it.
        WriteError: the folder cannot be written to, the disk is full, or a link or a folder has the hidden name.
    """
    path = Path(path)
    refuse_url(path, "output")
    with writing(path):
        if is_mutable_now(path):
            raise UsageError(
                f"{printable(path)}: a -wal or -journal file is beside it: a program has it open, or was stopped while writing "
                "it. Close that program, or remove these files together with the old database"
            )
        partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        opened: list[int] = []
        try:
            _open_locked(partial, path, opened)
            os.ftruncate(opened[0], 0)
            yield partial
            if path.is_dir():
                raise WriteError(f"{printable(path)}: cannot be written: a folder has this name")
            if not _is_open_as(opened[0], partial):
                raise UsageError(
                    f"{printable(path)}: another process has removed or replaced {printable(partial)} meanwhile. Run one "
                    "command at a time that writes it"
                )
            os.fsync(opened[0])
            os.replace(partial, path)
        except BaseException as error:
            if opened:
                partial.unlink(missing_ok=True)
            elif isinstance(error, KeyboardInterrupt):
                _remove_unused(partial)
            raise
        finally:
            for descriptor in opened:
                os.close(descriptor)
        sync(path.parent)


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
        # SQLite calls a reached quota an I/O error.
        full = "no space is left on the disk, or the quota is reached"
        reason = full if isinstance(error, apsw.FullError) else f"{error}: the disk fails, or the quota is reached"
        raise write_error(path, reason) from error
    except Exception as error:
        if type(error).__module__ != "polars.exceptions" or "(os error" not in str(error):
            raise
        raise write_error(path, str(error)) from error


def write_error(path: str | os.PathLike[str], reason: str) -> WriteError:
    """Return the error to raise where a file or folder cannot be written."""
    return WriteError(f"{printable(path)}: cannot be written ({reason})")


def real_folder(folder: Path) -> None:
    """Make a folder, or accept an existing one. A link is refused, because it could lead elsewhere.

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


def _open_locked(partial: Path, path: Path, opened: list[int]) -> None:
    """Open and lock the hidden file, and append its descriptor to `opened`: a returned one could be lost by Ctrl-C.

    Raises:
        WriteError: another process has locked it.
        WriteError: its name is that of a link, or of anything but a file.
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
                opened.append(descriptor)
                return
        except BaseException:
            if not opened:
                os.close(descriptor)
            raise
        os.close(descriptor)  # its writer published or removed it between the two calls


def _remove_unused(partial: Path) -> None:
    """Remove a hidden file that Ctrl-C left just after it was created: an empty one that no process has locked."""
    with suppress(OSError):
        descriptor = os.open(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(descriptor).st_size and _is_open_as(descriptor, partial):
                partial.unlink()
        finally:
            os.close(descriptor)


def _planted(partial: Path, what: str) -> WriteError:
    return WriteError(f"{printable(partial)}: is {what}, and nothing is written through it. Remove it")


def _is_open_as(descriptor: int, path: Path) -> bool:
    """Return whether a path is the same file as an open descriptor."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def lock(descriptor: int, path: Path) -> None:
    """Lock an open file or folder against other writers until it is closed.

    A file system without locks is accepted: `publishing` then notices a second writer only after the fact.

    Raises:
        WriteError: another process has locked it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise WriteError(f"{printable(path)}: another process is writing here at the moment") from error
    except OSError:
        return


def sync(path: Path) -> None:
    """Make a file, or the renames inside a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
