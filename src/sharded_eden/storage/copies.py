"""Copies one object to a local file, in parts that are read at the same time, or goes on with a copy that was stopped.

Input: an object and its version. Output: a file of the same bytes. Cost: one request for each 8 MB.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import xxhash

from sharded_eden.storage.bandwidth import Bandwidth
from sharded_eden.storage.objects import Objects, Range, Version

PART_BYTES = 8 << 20
PARTS_AT_ONCE = 4


def copy_object(
    objects: Objects,
    name: str,
    version: Version,
    path: Path,
    *,
    add: Callable[[int], object] = lambda size_bytes: None,
    bandwidth: Bandwidth | None = None,
) -> None:
    """Copy an object to an existing empty file.

    Args:
        objects: the folder of the object.
        name: the object.
        version: the version to copy: every part must be of it.
        path: the file.
        add: called with the bytes of each part, from several threads.
        bandwidth: the limit that the parts share with other copies. An error of one ends all.

    Raises:
        MissingDatabase: there is no such object.
        DatabaseError: it was replaced, or cannot be read.
        OSError: the file cannot be written.
    """
    limit = bandwidth or Bandwidth(None)
    part_bytes = limit.part_bytes(PART_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def part(start: int) -> None:
        size_bytes = min(part_bytes, version.size_bytes - start)
        try:
            limit.take(size_bytes)
            _write(
                descriptor, objects.read(Range(name, start, size_bytes, version), arrived=lambda: limit.take(0)), start
            )
        except BaseException as error:
            limit.close(error)  # others may wait for long
            raise
        add(size_bytes)

    try:
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            try:
                for _ in pool.map(part, range(0, version.size_bytes, part_bytes)):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        os.close(descriptor)


def continue_copy(objects: Objects, name: str, version: Version, path: Path, *, at_once: int) -> bool:
    """Copy an object to a file, from where an earlier call for the same version was stopped.

    The bytes are written in their order: what is in the file after a kill is the beginning of the object.

    Args:
        objects: the folder of the object.
        name: the object.
        version: the version to copy: every part must be of it.
        path: the file; made where it is missing.
        at_once: requests at the same time.

    Returns:
        Whether bytes of an earlier call were kept.

    Raises:
        MissingDatabase: there is no such object.
        DatabaseError: it was replaced, or cannot be read.
        OSError: the file cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        at = kept_bytes = os.fstat(descriptor).st_size
        if kept_bytes > version.size_bytes:
            os.ftruncate(descriptor, 0)
            at = kept_bytes = 0
        with ThreadPoolExecutor(at_once) as pool:
            asked: deque[Future[memoryview]] = deque()
            try:
                for start in range(at, version.size_bytes, PART_BYTES):
                    size_bytes = min(PART_BYTES, version.size_bytes - start)
                    asked.append(pool.submit(objects.read, Range(name, start, size_bytes, version)))
                    if len(asked) > at_once:
                        at = _write(descriptor, asked.popleft().result(), at)
                while asked:
                    at = _write(descriptor, asked.popleft().result(), at)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        os.close(descriptor)
    return kept_bytes > 0


def _write(descriptor: int, body: memoryview, start: int) -> int:
    """Write bytes at a place; return where they end."""
    while len(body):
        written = os.pwrite(descriptor, body, start)
        body, start = body[written:], start + written
    return start


def digest_of(path: Path) -> bytes:
    """Return the XXH3-128 digest of a file."""
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(PART_BYTES):
            found.update(block)
    return found.digest()
