"""A folder of data: its file system, its databases, and how their windows are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from sharded_eden.doctor.machine import mount_of, tells_what_is_cached
from sharded_eden.errors import EdenError, MissingDatabase, printable

MOST_FOLDERS = 1000
"""Folders inside the given one that are searched for databases."""


def examine_folder(path: Path) -> dict[str, Any]:
    """Return what `doctor` reports of a folder of databases, of a folder that holds such folders, or of one database.

    Raises:
        MissingDatabase: there is nothing at this path.
        UsageError: it is a URL.
    """
    from sharded_eden.format.kinds import kinds_of, named, refuse_url
    from sharded_eden.format.schema import WINDOWS_SUFFIX, discover_sample_databases

    refuse_url(path, "FOLDER")
    if not path.exists():
        raise MissingDatabase(f"{printable(path)}: no such folder")
    samples, files = 0, []
    windows: list[Path] = []
    for each in [path, *_folders(path)]:
        kinds = kinds_of(each)
        if "a folder of sequence databases" in kinds:
            found = list(discover_sample_databases(each).values())
            samples += len(found)
            files.append(found[0])
        elif "a sequence database" in kinds:
            samples += 1
            files.append(each)
        if "a folder of window databases" in kinds:
            windows += filter(Path.is_file, named(each, WINDOWS_SUFFIX))
        elif "a window database" in kinds:
            windows.append(each)
    indexes = {str(each): _index_problem(each) for each in windows}
    probe = next(filter(Path.is_file, [*files, *windows, *_any_file(path)]), None)
    mount = mount_of(path)
    space = os.statvfs(path)
    return {
        "path": str(path.resolve()),
        "file_system": None if mount is None else mount.type,
        "mount_point": None if mount is None else mount.point,
        "mounted_from": None if mount is None else mount.source,
        "free_bytes": space.f_bavail * space.f_frsize,
        "sequence_databases": samples,
        "window_databases": len(windows),
        "indexes": indexes,
        "rwf_nowait": None if probe is None else tells_what_is_cached(probe),
        "posix_fadvise": hasattr(os, "posix_fadvise"),
        "preadv": hasattr(os, "preadv"),
    }


def reading_mode(folder: dict[str, Any]) -> list[str]:
    """Return how windows in a folder are read, as sentences."""
    from sharded_eden.format.commands import index_command

    lines = []
    without = [path for path, problem in folder["indexes"].items() if problem]
    indexed = len(folder["indexes"]) - len(without)
    if not folder["preadv"]:
        return ["Windows are located and read by SQLite: this system has no preadv."]
    if indexed:
        lines.append(f"{indexed} of {len(folder['indexes'])} window databases: one positioned read a window.")
    for path in without[:3]:
        command = index_command("SEQDB", path)
        lines.append(
            f"{printable(path)}: located and read by SQLite, {folder['indexes'][path]}. Write an index: {command}"
        )
    if len(without) > 3:
        lines.append(f"{len(without) - 3} more window databases are located and read by SQLite.")
    if not folder["posix_fadvise"]:
        lines.append("No read-ahead: this system has no posix_fadvise.")
    elif folder["rwf_nowait"]:
        lines.append(
            "Positioned reads ask the page cache first (RWF_NOWAIT); they announce a batch from the first miss on."
        )
    elif folder["rwf_nowait"] is False:
        lines.append(
            "This file system cannot tell what is cached (no RWF_NOWAIT): positioned reads announce every window."
        )
    else:
        lines.append("No file was found to test RWF_NOWAIT with.")
    return lines


def _folders(path: Path) -> Iterator[Path]:
    """Yield the folders inside a folder, the first thousand, unless it holds sequence databases itself."""
    from sharded_eden.format.kinds import kinds_of

    if not path.is_dir() or "a folder of sequence databases" in kinds_of(path):
        return
    with os.scandir(path) as entries:
        folders = (path for each in entries if not each.name.startswith(".") and (path := Path(each.path)).is_dir())
        yield from sorted(islice(folders, MOST_FOLDERS))


def _index_problem(window_db: Path) -> str:
    """Return why the index of a window database is not used; empty where it describes this database."""
    from sharded_eden.format.index import FileIdentity, IndexFile, index_path

    path = index_path(window_db)
    if not path.is_file():
        return "without an index"
    try:
        described = FileIdentity(*IndexFile(path).meta["identity"])
        same = described.is_same_file(FileIdentity.of(window_db.stat()))
    except (EdenError, OSError, KeyError, TypeError) as error:
        return f"its index cannot be read ({printable(str(error), 200)})"
    return "" if same else "its index describes another file"


def _any_file(path: Path) -> list[Path]:
    """Return a file of a folder with contents, or nothing."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        for each in islice(entries, MOST_FOLDERS):
            path = Path(each.path)
            if path.is_file() and path.stat().st_size:
                return [path]
    return []
