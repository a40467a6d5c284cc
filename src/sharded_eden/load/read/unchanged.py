"""Detects changed files: records the identities of files when the dataset is opened, and compares them while reading.

Input: paths. Output: identities, or an error that names both. Costs one `os.stat` a file and batch.

It detects another size, modification time or inode: a file that was replaced, rewritten, vacuumed, shortened or extended. It
does not detect a writer that restores size and modification time. A write between two checks is detected only at the next check
of the file, after the next batch that reads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from sharded_eden.errors import DatabaseError, MissingDatabase
from sharded_eden.format.index import FileIdentity
from sharded_eden.format.many_files import for_many_files


def file_identity(path: str | os.PathLike[str]) -> FileIdentity:
    """Return the identity of the file at a path.

    Raises:
        MissingDatabase: there is none.
        DatabaseError: it cannot be looked at.
    """
    try:
        return FileIdentity.of(os.stat(path))
    except FileNotFoundError as error:
        raise MissingDatabase(f"{path}: no such file") from error
    except OSError as error:
        raise DatabaseError(f"{path}: it cannot be opened ({error.strerror})") from error


class Unchanged:
    """The identities of files when they were first checked.

    Args:
        paths: {name: path}.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.paths = dict(paths)
        found = for_many_files(file_identity, list(self.paths.values()))
        self.identities = dict(zip(self.paths, found, strict=True))

    def check(self, names: Iterable[str]) -> None:
        """Compare files with their first identities.

        Raises:
            DatabaseError: one was changed or replaced; names both identities.
        """
        for name in names:
            was, path = self.identities[name], self.paths[name]
            try:
                found = os.stat(path)
            except OSError as error:
                raise DatabaseError(
                    f"{path}: it was {was} when the dataset was opened, now: {error.strerror}"
                ) from error
            if found.st_mtime_ns != was.mtime_ns or found.st_size != was.size_bytes or found.st_ino != was.inode:
                raise changed_error(path, was, FileIdentity.of(found))


def changed_error(path: Path | None, was: FileIdentity, found: FileIdentity) -> DatabaseError:
    """Return the error to raise where a file is not the one that the dataset was opened on."""
    return DatabaseError(
        f"{path}: the file was changed or replaced while it was in use. It was {was}; it is {found}. Database files must not "
        "be written while they are read. Put the old file back, or start again with the new one: windows, order and "
        "checkpoints of the old one may not fit it"
    )
