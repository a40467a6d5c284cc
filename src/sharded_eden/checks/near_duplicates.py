"""Finds similar contigs in different splits, with the sketches of `similar/`.

Input: sequence databases and window databases. Output: one finding for each two splits that share similar contigs, and on
request a Parquet file of all pairs. Memory: the ID of every contig, and see `similar/pairs.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.checks.findings import EXAMPLES, Findings, Tally
from sharded_eden.errors import UsageError, shown
from sharded_eden.format.commands import split_command
from sharded_eden.format.kinds import check_replaceable
from sharded_eden.format.publish import publishing
from sharded_eden.format.schema import CONTIG_ID
from sharded_eden.format.sqlite import open_read_only
from sharded_eden.jobs import Engine
from sharded_eden.progress import Progress
from sharded_eden.similar.pairs import (
    CONTAINMENT,
    IDENTITY,
    MIN_SHARED,
    ONE,
    OTHER,
    Similar,
    Wanted,
    check_threshold,
    similar_contigs,
)
from sharded_eden.similar.sketch import HASHES, check_library

MOST_SPLITS = 62
"""The splits of a contig are the bits of an int64."""
SPLITS = "splits"


@dataclass(frozen=True)
class NearDuplicates:
    """What was found."""

    pairs: int | None = None
    """Pairs of similar contigs in different splits; None where the search failed."""
    not_compared: int = 0
    """Contigs with windows that are too short to be compared."""


def check_request(window_dbs: int, threshold: float, pairs: str | os.PathLike[str] | None = None) -> None:
    """Refuse a request that cannot be fulfilled, before anything is read.

    Raises:
        UsageError: there are not 2 to 62 window databases, the threshold is invalid, or another file is at `pairs`.
        MissingExtra: sourmash is not installed.
    """
    if not 2 <= window_dbs <= MOST_SPLITS:
        raise UsageError(
            f"--near-duplicates compares splits: name the window databases of 2 to {MOST_SPLITS} splits, not of {window_dbs}"
        )
    if pairs is not None:
        check_replaceable(Path(pairs), "--pairs", "a table of pairs", _is_table_of_pairs)
    check_threshold(threshold)
    check_library()


def find_near_duplicates(
    findings: Findings,
    folder: Path,
    databases: Mapping[str, Path],
    window_dbs: Mapping[Path, str],
    scratch: Path,
    *,
    threshold: float,
    by_contig: bool,
    engine: Engine,
    pairs_out: Path | None = None,
    progress: Progress | None = None,
) -> NearDuplicates:
    """Compare all contigs that have windows, and add a finding for each two splits with similar contigs.

    Args:
        findings: where findings go.
        folder: the folder of sequence databases.
        databases: {sample: its sequence database}, without unreadable ones.
        window_dbs: {window database: the command that makes it again}, without unreadable ones.
        scratch: a folder for temporary files.
        threshold: the least containment.
        by_contig: whether splits divide contigs, for the command of a finding.
        engine: where databases are sketched.
        pairs_out: a Parquet file for all pairs.
        progress: called with the bytes of databases that are done and their total.
    """
    splits: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def wanted(contigs: pl.DataFrame) -> Wanted:
        nonlocal splits
        splits = _splits_of(contigs, list(window_dbs))
        return lambda one, other: _differ(splits[one], splits[other])

    similar = similar_contigs(databases, scratch, threshold=threshold, wanted=wanted, engine=engine, progress=progress)
    for (number, path), (other_number, other_path) in combinations(enumerate(window_dbs), 2):
        pairs = _between(similar, splits, number, other_number)
        if pairs.is_empty():
            continue
        tally = Tally(count=pairs.height)
        for one, other, containment, identity in pairs.head(EXAMPLES).iter_rows():
            tally.examples.append(
                f"{shown(one)} and {shown(other)} (containment {containment:.0%}, as at {identity:.0%} identity)"
            )
        first, second = (pairs[name].n_unique() for name in (ONE, OTHER))
        findings.warning(
            "near-duplicate",
            other_path,
            f"{second} of its contigs {'resembles' if second == 1 else 'resemble'} "
            f"{first} contig{'' if first == 1 else 's'} of {path}, so an evaluation on one split measures in "
            f"part what was learned from the other. Pairs: {tally}",
            f"{split_command(folder, by_contig=by_contig, group_similar=True)}, then {window_dbs[other_path]} and the same for "
            "the others",
        )
    if pairs_out is not None:
        _write(similar, splits, list(window_dbs), pairs_out)
    too_short = (splits > 0) & (similar.contigs[HASHES].to_numpy() < MIN_SHARED)
    return NearDuplicates(similar.pairs.height, int(too_short.sum()))


def _splits_of(contigs: pl.DataFrame, window_dbs: list[Path]) -> NDArray[np.int64]:
    """Return the splits of each contig, (n,) int64: bit i is set where window database i has a window of it."""
    found = np.zeros(len(contigs), dtype=np.int64)
    for number, path in enumerate(window_dbs):
        with closing(open_read_only(path, io="read")) as database:
            rows = database.execute("SELECT DISTINCT sequence_id FROM window_mappings")
            ids = pl.Series(CONTIG_ID, (contig_id for (contig_id,) in rows), dtype=pl.String)
        found |= contigs[CONTIG_ID].is_in(ids.implode()).to_numpy().astype(np.int64) << number
    return found


def _differ(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether two contigs are in different splits, (n,) bool; a contig without windows is in none."""
    both = one | other
    differ: NDArray[np.bool_] = (one > 0) & (other > 0) & ((both & (both - 1)) != 0)
    return differ


def _between(similar: Similar, splits: NDArray[np.int64], number: int, other_number: int) -> pl.DataFrame:
    """Return the named pairs between two splits; `one` is the contig in the first of them."""
    one, other = (splits[similar.pairs[column].to_numpy()] for column in (ONE, OTHER))
    bit, other_bit = 1 << number, 1 << other_number
    forward = ((one & bit) > 0) & ((other & other_bit) > 0)
    backward = ((one & other_bit) > 0) & ((other & bit) > 0) & ~forward
    named = similar.named().with_columns(pl.Series("forward", forward), pl.Series("backward", backward))
    swapped = pl.col("backward")
    return named.filter(pl.col("forward") | swapped).select(
        pl.when(swapped).then(OTHER).otherwise(ONE).alias(ONE),
        pl.when(swapped).then(ONE).otherwise(OTHER).alias(OTHER),
        CONTAINMENT,
        IDENTITY,
    )


def _is_table_of_pairs(path: Path) -> bool:
    """Return whether a file is one that `_write` has written."""
    return list(pl.read_parquet_schema(path))[: len(_COLUMNS)] == _COLUMNS


_COLUMNS = [ONE, "split_of_one", OTHER, "split_of_other", CONTAINMENT, IDENTITY]


def _write(similar: Similar, splits: NDArray[np.int64], window_dbs: list[Path], out: Path) -> None:
    names = {}
    for value in np.unique(splits).tolist():
        names[value] = ", ".join(str(path) for bit, path in enumerate(window_dbs) if value >> bit & 1)
    columns = [
        pl.Series(f"split_of_{name}", splits[similar.pairs[name].to_numpy()]).replace_strict(
            names, return_dtype=pl.String
        )
        for name in (ONE, OTHER)
    ]
    frame = similar.named().with_columns(columns)
    with publishing(out) as unfinished:
        frame.select(_COLUMNS).write_parquet(unfinished)
