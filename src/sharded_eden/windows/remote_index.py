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
from sharded_eden.format.index import FileIdentity, IndexFile, identity_of, index_path, write_index
from sharded_eden.format.publish import publishing
from sharded_eden.format.schema import sample_database_path
from sharded_eden.format.sqlite import is_mutable_now
from sharded_eden.storage.copies import digest_of
from sharded_eden.storage.objects import LISTING_SECONDS, Objects, check_is_versioned
from sharded_eden.storage.urls import folder_url, object_name


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
        DatabaseError: an object has another size, the server sends nothing that distinguishes an object from a newer one, or
            the window database or a local sequence database was changed after it was indexed.
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
    _check_local_files(file, Path(window_db))
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
        check_is_versioned(where, version)
        objects[name] = [version.etag, version.modified]
    file.check_all()
    with publishing(path) as unfinished:
        meta = {**file.meta, "remote": {"url": url, "objects": objects}}
        write_index(unfinished, meta, file.samples, [file.runs])
    return RemoteResult(path=path, url=url, objects=len(objects), size_bytes=sum(sizes.values()))


def _check_local_files(file: IndexFile, window_db: Path) -> None:
    """Raise an error if files were changed after they were indexed: the changed files may be those that were uploaded.

    A sequence database that is no longer where it was indexed is not compared. One with another modification time or inode is
    read: a copy has the same digest.
    """
    if not window_db.is_file():
        raise MissingDatabase(f"{printable(window_db)}: no such window database")
    found, indexed = FileIdentity.of(window_db.stat()), FileIdentity(*file.meta["identity"])
    if found[:2] != indexed[:2]:
        raise DatabaseError(
            f"{printable(window_db)}: was changed after it was indexed ({indexed} before, {found} now). Index it again: "
            f"{index_command('SEQDB', window_db)}"
        )
    folder = file.meta.get("folder")
    if folder is None:
        return
    for name, sample in zip(file.meta["samples"], file.samples, strict=True):
        path = sample_database_path(folder, name)
        if not sample["page_bytes"] or not path.is_file():
            continue
        found, indexed = FileIdentity.of(path.stat()), identity_of(sample)
        if found.is_same_file(indexed) and not is_mutable_now(path):
            continue
        if (
            found.size_bytes != indexed.size_bytes
            or is_mutable_now(path)
            or digest_of(path) != sample["digest"].tobytes()
        ):
            raise DatabaseError(
                f"{printable(path)}: was changed after it was indexed ({indexed} before, {found} now). Index it again, and "
                f"upload it: {index_command(folder, window_db)}"
            )
