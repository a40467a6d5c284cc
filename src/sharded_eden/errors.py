"""The errors and the one warning of sharded-eden, and `shown`, which quotes values in messages.

    EdenError
    ├── UsageError          invalid or contradictory arguments                          (ValueError)
    │   └── UnknownArgument     an argument that does not exist                            (TypeError)
    ├── InputError          a sequence or Parquet file that is not accepted             (ValueError)
    ├── DatabaseError       a database cannot be read or has the wrong contents         (ValueError)
    │   ├── MissingDatabase     it does not exist                                       (FileNotFoundError)
    │   ├── GeometryMismatch    it was built for other windows than the requested ones
    │   └── MissingSequence     a contig is absent, or shorter than its window
    ├── StateError          a checkpoint belongs to other data or another order         (ValueError)
    └── MissingExtra        an optional dependency is not installed                     (ImportError)

A message names the file, the two values that disagree and the command that fixes it. Every class also derives from the
built-in exception that callers of comparable libraries catch, so that `except ValueError` keeps working.
"""

from __future__ import annotations

import os
import reprlib
import sys
import warnings

SHOWN_CHARACTERS = 80
"""The length of a quoted value in a message, at most."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = SHOWN_CHARACTERS
_BOUNDED = (list, tuple, dict, set, frozenset, int)
"""Types whose `repr` may be very long: `_SHORT` cuts it while it is made."""


class EdenError(Exception):
    """The base class of all errors that this package raises."""


class UsageError(EdenError, ValueError):
    """Invalid or contradictory arguments."""


class UnknownArgument(UsageError, TypeError):
    """A keyword argument that does not exist; the message names a similar one that does."""


class WriteError(UsageError):
    """A file or folder that cannot be written: no permission, a full disk, a link, or another process that writes."""


class InputError(EdenError, ValueError):
    """An input file that is not accepted; the message names file, record and position."""


class DatabaseError(EdenError, ValueError):
    """A database that cannot be read, or whose tables are not the specified ones."""


class MissingDatabase(DatabaseError, FileNotFoundError):
    """A required database or folder does not exist."""


class GeometryMismatch(DatabaseError):
    """A window database was built with another window size, stride or threshold than the requested one."""


class MissingSequence(DatabaseError):
    """A contig is absent from its sequence database, or too short for its window."""


class StateError(EdenError, ValueError):
    """A saved position is invalid, or belongs to other data, another seed or another geometry."""


class MissingExtra(EdenError, ImportError):
    """An optional dependency is missing; the message names the extra that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed. Install it, in the clone of this package: pip install '.[{extra}]'")
        self._arguments = (what, extra)

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        """Return what pickle needs to create the error again in another process."""
        return MissingExtra, self._arguments


class EdenWarning(UserWarning):
    """Something that is allowed but rarely intended."""


def warn(message: str) -> None:
    """Issue an `EdenWarning` that points at the caller outside this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(f"{__package__}."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, EdenWarning, stacklevel=level)


def shown(value: object, limit: int = SHOWN_CHARACTERS) -> str:
    """Return a value for a message: its `repr` on one line, cut to `limit`.

    Control characters and lone surrogates are escaped.
    `shown("c1")` is `"'c1'"`; a text of 1,000 letters is cut after 80, followed by `...`. A path is quoted as text.
    Never raises.

    Args:
        value: any object; only the beginning of text and bytes is read.
        limit: characters kept, at most.
    """
    try:
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        value = bytes(value[: limit + 1]) if isinstance(value, bytearray) else value
        if isinstance(value, (str, bytes)):
            text = repr(value[: limit + 1])
            start = text.index(text[-1]) + 1
            is_whole = len(value) <= limit and len(text) <= limit + start + 1
            return text if is_whole else f"{text[: limit + start].removesuffix(text[-1])}...{text[-1]}"
        text = _SHORT.repr(value) if isinstance(value, _BOUNDED) else repr(value)
    except Exception:  # an integer of more digits than Python converts, or an object whose own repr fails
        return f"<{type(value).__name__}>"
    text = printable(text)
    return text if len(text) <= limit else f"{text[:limit]}..."


def printable(text: str | os.PathLike[str], limit: int | None = None) -> str:
    """Return a path or a record's name as messages print it: without quotes, safe for terminals, UTF-8 files and SQLite.

    Control characters are escaped, and so are lone surrogates: Python reads bytes of a file name that are not UTF-8 as such.

    Args:
        text: the path or name.
        limit: characters kept, at most; None keeps all.
    """
    text = os.fspath(text)
    cut = limit is not None and len(text) > limit
    text = text[:limit] if cut else text
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() else f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else repr(c)[1:-1]
            for c in text
        )
    return f"{text}..." if cut else text
