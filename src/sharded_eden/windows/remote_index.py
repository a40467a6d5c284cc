"""`index --at`: adds to an index where its sequence databases lie in object storage.

Input: an index that was made of local files, and the URL that they were uploaded to. Output: the index with sizes checked, and
with ETags. Cost: one listing (for http and https one HEAD request for each database); no sequence is read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sharded_eden.errors import DatabaseError, MissingDatabase, printable
from sharded_eden.format.commands import index_command
from sharded_eden.format.index import IndexFile, index_path, write_index
from sharded_eden.format.publish import publishing
from sharded_eden.storage.objects import Objects
from sharded_eden.storage.urls import folder_url, object_name

LISTING_SECONDS = 120.0
"""How long a request is tried."""
UNKNOWN_TIME = "1970-01-01"
"""Where a server sends no modification time."""


@dataclass(frozen=True, kw_only=True)
class RemoteResult:
    """What was added to an index."""

    path: Path
    url: str
    objects: int
    size_bytes: int


def add_remote(window_db: str | os.PathLike[str], url: str, *, seconds: float = LISTING_SECONDS) -> RemoteResult:
    """Add the URL, and the ETags of the sequence databases that lie there, to the index of a window database.

    The size of each object must be that of the file that was indexed.

    Args:
        window_db: the window database; `window_db` + `.index` must exist.
        url: the folder of sequence databases in object storage.
        seconds: how long a request is tried.

    Raises:
        MissingDatabase: there is no index, or an object is missing.
        DatabaseError: an object has another size, or the server sends nothing that distinguishes an object from a newer one.
        UsageError: the URL is not valid.

    Example:
        >>> add_remote("train_windows.db", "s3://bucket/seqdb").objects
        300
    """
    url = folder_url(url, "--at")
    path = index_path(window_db)
    if not path.is_file():
        raise MissingDatabase(
            f"{printable(path)}: no such index. Write it where the sequence databases are local files: "
            f"{index_command('SEQDB', window_db)}"
        )
    file = IndexFile(path)
    sizes = {
        name: int(sample["size_bytes"])
        for name, sample in zip(file.meta["samples"], file.samples, strict=True)
        if sample["page_bytes"]
    }
    found = Objects(url, seconds).versions(object_name(name) for name in sizes)
    missing = [name for name in sizes if object_name(name) not in found]
    if missing:
        raise MissingDatabase(
            f"{url}: {len(missing)} of {len(sizes)} sequence databases are missing; the first is {object_name(missing[0])}. "
            "Upload them"
        )
    objects: dict[str, list[str]] = {}
    for name, size_bytes in sizes.items():
        version = found[object_name(name)]
        where = f"{url}/{object_name(name)}"
        if version.size_bytes != size_bytes:
            raise DatabaseError(
                f"{printable(where)}: it has {version.size_bytes:,} bytes; the file that was indexed had {size_bytes:,}. "
                f"Upload that file, or index the files that were uploaded: {index_command('SEQDB', window_db)}"
            )
        if not version.etag and version.modified.startswith(UNKNOWN_TIME):
            raise DatabaseError(
                f"{printable(where)}: the server sends neither an ETag nor a modification time. A file that is replaced while "
                "it is read would not be detected. Use a server that sends one of them"
            )
        objects[name] = [version.etag, version.modified]
    with publishing(path) as unfinished:
        meta = {**file.meta, "remote": {"url": url, "objects": objects}}
        write_index(unfinished, meta, file.samples, [file.runs])
    return RemoteResult(path=path, url=url, objects=len(objects), size_bytes=sum(sizes.values()))
