"""From a window database to packs: rows of `window_size` tokens, each filled with several whole windows.

Input: a window database. Output: the same database with a table `packs`, and their totals in `metadata`.

    tokens of each window ──in the order of a keyed permutation──▶ buffers of 4,096 ──best fit decreasing──▶ rows

The permutation mixes contigs and samples within a row; the training order decides the order of the rows. Costs two passes over
the windows, and the memory of one buffer. A temporary file holds the number of tokens of each window, two bytes each.
Source: best fit decreasing is Johnson, "Near-optimal bin packing algorithms", MIT, 1973.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, cast

import apsw
import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import MissingDatabase, UsageError, printable, shown
from sharded_eden.format import schema
from sharded_eden.format.commands import precompute_command
from sharded_eden.format.fingerprint import PackFingerprint
from sharded_eden.format.geometry import WindowGeometry, integer
from sharded_eden.format.index import FileIdentity
from sharded_eden.format.kinds import expect
from sharded_eden.format.lengths import window_lengths
from sharded_eden.format.publish import copy_database, create_database, publishing, writing
from sharded_eden.format.sqlite import READ_ERRORS, open_read_only, trust_nothing, unreadable
from sharded_eden.format.window_db import WindowDatabase, metadata_rows
from sharded_eden.progress import Meter, Progress
from sharded_eden.shuffle import Permutation
from sharded_eden.windows.existing import existing_packs
from sharded_eden.windows.index import renew_index

BUFFER_WINDOWS = 4096
"""Windows packed at once: on metagenomes 99.9% of the tokens are then useful, and larger buffers gain almost nothing."""

PERMUTED_AT_ONCE = 1 << 18


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """The result of packing a window database."""

    windows: int
    packs: int
    window_size: int
    """Tokens of a row."""
    useful_tokens: int
    """Tokens of all windows, special tokens included; the rest is padding."""
    fingerprint: int
    """Ties checkpoints to the packs."""

    @property
    def useful(self) -> float:
        """The share of tokens that are not padding, in packed rows."""
        return self.useful_tokens / max(1, self.packs * self.window_size)

    @property
    def useful_padded(self) -> float:
        """The same share with one window in each row."""
        return self.useful_tokens / max(1, self.windows * self.window_size)


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """How many tokens windows have, where that is not one for each base."""

    row_tokens: int
    """Tokens of a row."""
    tokenizer: int
    """The fingerprint of the tokenizer."""
    of_windows: Callable[[], Iterator[NDArray[np.int64]]]
    """Yields the tokens of each window with its special tokens, at most `row_tokens`, in the order of the windows."""


def pack_window_database(
    window_db: str | os.PathLike[str],
    *,
    seed: int = 42,
    lengths: str | os.PathLike[str] | None = None,
    sequences: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    token_counts: TokenCounts | None = None,
) -> PackResult:
    """Pack the windows of a finished window database. Existing packs are not replaced by others.

    The database is replaced when the new one is complete.

    Args:
        window_db: the window database.
        seed: another seed gives other packs.
        lengths: the split's Parquet file, for a database without `contig_lengths`.
        sequences: the folder of sequence databases, for the same purpose.
        overwrite: replace its packs by others. Checkpoints are tied to the packs that they were trained on, so they cannot be
            resumed on others.
        progress: called with the windows done and their total.
        token_counts: the tokens of the windows, see `sharded_eden.token_packs`; None: one for each base.

    Raises:
        MissingDatabase: there is no such window database.
        DatabaseError: it is not a window database, or the lengths of its windows are unknown.
        UsageError: it cannot be written, or has other packs, unless `overwrite`.

    Example:
        >>> from sharded_eden import pack_window_database
        >>> result = pack_window_database("windows/train_windows.db")
        >>> result.windows
        81
    """
    path, seed = Path(window_db), pack_seed(seed)
    expect(path, "WINDOWS.db", "a window database")
    if not path.is_file():
        raise MissingDatabase(
            f"{printable(path)}: no such window database. Make it: {precompute_command(path, pack=True)}"
        )
    with closing(open_read_only(path)) as database:
        state = _checked(database, path)
        existing = None if overwrite else existing_packs(state, database)
    if existing is not None:
        existing.check_seed(seed)
    before = FileIdentity.of(path.stat())
    with publishing(path) as unfinished:
        copy_database(path, unfinished)
        try:
            with writing(path), closing(create_database(unfinished)) as database:
                trust_nothing(database)  # this also disables triggers of the window database
                database.execute("BEGIN")
                result = write_packs(
                    database,
                    path,
                    seed=seed,
                    lengths=lengths,
                    sequences=sequences,
                    progress=progress,
                    token_counts=token_counts,
                )
                if existing is not None:
                    existing.check_fingerprint(result.fingerprint)
                database.execute("COMMIT")
        except READ_ERRORS as error:
            raise unreadable(path, error) from error
    renew_index(path, before)
    return result


def pack_seed(given: Any) -> int:
    """Return the seed of packs as an int.

    Raises:
        UsageError: it is no integer of 64 bits.
    """
    seed = integer(given, "the seed of packs")
    if not -(2**63) <= seed < 2**63:
        raise UsageError(f"the seed of packs {shown(seed)} is invalid: it must fit into 64 bits")
    return seed


def write_packs(
    database: apsw.Connection,
    path: Path,
    *,
    seed: int,
    lengths: str | os.PathLike[str] | None = None,
    sequences: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    token_counts: TokenCounts | None = None,
) -> PackResult:
    """Write the packs of a window database that is open for writing.

    Args:
        database: the connection.
        path: its name in messages.
        seed: from `pack_seed`; see `pack_window_database` for the other arguments.
        lengths: the split's Parquet file.
        sequences: the folder of sequence databases.
        progress: called with the windows done, counted twice, and their total.
        token_counts: see `pack_window_database`.
    """
    state = _checked(database, path)
    geometry, total = cast("WindowGeometry", state.geometry), state.total_windows
    if geometry.usable < 1:
        raise UsageError(
            f"{printable(path)}: its windows cannot be packed: window_size={geometry.window_size} leaves no room for a base "
            f"beside special_tokens={geometry.special_tokens}. Precompute with fewer --special-tokens"
        )
    database.execute("DROP TABLE IF EXISTS packs")
    database.execute(schema.CREATE_PACKS)
    fingerprint = PackFingerprint(geometry)
    packs = useful_tokens = done = 0
    meter = Meter(progress, 2 * total)
    capacity, costs_of_windows = geometry.window_size, _costs(database, path, geometry, total, lengths, sequences)
    if token_counts is not None:
        capacity, costs_of_windows = token_counts.row_tokens, token_counts.of_windows()
    with TemporaryFile(dir=path.parent, prefix=f".{path.name}.") as file:
        dtype: type[np.integer[Any]] = np.uint16 if capacity <= np.iinfo(np.uint16).max else np.uint32
        for costs_of_some in costs_of_windows:
            costs_of_some.astype(dtype).tofile(file)
            meter.reach(file.tell() // np.dtype(dtype).itemsize)
        file.flush()
        tokens = np.memmap(file, dtype=dtype, mode="r", shape=(total,)) if total else np.empty(0, dtype=dtype)
        for windows in buffers(total, seed):
            costs: NDArray[np.integer[Any]] = tokens[windows]
            useful_tokens += int(costs.sum(dtype=np.int64))
            rows = best_fit(costs, capacity)
            members = windows[list(chain.from_iterable(rows))].astype("<i8").tobytes()
            sizes = list(map(len, rows))
            fingerprint.update(sizes, members)
            ends = list(accumulate(sizes))
            blobs = (members[8 * low : 8 * high] for low, high in pairwise([0, *ends]))
            database.executemany("INSERT INTO packs VALUES (?, ?)", enumerate(blobs, start=packs))
            packs += len(rows)
            done += len(windows)
            meter.reach(total + done)
    meter.finish()
    totals = {
        "total_packs": packs,
        "pack_seed": seed,
        "pack_useful_tokens": useful_tokens,
        "pack_fingerprint": fingerprint.value(),
    }
    if token_counts is not None:
        totals |= {"pack_row_tokens": token_counts.row_tokens, "pack_tokenizer": token_counts.tokenizer}
    # Not INSERT OR REPLACE: a table from another program may have no primary key.
    database.executemany(
        "DELETE FROM metadata WHERE key = ?", ((key,) for key in (*totals, "pack_row_tokens", "pack_tokenizer"))
    )
    database.executemany("INSERT INTO metadata (key, value) VALUES (?, ?)", metadata_rows(totals))
    return PackResult(
        windows=total,
        packs=packs,
        window_size=capacity,
        useful_tokens=useful_tokens,
        fingerprint=totals["pack_fingerprint"],
    )


def _costs(
    database: apsw.Connection,
    path: Path,
    geometry: WindowGeometry,
    total: int,
    lengths: str | os.PathLike[str] | None,
    sequences: str | os.PathLike[str] | None,
) -> Iterator[NDArray[np.int64]]:
    """Yield the tokens of windows, one for each base and their special tokens, (n,) int64."""
    for bases in window_lengths(database, path, geometry, total, lengths=lengths, sequences=sequences):
        yield np.minimum(bases, geometry.usable) + geometry.special_tokens


def _checked(database: apsw.Connection, path: Path) -> WindowDatabase:
    """Return what a window database without problems states.

    Raises:
        DatabaseError: the first problem.
    """
    state = WindowDatabase(database, path)
    try:
        for problem in state.problems():
            raise problem.error(path)
    except READ_ERRORS as error:
        raise unreadable(path, error) from error
    return state


def buffers(total: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of all windows in random order, (n,) int64, at most `BUFFER_WINDOWS` at once."""
    permutation = Permutation(total, "packs", seed)
    for first in range(0, total, PERMUTED_AT_ONCE):
        permuted = permutation(np.arange(first, min(first + PERMUTED_AT_ONCE, total)))
        for start in range(0, len(permuted), BUFFER_WINDOWS):
            yield permuted[start : start + BUFFER_WINDOWS]


def best_fit(costs: NDArray[np.integer[Any]], capacity: int) -> list[list[int]]:
    """Put items into bins by best fit decreasing: the largest first, each where the least room remains.

    Args:
        costs: (n,) integers in [1, capacity].
        capacity: of a bin.

    Returns:
        The items of each bin, each item once.
    """
    bins: list[list[int]] = []
    rooms: list[int] = []  # the free room of each bin that can take the smallest item, ascending; owners: their numbers
    owners: list[int] = []
    decreasing = np.argsort(costs, kind="stable")[::-1]
    sizes = costs[decreasing].tolist()
    smallest = sizes[-1]
    for item, size in zip(decreasing.tolist(), sizes, strict=True):
        at = bisect_left(rooms, size)
        if at == len(rooms):
            room, owner = capacity - size, len(bins)
            bins.append([item])
        else:
            room, owner = rooms.pop(at) - size, owners.pop(at)
            bins[owner].append(item)
        if room >= smallest:
            at = bisect_left(rooms, room)
            rooms.insert(at, room)
            owners.insert(at, owner)
    return bins
