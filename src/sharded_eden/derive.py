"""Window databases of another window size or stride, derived from the contig lengths in an existing one.

Input: a window database with lengths, and another geometry. Output: a window database and its index, equal to those that
`precompute` makes of the same split. Costs one `precompute`, once: the file is kept, and later uses only read its metadata.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import apsw
import numpy as np
import polars as pl

from sharded_eden.errors import DatabaseError, GeometryMismatch, MissingDatabase, printable
from sharded_eden.format.commands import pack_command, precompute_command, quoted
from sharded_eden.format.geometry import WindowGeometry, default_stride
from sharded_eden.format.kinds import expect
from sharded_eden.format.parquet import write_parquet
from sharded_eden.format.publish import write_error, writing
from sharded_eden.format.schema import CONTIG_ID, LENGTH
from sharded_eden.format.sqlite import READ_ERRORS, open_read_only, table_columns, unreadable
from sharded_eden.format.window_db import WindowDatabase
from sharded_eden.windows.precompute import DERIVED_FROM, precompute_window_database

logger = logging.getLogger(__name__)

CONTIGS_AT_ONCE = 1 << 18

_CONTIGS = """
SELECT c.first_window_idx, w.sequence_id, c.length, w.window_in_seq_idx
FROM contig_lengths AS c LEFT JOIN window_mappings AS w ON w.window_idx = c.first_window_idx
WHERE c.first_window_idx >= ? ORDER BY c.first_window_idx LIMIT ?"""


def derived_window_database(
    window_db: str | os.PathLike[str],
    sequence_db_dir: str | os.PathLike[str],
    *,
    window_size: int,
    stride: int | None = None,
    min_length: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    pack: bool = False,
) -> Path:
    """Return a window database with this geometry: the given one, one derived before, or a new one.

    Tails and special tokens are those of the given database. Of several processes that ask at once, one derives it and the
    others wait.

    Args:
        window_db: the window database.
        sequence_db_dir: the folder of sequence databases, for the index.
        window_size: tokens of a training row, and bases that a window spans.
        stride: bases from one window to the next; None is that of the database for the same window size, else the default of
            `precompute`.
        min_length: windows with fewer bases are left out; None takes that of the database.
        folder: where derived databases are kept; None is the folder of the database.
        pack: pack the windows, with the seed of the packs of the database, if it has any.

    Returns:
        Its path: for 4,096 and 3,896, `train_windows.db` becomes `train_windows.4096-3896.db`.

    Raises:
        GeometryMismatch: the windows cannot be derived, because the database left out windows or does not say enough about its
            contigs; or a file with that name was derived from another database.
        MissingDatabase: there is no such window database.
        DatabaseError: with `pack`: the given one has this geometry, and no packs.
        WriteError: the folder cannot be written to.

    Example:
        >>> derived_window_database("train_windows.db", "SEQDB", window_size=4096)
        PosixPath('train_windows.4096-3896.db')
    """
    path = Path(window_db)
    expect(path, "window_db_path", "a window database")
    if not path.is_file():
        raise MissingDatabase(f"{printable(path)}: no such window database. Make it: {precompute_command(path)}")
    with _opened(path) as (database, state):
        source = _geometry(state)
        if stride is None:
            same = window_size == source.window_size
            stride = source.stride if same else default_stride(window_size, source.special_tokens)
        wanted = replace(
            source,
            window_size=window_size,
            stride=stride,
            min_length=source.min_length if min_length is None else min_length,
        )
        if wanted == source:
            if pack and not table_columns(database, "packs"):
                raise DatabaseError(f"{printable(path)} holds no packs. Add them: {pack_command(path)}")
            return path
        derived = _name(path, wanted, source, Path(path.parent if folder is None else folder), pack)
        _check_source(state, wanted, derived)
        with _lock(derived):
            if derived.exists():
                _check_derived(derived, state, wanted)
                return derived
            logger.info("deriving %s from %s", derived, path)
            with TemporaryDirectory(dir=derived.parent, prefix=f".{derived.name}.") as parts:
                try:
                    for number, contigs in enumerate(_contigs(database, state, wanted)):
                        with writing(part := Path(parts) / f"{number:08}.parquet"):
                            write_parquet(contigs, part, {})
                except READ_ERRORS as error:
                    raise unreadable(path, error) from error
                precompute_window_database(
                    parts,
                    derived,
                    wanted.window_size,
                    wanted.stride,
                    wanted.min_length,
                    keep_tail=wanted.keep_tail,
                    special_tokens=wanted.special_tokens,
                    sequences=sequence_db_dir,
                    pack=pack,
                    pack_seed=state.metadata.get("pack_seed", 42),
                    derived_from=state.metadata["fingerprint"],
                )
    return derived


def _geometry(state: WindowDatabase) -> WindowGeometry:
    assert state.geometry is not None  # noqa: S101 - narrows the type: `_opened` has raised its problems
    return state.geometry


def _name(path: Path, wanted: WindowGeometry, source: WindowGeometry, folder: Path, pack: bool) -> Path:
    words = [f"{wanted.window_size}-{wanted.stride}"]
    words += [f"min{wanted.min_length}"] if wanted.min_length != source.min_length else []
    words += ["packed"] if pack else []
    return folder / ".".join([path.stem, *words, path.suffix.lstrip(".") or "db"])


@contextmanager
def _opened(path: Path) -> Iterator[tuple[apsw.Connection, WindowDatabase]]:
    """Open a window database without problems."""
    with closing(open_read_only(path, io="read")) as database:
        state = WindowDatabase(database, path)
        try:
            for problem in state.problems():
                raise problem.error(path)
        except READ_ERRORS as error:
            raise unreadable(path, error) from error
        yield database, state


def _refusal(state: WindowDatabase, wanted: WindowGeometry, why: str) -> GeometryMismatch:
    again = precompute_command(
        state.path.with_name(f"{state.path.stem}.{wanted.window_size}{state.path.suffix}"),
        geometry=wanted,
        max_ambiguous=state.max_ambiguous,
    )
    return GeometryMismatch(
        f"{printable(state.path)}: windows of window_size={wanted.window_size} and stride={wanted.stride} cannot be derived "
        f"from it: {why}. Make them from the split: {again}"
    )


def _check_source(state: WindowDatabase, wanted: WindowGeometry, derived: Path) -> None:
    """Refuse a database that left out windows that the other geometry has, or that does not hold what is needed."""
    source = _geometry(state)
    if "max_ambiguous" in state.metadata or state.max_ambiguous is not None:
        why = "windows with ambiguous letters were left out (--max-ambiguous), and other windows have other letters"
        raise _refusal(state, wanted, why)
    if wanted.min_length < source.min_length:
        why = (
            f"it was built with window_min_length_threshold={source.min_length}, the dataset asks for {wanted.min_length}, "
            "and it has no contigs below its own"
        )
        raise _refusal(state, wanted, why)
    if source.min_length > source.window_size:
        raise _refusal(state, wanted, f"its threshold of {source.min_length} bases left out all windows")
    if not state.has_lengths or "fingerprint" not in state.metadata:
        why = "it has no lengths of contigs, or no fingerprint of them, because another program or an early version made it"
        raise _refusal(state, wanted, why)
    if not derived.parent.is_dir():
        raise MissingDatabase(
            f"{printable(derived.parent)}: no such folder for derived window databases (derive_windows=)"
        )


def _check_derived(derived: Path, state: WindowDatabase, wanted: WindowGeometry) -> None:
    """Refuse a file with the name of a derived database that was derived from something else."""
    with _opened(derived) as (_, found):
        source = found.metadata.get(DERIVED_FROM)
        if source != state.metadata["fingerprint"] or found.geometry != wanted:
            was = "was not derived" if source is None else "was derived from other windows"
            raise GeometryMismatch(
                f"{printable(derived)}: there is a window database with this name, which {was}, not from "
                f"{printable(state.path)} as it is now: fingerprint {source}, not "
                f"{state.metadata['fingerprint']}. If no checkpoint needs it, remove it: rm "
                f" {quoted(derived)}"
            )


@contextmanager
def _lock(derived: Path) -> Iterator[None]:
    """Let one process at a time derive a database; the others wait."""
    lock = derived.with_name(f".{derived.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if derived.is_file():  # derived before, in a folder that is read-only now
            yield
            return
        reason = f"{error.strerror}; name a folder for derived window databases: derive_windows='FOLDER'"
        raise write_error(derived, reason) from error
    try:
        with suppress(OSError):  # a file system without locks: `publishing` notices a second writer
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _contigs(database: apsw.Connection, state: WindowDatabase, wanted: WindowGeometry) -> Iterator[pl.DataFrame]:
    """Yield the contigs of a window database with their lengths.

    Raises:
        GeometryMismatch: its windows are not exactly those that its geometry makes of these lengths.
    """
    geometry, at = _geometry(state), 0
    while rows := database.execute(_CONTIGS, (at, CONTIGS_AT_ONCE)).fetchall():
        firsts, names, lengths, numbers = zip(*rows, strict=True)
        if any(type(value) is not int for value in (*firsts, *lengths)) or any(type(name) is not str for name in names):
            raise _refusal(
                state, wanted, "its table contig_lengths holds values of other types, or names missing windows"
            )
        counts = geometry.counts(np.array(lengths, dtype=np.int64))
        ends = at + np.cumsum(counts)
        wrong = np.flatnonzero(np.array(firsts) != np.concatenate(([at], ends[:-1])))
        if wrong.size or any(numbers) or not counts.all():
            k = int(wrong[0]) if wrong.size else 0
            why = f"its windows are not those that its geometry makes of contigs of these lengths, near window {firsts[k]}"
            raise _refusal(state, wanted, why)
        at = int(ends[-1])
        yield pl.DataFrame({CONTIG_ID: names, LENGTH: lengths}, schema={CONTIG_ID: pl.String, LENGTH: pl.Int64})
    if at != state.total_windows:
        why = f"its geometry makes {at} windows of contigs of these lengths, and it has {state.total_windows}"
        raise _refusal(state, wanted, why)
    if not at:
        yield pl.DataFrame(schema={CONTIG_ID: pl.String, LENGTH: pl.Int64})
