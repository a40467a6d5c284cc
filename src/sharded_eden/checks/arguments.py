"""Checks the kinds of the paths given to `verify` and `bench` before anything is opened."""

from __future__ import annotations

import os
from pathlib import Path

from sharded_eden.format.kinds import WINDOW_DBS_PATTERN, expect, refuse_url


def sequence_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of sequence databases.

    Raises:
        UsageError: it is a URL, or something else.
    """
    refuse_url(path, "SEQDB")
    expect(Path(path), "SEQDB", "a folder of sequence databases")
    return Path(path)


def window_databases(path: str | os.PathLike[str]) -> list[Path]:
    """Return a window database, or those of a folder that `precompute` wrote.

    Raises:
        UsageError: it is a URL, or something else.
    """
    refuse_url(path, "WINDOWS.db")
    path = Path(path)
    expect(path, "WINDOWS.db", "a window database", "a folder of window databases")
    found = sorted(path.glob(WINDOW_DBS_PATTERN)) if path.is_dir() else []
    return found or [path]
