"""URLs of folders of objects: which schemes are read, and where the database of a sample lies."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from sharded_eden.errors import UsageError, shown
from sharded_eden.format.schema import sample_database_path

SCHEMES = ("s3", "gs", "az", "http", "https", "file")
"""The schemes that are read."""

PathLike = str | os.PathLike[str]


def is_url(path: object) -> bool:
    """Return whether a text is a URL with a scheme that is read: `s3://bucket/folder` is, `C://folder` and a `Path` are not."""
    found = isinstance(path, str) and re.match(r"([a-z][a-z0-9]*)://", path)
    return bool(found) and found.group(1) in SCHEMES  # type: ignore[union-attr]


def folder_url(url: str, name: str) -> str:
    """Return the URL of a folder without the slashes at its end.

    Args:
        url: a URL for which `is_url` is true.
        name: the argument that holds it, for messages.

    Raises:
        UsageError: it names no bucket or host, or holds a password or a signature: those belong into the environment.

    Example:
        >>> folder_url("s3://bucket/seqdb/", "sequence_db_dir")
        's3://bucket/seqdb'
    """
    scheme, rest = url.split("://", 1)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{name}: {scheme}://... is not a valid URL") from error
    if "@" in parts.netloc or parts.query or parts.fragment or "?" in url or "#" in url:
        # The URL is not quoted: it may hold a password.
        raise UsageError(
            f"{name}: a {scheme}:// URL must not have a user, a password, `?` or `#`. Set credentials in the environment, as "
            "for the tools of the storage"
        )
    if scheme != "file" and not parts.netloc:
        raise UsageError(f"{name}: {shown(url)} names no {'host' if scheme.startswith('http') else 'bucket'}")
    if scheme == "file" and (parts.netloc or not rest.startswith("/")):
        raise UsageError(f"{name}: {shown(url)} must have an absolute path: file:///folder")
    if ".." in parts.path.split("/"):
        raise UsageError(f"{name}: {shown(url)} must not contain '..'")
    return url.rstrip("/")


def object_name(sample: str) -> str:
    """Return the name of the sequence database of a sample below the URL: `S1/glm_dataset_S1.sqlite`."""
    return sample_database_path("", sample).as_posix()


class ObjectPath(type(Path())):  # type: ignore[misc]  # the class of this platform, which Python < 3.12 needs
    """The URL of an object or folder, in place of a `Path` in messages; `Path` itself would drop one of the two slashes."""

    def __str__(self) -> str:
        return re.sub(
            r"^([a-z0-9]+):/+", r"\1:///" if super().__str__().startswith("file:") else r"\1://", super().__str__()
        )

    def __fspath__(self) -> str:
        return str(self)
