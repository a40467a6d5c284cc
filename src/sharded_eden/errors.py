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
    """The base class of all errors that this package raises.

    Example:
        >>> from sharded_eden import EdenError, extract_sample_id
        >>> try:
        ...     extract_sample_id("c1")
        ... except EdenError as error:
        ...     print(type(error).__name__)
        InputError
    """


class UsageError(EdenError, ValueError):
    """Invalid or contradictory arguments.

    Example:
        >>> from sharded_eden import WindowGeometry
        >>> WindowGeometry(window_size=0, stride=1)
        Traceback (most recent call last):
            ...
        sharded_eden.errors.UsageError: window_size must be at least 1, not 0
    """


class UnknownArgument(UsageError, TypeError):
    """A keyword argument that does not exist; the message names a similar one that does.

    Example:
        >>> from sharded_eden import ShardedEdenDataset
        >>> ShardedEdenDataset.open("sequence_db_dir", "windows/train_windows.db", strid=824)
        Traceback (most recent call last):
            ...
        sharded_eden.errors.UnknownArgument: ShardedEdenDataset() got an unexpected keyword argument 'strid'...
    """


class WriteError(UsageError):
    """A file or folder that cannot be written: no permission, a full disk, a link, or another process that writes.

    Example:
        >>> from sharded_eden import build_sequence_dbs
        >>> build_sequence_dbs(["genomes/a.fna"], "genomes/b.fna")
        Traceback (most recent call last):
            ...
        sharded_eden.errors.WriteError: genomes/b.fna: cannot be written to (File exists)
    """


class InputError(EdenError, ValueError):
    """An input file that is not accepted; the message names file, record and position.

    Example:
        >>> from sharded_eden import extract_sample_id
        >>> extract_sample_id("c1")
        Traceback (most recent call last):
            ...
        sharded_eden.errors.InputError: sequence ID 'c1' names no sample...
    """


class DatabaseError(EdenError, ValueError):
    """A database that cannot be read, or whose tables are not the specified ones.

    Example:
        >>> from sharded_eden import pack_window_database
        >>> pack_window_database("genomes/a.fna")
        Traceback (most recent call last):
            ...
        sharded_eden.errors.DatabaseError: genomes/a.fna: it is not an SQLite database (file is not a database)
    """


class MissingDatabase(DatabaseError, FileNotFoundError):
    """A required database or folder does not exist.

    Example:
        >>> from sharded_eden import ShardedEdenDataset
        >>> ShardedEdenDataset.open("no_folder", "windows/train_windows.db")
        Traceback (most recent call last):
            ...
        sharded_eden.errors.MissingDatabase: ...
    """


class GeometryMismatch(DatabaseError):
    """A window database was built with another window size, stride or threshold than the requested one.

    Example:
        >>> from sharded_eden import ShardedEdenDataset
        >>> ShardedEdenDataset.open("sequence_db_dir", "windows/train_windows.db", stride=1000)
        Traceback (most recent call last):
            ...
        sharded_eden.errors.GeometryMismatch: ...windows/train_windows.db: mismatch: it was built with strid...
    """


class MissingSequence(DatabaseError):
    """A contig is absent from its sequence database, or too short for its window.

    Example:
        >>> import polars as pl
        >>> from sharded_eden import ShardedEdenDataset, precompute_window_database
        >>> pl.DataFrame({"contig_id": ["BCR__ECT-a__CT1-9"], "length": [5000]}).write_parquet("wrong.parquet")
        >>> done = precompute_window_database("wrong.parquet", "wrong.db", window_size=1024, stride=824)
        >>> ShardedEdenDataset.open("sequence_db_dir", "wrong.db")[0]
        Traceback (most recent call last):
            ...
        sharded_eden.errors.MissingSequence: train split, window 0: contig 'BCR__ECT-a__CT1-9' must have at...
    """


class StateError(EdenError, ValueError):
    """A saved position is invalid, or belongs to other data, another seed or another geometry.

    Example:
        >>> from sharded_eden import ShardedEdenDataset, Stream, StreamBatchSampler
        >>> dataset = ShardedEdenDataset.open("sequence_db_dir", "windows/train_windows.db")
        >>> first, second = (
        ...     StreamBatchSampler(Stream(dataset, seed=seed), micro_batch_size=2, global_batch_size=4)
        ...     for seed in (1, 2)
        ... )
        >>> second.load_state_dict(first.state_dict(consumed_samples=4))
        Traceback (most recent call last):
            ...
        sharded_eden.errors.StateError: ...
    """


class MissingExtra(EdenError, ImportError):
    """An optional dependency is missing; the message names the extra that installs it.

    Example:
        >>> from sharded_eden import MissingExtra
        >>> print(MissingExtra("plotly", "report"))
        plotly is not installed. Install it, in the clone of this package: pip install '.[report]'
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed. Install it, in the clone of this package: pip install '.[{extra}]'")
        self._arguments = (what, extra)

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        """Return what pickle needs to create the error again in another process."""
        return MissingExtra, self._arguments


class EdenWarning(UserWarning):
    """Something that is allowed but rarely intended.

    Example:
        >>> import warnings
        >>> from sharded_eden import EdenWarning
        >>> warnings.simplefilter("error", EdenWarning)  # such warnings become errors
    """


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
