"""Copies one object to a local file, in parts that are read at the same time.

Input: an object and its version. Output: a file of the same bytes. Cost: one request for each 8 MB.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from sharded_eden.storage.objects import Objects, Range, Version

PART_BYTES = 8 << 20
PARTS_AT_ONCE = 4


def copy_object(
    objects: Objects, name: str, version: Version, path: Path, *, add: Callable[[int], object] = lambda size_bytes: None
) -> None:
    """Copy an object to an existing empty file.

    Args:
        objects: the folder of the object.
        name: the object.
        version: the version to copy: every part must be of it.
        path: the file.
        add: called with the bytes of each part, from several threads.

    Raises:
        MissingDatabase: there is no such object.
        DatabaseError: it was replaced, or cannot be read.
        OSError: the file cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def part(start: int) -> None:
        size_bytes = min(PART_BYTES, version.size_bytes - start)
        body = objects.read(Range(name, start, size_bytes, version))
        while len(body):
            written = os.pwrite(descriptor, body, start)
            body, start = body[written:], start + written
        add(size_bytes)

    try:
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            try:
                for _ in pool.map(part, range(0, version.size_bytes, PART_BYTES)):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> bytes:
    """Return the XXH3-128 digest of a file."""
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(PART_BYTES):
            found.update(block)
    return found.digest()
