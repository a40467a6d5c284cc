"""The local copy of a window database that is given as a URL, and of its index.

Input: a URL. Output: a path. Cost: two HEAD requests each time; on first use, one request for each 8 MB. Each version of an
object has a folder of its own in the cache, named by the URL, sizes and ETags. So a window database that is replaced at its URL
is copied again. Older versions are removed when no process uses them. Of several processes that ask at once, one copies, the
others wait.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from sharded_eden.errors import DatabaseError, EdenError, MissingDatabase, UsageError, WriteError, printable, shown
from sharded_eden.format.index import FileIdentity, IndexFile, index_path, write_index
from sharded_eden.format.publish import sync, write_error, writing
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.options import ExampleOptions, path_or_url
from sharded_eden.storage.child import copy_in_child, versions_in_child
from sharded_eden.storage.in_use import hold, locked_alone, opened
from sharded_eden.storage.objects import Version, check_is_versioned
from sharded_eden.storage.urls import is_url

logger = logging.getLogger(__name__)


def local_window_db(window_db: str | os.PathLike[str], sequence_db_dir: str, options: ExampleOptions) -> str:
    """Return the absolute path of a window database; one at a URL is copied to the cache with its index first.

    Args:
        window_db: a path or a URL.
        sequence_db_dir: the folder of sequence databases; where it is a URL, there must be an index.
        options: `cache_dir`, and `request_seconds`.

    Raises:
        MissingDatabase: there is no such object.
        DatabaseError: it cannot be read, was replaced while it was read, or its index describes another window database.
        WriteError: the cache cannot be written to.
        UsageError: it is neither a path nor a valid URL.
    """
    given = path_or_url(window_db, "window_db_path")
    if not is_url(given):
        return given
    url, _, name = given.rpartition("/")
    if not name or not url.partition("://")[2]:
        raise UsageError(f"window_db_path: {shown(given)} names no object")
    index = index_path(name).name
    seconds = options.request_seconds
    versions = versions_in_child(url, [name, index], seconds)
    if name not in versions:
        raise MissingDatabase(f"{printable(given)}: no such object")
    if index not in versions and is_url(sequence_db_dir):
        raise MissingDatabase(
            f"{printable(given)}.index: no such object. Sequence databases in object storage are read by the addresses in it. "
            "Upload it beside the window database"
        )
    for each, version in versions.items():
        check_is_versioned(f"{url}/{each}", version)
    cache = cache_folder(options)
    of_url = _digest(given)
    key = f"{of_url}-{_digest(repr(sorted(versions.items())))}"
    path = cache / key / name
    with suppress(OSError):  # a cache that others have filled may be read-only
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        hold(_use_path(cache, key))
    if not _is_whole(path, versions[name], index in versions):
        with _lock(cache, key) as lock:
            if not _is_whole(path, versions[name], index in versions):
                logger.info("copying %s to %s", given, path)
                _copy(url, path, versions, seconds, lock)
    _remove_unused(cache, of_url, key)
    return str(path)


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=12).hexdigest()


def _use_path(cache: Path, key: str) -> Path:
    """Return the file that processes which use a version hold locked."""
    return cache / f".{key}.use"


def _remove_unused(cache: Path, of_url: str, but: str) -> None:
    """Remove the other versions of a window database that no process uses or copies."""
    for folder in cache.glob(f"{of_url}-*"):
        if folder.name == but:
            continue
        use, copying = _use_path(cache, folder.name), _lock_path(cache, folder.name)
        with suppress(OSError), locked_alone(use) as is_unused, locked_alone(copying) as is_idle:
            if is_unused is not None and is_idle is not None:
                shutil.rmtree(folder)
                copying.unlink()
                use.unlink()
                logger.info("removed %s: there is a newer version of this window database", folder)


def _lock_path(cache: Path, key: str) -> Path:
    """Return the file that the process which copies a version holds locked."""
    return cache / f".{key}.lock"


def cache_folder(options: ExampleOptions) -> Path:
    """Return where copies are kept: `cache_dir`, or `sharded-eden` in the cache folder of the user (XDG)."""
    if options.cache_dir is not None:
        return Path(path_or_url(options.cache_dir, "cache_dir"))
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "sharded-eden"


def _is_whole(path: Path, version: Version, has_index: bool) -> bool:
    """Return whether a copy is complete: files appear under their names when they are, the index last."""
    try:
        found = path.stat()
        if found.st_size != version.size_bytes:
            return False
        return not has_index or FileIdentity(*IndexFile(index_path(path)).meta["identity"]).is_same_file(
            FileIdentity.of(found)
        )
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (EdenError, KeyError, TypeError):
        return False  # a damaged index is copied again


@contextmanager
def _lock(cache: Path, key: str) -> Iterator[int]:
    """Let one process at a time copy; the others wait. The lock of a process that is killed is released."""
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = _lock_path(cache, key)
    try:
        descriptor = opened(path)
    except OSError as error:
        raise write_error(path, f"{error.strerror}; name another folder: cache_dir='FOLDER'") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise WriteError(
                f"{printable(path)}: its file system has no locks ({error.strerror}). Name another folder: cache_dir='FOLDER'"
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


def _copy(url: str, path: Path, versions: dict[str, Version], seconds: float, lock: int) -> None:
    """Copy a window database and its index; the caller holds the lock."""
    folder = path.parent
    with writing(folder):
        folder.mkdir(exist_ok=True, mode=0o700)
        partial = {name: folder / f".{name}.partial" for name in versions}
        for each in partial.values():
            each.unlink(missing_ok=True)  # left by a process that was killed
            os.close(os.open(each, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        copies = {name: (version, partial[name]) for name, version in versions.items()}
        copy_in_child(url, copies, seconds, locks=[lock])
        index_name = index_path(path).name
        if index_name in partial:
            _describe(partial[path.name], partial[index_name], f"{url}/{path.name}")
        with writing(folder):
            for name in (path.name, index_name):
                if name in partial:
                    sync(partial[name])
                    os.replace(partial[name], folder / name)
            sync(folder)
    finally:
        for each in partial.values():
            each.unlink(missing_ok=True)


def _describe(window_db: Path, index: Path, called: str) -> None:
    """Write the identity of the copy into its index, as a new file has another modification time and inode.

    Raises:
        DatabaseError: the index was made of another window database.
    """
    file = IndexFile(index)
    database = WindowIndex(window_db)
    try:
        found = FileIdentity.of(window_db.stat())
        was = (file.meta["identity"][0], file.meta["total_windows"], file.meta["fingerprint"])
        now = (found.size_bytes, database.total_windows, database.fingerprint)
    except (KeyError, TypeError, IndexError) as error:
        raise DatabaseError(f"{printable(called)}.index: is damaged") from error
    finally:
        database.close()
    if was != now:
        raise DatabaseError(
            f"{printable(called)}.index: describes another window database, of {was[0]} bytes, {was[1]} windows and "
            f"fingerprint {was[2]}; this one has {now[0]}, {now[1]} and {now[2]}. Upload both files again"
        )
    try:
        file.check_all()
    except DatabaseError as error:
        raise DatabaseError(f"{printable(called)}.index: is damaged. Write it again, and upload it") from error
    new = index.with_name(index.name + ".new")
    try:
        write_index(new, {**file.meta, "identity": list(found)}, file.samples, [file.runs])
        os.replace(new, index)
    finally:
        new.unlink(missing_ok=True)
