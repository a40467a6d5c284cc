"""Locks on files in a cache folder: which of its contents running processes use.

Input: the path of a lock file. Output: a shared lock that this process and its forked children hold until they end, also when
they are killed. What no process holds can be removed. Source: flock(2).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: dict[str, int] = {}
"""{path: descriptor}; forked children inherit both."""


def hold(path: Path, content: bytes = b"") -> None:
    """Hold a shared lock on a file until this process ends; make the file where it is missing.

    Args:
        path: the lock file.
        content: what it holds; for one path always the same.

    Raises:
        OSError: it cannot be opened, or its file system has no locks.
    """
    known = _held.get(str(path))
    if known is not None:
        if is_open_as(known, path):
            return
        os.close(_held.pop(str(path)))
    while True:
        descriptor = opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if is_open_as(descriptor, path):
                if os.fstat(descriptor).st_size != len(content):
                    os.pwrite(descriptor, content, 0)
                _held[str(path)] = descriptor
                return
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed between the two calls


@contextmanager
def locked_alone(path: Path) -> Iterator[int | None]:
    """Lock a file against all others without waiting; yield its descriptor, None where another process holds it.

    A child that gets the descriptor keeps the lock until it ends.

    Raises:
        OSError: it cannot be opened, or its file system has no locks.
    """
    descriptor = opened(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor if is_open_as(descriptor, path) else None
    finally:
        os.close(descriptor)


def opened(path: Path) -> int:
    """Return a descriptor of a lock file, which is made where it is missing; links are not followed."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def is_open_as(descriptor: int, path: Path) -> bool:
    """Return whether a path is the same file as an open descriptor."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False
