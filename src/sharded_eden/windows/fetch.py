"""`fetch`: copies sequence databases from object storage to a local folder.

Input: a URL, and optionally window databases whose samples alone are copied. Output: the folder. Cost: one listing, and one
request for each 8 MB. A file appears when it is whole, with the modification time of its object: a stopped command is run again
and copies what is missing or was replaced.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from sharded_eden.errors import DatabaseError, MissingDatabase, UsageError, printable
from sharded_eden.format.commands import fetch_command
from sharded_eden.format.index import IndexFile, index_path
from sharded_eden.format.publish import publishing
from sharded_eden.format.schema import sample_database_path
from sharded_eden.progress import Meter, Progress
from sharded_eden.storage.bandwidth import Bandwidth
from sharded_eden.storage.copies import copy_object, digest_of
from sharded_eden.storage.objects import REQUEST_SECONDS, UNKNOWN_TIME, Objects, Version
from sharded_eden.storage.urls import folder_url, object_name

FILES_AT_ONCE = 4
NO_DIGEST = bytes(16)
LEAST_BANDWIDTH = 0.01
"""MB per second."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, kw_only=True)
class FetchResult:
    """What was copied."""

    files: int
    copied_files: int
    copied_bytes: int


@dataclass(frozen=True)
class _File:
    name: str
    path: Path
    version: Version
    digest: bytes
    """XXH3-128 of its bytes, `NO_DIGEST` where it is not known."""


def fetch_sequence_databases(
    url: str,
    folder: str | os.PathLike[str],
    *,
    window_dbs: Iterable[str | os.PathLike[str]] = (),
    max_bandwidth: float | None = None,
    seconds: float = REQUEST_SECONDS,
    progress: Progress | None = None,
) -> FetchResult:
    """Copy sequence databases to a local folder.

    Files that are there are kept if they have the size and the digest of the index; without a digest, the size and the
    modification time of the object. A copy gets that time.

    Args:
        url: the folder of sequence databases in object storage.
        folder: where they are copied to.
        window_dbs: copy only the samples that these have windows of, by their indexes; none: copy all.
        max_bandwidth: the most MB (1,000,000 bytes) per second, on average since the start; None for no limit.
        seconds: how long a request is tried.
        progress: called with the bytes done and their total.

    Raises:
        MissingDatabase: an object or an index is missing.
        DatabaseError: an object is not the one that was indexed, or cannot be read.
        UsageError: `max_bandwidth` is below 0.01, the URL is not valid, or http(s) without window databases: such servers have
            no listing.
    """
    url = folder_url(url, "URL")
    if max_bandwidth is not None and not LEAST_BANDWIDTH <= max_bandwidth < math.inf:  # NaN is refused, too
        raise UsageError(f"max_bandwidth must be at least {LEAST_BANDWIDTH} MB per second, not {max_bandwidth}")
    objects = Objects(url, seconds)
    files = _wanted(objects, Path(folder), [Path(each) for each in window_dbs])
    bandwidth = Bandwidth(None if max_bandwidth is None else max_bandwidth * 1e6)
    meter, lock, done = Meter(progress, sum(file.version.size_bytes for file in files)), threading.Lock(), 0

    def add(size_bytes: int) -> None:
        nonlocal done
        with lock:
            done += size_bytes
            meter.reach(done)

    def fetch(file: _File) -> int:
        if _is_there(file):
            add(file.version.size_bytes)
            return 0
        with publishing(file.path) as unfinished:
            copy_object(objects, file.name, file.version, unfinished, add=add, bandwidth=bandwidth)
            _check_digest(file, unfinished, url)
            if (modified_ns := _modified_ns(file.version)) is not None:
                os.utime(unfinished, ns=(modified_ns, modified_ns))
        return file.version.size_bytes

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        try:
            copied = list(pool.map(fetch, files))
        except BaseException as error:
            bandwidth.close(error)
            pool.shutdown(cancel_futures=True)
            raise
    meter.finish()
    return FetchResult(files=len(files), copied_files=sum(map(bool, copied)), copied_bytes=sum(copied))


def _wanted(objects: Objects, folder: Path, window_dbs: list[Path]) -> list[_File]:
    if not window_dbs:
        if objects.url.startswith("http"):
            raise UsageError(
                f"{printable(objects.url)}: http servers have no listing. Name window databases with an index: "
                f"{fetch_command(objects.url, folder, 'WINDOWS.db')}"
            )
        found = {name: version for name, version in objects.listed().items() if name == object_name(name.split("/")[0])}
        if not found:
            raise MissingDatabase(f"{printable(objects.url)}: holds no <sample>/glm_dataset_<sample>.sqlite")
        return [_file(folder, name.split("/")[0], found[name], NO_DIGEST) for name in sorted(found)]
    expected: dict[str, tuple[int, bytes, Path]] = {}
    for window_db in window_dbs:
        path = index_path(window_db)
        if not path.is_file():
            raise MissingDatabase(f"{printable(path)}: no such index: it names the samples to copy")
        index = IndexFile(path)
        for name, sample in zip(index.meta["samples"], index.samples, strict=True):
            if sample["page_bytes"]:
                expected[name] = int(sample["size_bytes"]), sample["digest"].tobytes(), path
    versions = objects.versions(map(object_name, expected))
    files = []
    for sample, (size_bytes, digest, path) in expected.items():
        name = object_name(sample)
        if name not in versions:
            raise MissingDatabase(f"{printable(objects.url)}/{name}: no such object")
        if versions[name].size_bytes != size_bytes:
            raise DatabaseError(
                f"{printable(objects.url)}/{name}: it has {versions[name].size_bytes:,} bytes; the file that "
                f"{printable(path)} was made of had {size_bytes:,}"
            )
        files.append(_file(folder, sample, versions[name], digest))
    return files


def _file(folder: Path, sample: str, version: Version, digest: bytes) -> _File:
    if not sample or sample.startswith(".") or "/" in sample:
        raise DatabaseError(f"{sample!r} is not a name of a sample")  # it would lie outside the folder
    return _File(object_name(sample), sample_database_path(folder, sample), version, digest)


def _is_there(file: _File) -> bool:
    """Return whether a file is there with the right size, and the right digest or modification time."""
    if not file.path.is_file() or file.path.stat().st_size != file.version.size_bytes:
        return False
    if file.digest != NO_DIGEST:
        return digest_of(file.path) == file.digest
    modified_ns, second_ns = _modified_ns(file.version), 10**9  # some servers and file systems have only seconds
    return modified_ns is None or file.path.stat().st_mtime_ns // second_ns == modified_ns // second_ns


def _modified_ns(version: Version) -> int | None:
    """Return the modification time of an object; None where the server sends none."""
    if version.modified.startswith(UNKNOWN_TIME):
        return None
    return (datetime.fromisoformat(version.modified) - _EPOCH) // timedelta(microseconds=1) * 1000


def _check_digest(file: _File, copy: Path, url: str) -> None:
    if file.digest != NO_DIGEST and digest_of(copy) != file.digest:
        raise DatabaseError(
            f"{printable(url)}/{file.name}: its bytes are not those of the file that was indexed (XXH3-128). Upload that file"
        )
