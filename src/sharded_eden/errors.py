"""Every error that sharded-eden raises on purpose, and its one warning.

    EdenError
    ├── UsageError          what the caller asked for contradicts itself            (ValueError)
    ├── InputError          a sequence or Parquet file that cannot be taken as is   (ValueError)
    ├── DatabaseError       a database on disk is not what its name promises        (ValueError)
    │   ├── MissingDatabase     it is not there                                     (FileNotFoundError)
    │   ├── GeometryMismatch    it was built for other windows than are asked for
    │   └── MissingSequence     a contig is absent, or shorter than its window
    ├── StateError          a checkpoint belongs to other data or another order     (ValueError)
    └── MissingExtra        an optional dependency is not installed                 (ImportError)

A message names the file, the two values that disagree and the command that mends it. Every class also derives from the
built-in exception that callers of comparable libraries catch, so that `except ValueError` goes on working.
"""

from __future__ import annotations

import sys
import warnings


class EdenError(Exception):
    """The root of every deliberate error of this package."""


class UsageError(EdenError, ValueError):
    """Arguments that cannot be meant, or that contradict one another."""


class InputError(EdenError, ValueError):
    """An input file that cannot be taken as it is; names file, record and position."""


class DatabaseError(EdenError, ValueError):
    """A database that cannot be read, or whose tables are not the specified ones."""


class MissingDatabase(DatabaseError, FileNotFoundError):
    """A database or folder that should exist does not."""


class GeometryMismatch(DatabaseError):
    """A window database built with another window size, stride or threshold than the one asked for."""


class MissingSequence(DatabaseError):
    """A contig that is absent from its sequence database, or too short for its window."""


class StateError(EdenError, ValueError):
    """A saved position that belongs to other data, another seed or another geometry."""


class MissingExtra(EdenError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed. Install it: pip install 'sharded-eden[{extra}]'")
        self._arguments = (what, extra)

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        """Return what makes it anew in another process."""
        return MissingExtra, self._arguments


class EdenWarning(UserWarning):
    """Something that is allowed and rarely wanted."""


def warn(message: str) -> None:
    """Issue an `EdenWarning` that points at the code outside this package which caused it."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(f"{__package__}."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, EdenWarning, stacklevel=level)
