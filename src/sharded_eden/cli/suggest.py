"""Existing paths with names similar to those that an error calls missing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path


def similar_paths(words: Sequence[str], message: str) -> list[str]:
    """Return an existing path for each path of a command line that a message calls missing, where a similar one exists.

    Each mistyped part is replaced: `sequence_bd_dir/S1` is found as `sequence_db_dir/S1`.
    """
    found = []
    for word in words:
        text = word.partition("=")[2] if word.startswith("--") else word
        try:
            if text and _is_missing(text, message) and (path := _similar(Path(text))) is not None:
                found.append(str(path))
        except (OSError, ValueError):
            continue
    return found


def _is_missing(path: str, message: str) -> bool:
    """Return whether a message calls this path missing, and not a contig, or a file with a longer name."""
    return re.search(rf"{re.escape(path)}:? (is )?no such (\w|,| )*(file|folder|database)", message) is not None


def _similar(path: Path) -> Path | None:
    """Return a similar path that exists; None where there is none, or where the path itself exists."""
    if path.exists():
        return None
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if not (found / part).exists():
            names = [each.name for each in found.iterdir() if not each.name.startswith(".")]
            similar = difflib.get_close_matches(part, names, n=1)
            if not similar:
                return None
            part = similar[0]  # noqa: PLW2901
        found /= part
    return found
