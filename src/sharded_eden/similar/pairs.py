"""Sketches of contigs -> the pairs of contigs that share enough hashes.

    databases ──one task each──▶ hashes, sorted ──one range of hashes after the other──▶ pairs with a common hash, counted

Input: sequence databases. Output: a frame of pairs. Memory: 8 million hashes at a time, one row for each contig, and one
for each pair with a common hash. Temporary files: about 600 MB for a gigabase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.errors import EdenError, UsageError
from sharded_eden.format.schema import CONTIG_ID
from sharded_eden.jobs import Engine, run_tasks
from sharded_eden.progress import Meter, Progress
from sharded_eden.similar.sketch import CONTIG, HASH, HASHES, SCALED, K, SketchTask, check_library, sketch_database

MIN_SHARED = 3
"""Pairs with fewer common hashes are not reported: a chance match of one k-mer is no similarity."""
NEIGHBOURS = 32
"""A hash that more contigs hold than this is counted only for contigs that are at most this far apart in its list.

The contigs of one list that resemble each other follow each other in the lists of their other hashes too, so they stay
connected; all pairs of 10,000 copies would be 50 million.
"""
HASHES_AT_ONCE = 1 << 23
MOST_COUNTS = 1 << 24
"""Rows of counts that are added up together."""

ONE, OTHER, SHARED, CONTAINMENT, IDENTITY, SAMPLE = "one", "other", "shared", "containment", "identity", "sample"

Wanted = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
"""Numbers of contigs, (n,) int64 each -> which pairs count, (n,) bool."""


@dataclass(frozen=True)
class Similar:
    """The contigs, and the pairs above the threshold."""

    contigs: pl.DataFrame
    """contig_id, length, hashes, sample: row i is contig number i. `hashes` is 0 for contigs that were not compared."""
    pairs: pl.DataFrame
    """one, other (numbers of contigs), shared (hashes), containment: the highest first."""

    @property
    def not_compared(self) -> int:
        """The number of contigs that are too short, or have too few letters other than N, to be compared."""
        return int((self.contigs[HASHES] < MIN_SHARED).sum())

    def named(self) -> pl.DataFrame:
        """Return the pairs with contig IDs: one, other, containment in [0, 1], identity (an estimate, in [0, 1])."""
        ids = self.contigs[CONTIG_ID]
        return self.pairs.select(
            ids.gather(self.pairs[ONE]).alias(ONE),
            ids.gather(self.pairs[OTHER]).alias(OTHER),
            CONTAINMENT,
            (pl.col(CONTAINMENT) ** (1 / K)).alias(IDENTITY),
        )


def similar_contigs(
    databases: Mapping[str, Path],
    scratch: Path,
    *,
    threshold: float,
    wanted: Callable[[pl.DataFrame], Wanted] | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Similar:
    """Find the pairs of contigs of which one holds at least `threshold` of the other's hashes.

    Args:
        databases: {sample: sequence database}.
        scratch: a folder for temporary files, about 600 MB for a gigabase.
        threshold: the least containment, in (0, 1]; the share of the hashes of the contig that has fewer.
        wanted: called once with the contigs; returns which pairs count. None: all.
        engine: where databases are sketched.
        progress: called with the bytes of databases that are done and their total.

    Raises:
        UsageError: the threshold is invalid.
        MissingExtra: sourmash is not installed.
        DatabaseError: a database cannot be read.
    """
    check_threshold(threshold)
    check_library()
    tasks = [SketchTask(number, path, scratch) for number, path in enumerate(databases.values())]
    _sketch(tasks, engine or Engine(), progress)
    parts = [
        pl.read_parquet(task.contigs, glob=False).with_columns(pl.lit(sample).alias(SAMPLE))
        for sample, task in zip(databases, tasks, strict=True)
    ]
    firsts = np.cumsum([0, *map(len, parts)])[:-1]
    contigs = pl.concat(parts)
    counts = _Counts()
    accepted = None if wanted is None else wanted(contigs)
    for hashes, numbers in _ranges(tasks, firsts, int(contigs[HASHES].sum())):
        for one, other in _pairs(hashes, numbers):
            kept = slice(None) if accepted is None else accepted(one, other)
            counts.add(one[kept], other[kept])
    sizes = contigs[HASHES].to_numpy()
    pairs = counts.total().filter(pl.col(SHARED) >= MIN_SHARED)
    smaller = np.minimum(sizes[pairs[ONE].to_numpy()], sizes[pairs[OTHER].to_numpy()])
    pairs = (
        pairs.with_columns((pl.col(SHARED) / pl.Series(smaller, dtype=pl.Int64)).alias(CONTAINMENT))
        .filter(pl.col(CONTAINMENT) >= threshold)
        .sort([CONTAINMENT, SHARED, ONE, OTHER], descending=[True, True, False, False])
    )
    return Similar(contigs, pairs)


def check_threshold(threshold: float) -> None:
    """Refuse a threshold outside (0, 1].

    Raises:
        UsageError: it is outside.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold {threshold} is invalid: it must be above 0 and at most 1")


def _sketch(tasks: Sequence[SketchTask], engine: Engine, progress: Progress | None) -> None:
    sizes = [task.path.stat().st_size if task.path.exists() else 0 for task in tasks]
    meter = Meter(progress, sum(sizes))
    heard_bases, ended_bytes = 0, 0

    def heard(bases: int) -> None:
        nonlocal heard_bases
        heard_bases += bases
        meter.reach(max(heard_bases, ended_bytes))

    for ended in run_tasks(sketch_database, tasks, engine, heard=heard):
        if ended.result is None:
            raise ended.error or EdenError("a task gave no sketches")
        ended_bytes += sizes[ended.task.number]
        meter.reach(max(heard_bases, ended_bytes))
    meter.finish()


def _ranges(
    tasks: Sequence[SketchTask], firsts: NDArray[np.int64], total: int
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Yield (hashes, numbers of contigs), sorted by both, for one range of hashes after the other."""
    most = 2**64 // SCALED
    count = max(1, -(-total // HASHES_AT_ONCE))
    edges = [most * i // count for i in range(count)] + [2**64 - 1]
    for low, high in pairwise(edges):
        of_range = pl.col(HASH).is_between(pl.lit(low, dtype=pl.UInt64), pl.lit(high, dtype=pl.UInt64), closed="left")
        parts = [
            pl.scan_parquet(task.hashes, glob=False)
            .filter(of_range)
            .with_columns(pl.col(CONTIG).cast(pl.Int64) + int(first))
            for task, first in zip(tasks, firsts, strict=True)
        ]
        frame = pl.concat(pl.collect_all(parts)).sort(HASH, CONTIG)
        yield frame[HASH].to_numpy(), frame[CONTIG].to_numpy()


def _pairs(
    hashes: NDArray[np.uint64], numbers: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the numbers (n,) int64 of contigs with a common hash, the lower one first."""
    places = np.arange(len(hashes) - 1 if len(hashes) else 0)
    for apart in range(1, NEIGHBOURS + 1):
        places = places[places < len(hashes) - apart]
        places = places[hashes[places] == hashes[places + apart]]
        if not len(places):
            return
        yield numbers[places], numbers[places + apart]


class _Counts:
    """Counts how often each pair was seen."""

    def __init__(self) -> None:
        self._parts: list[pl.DataFrame] = []
        self._rows = 0

    def add(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Count each pair once more."""
        frame = pl.DataFrame({ONE: one, OTHER: other}).group_by(ONE, OTHER).agg(pl.len().cast(pl.Int64).alias(SHARED))
        self._parts.append(frame)
        self._rows += frame.height
        if self._rows > MOST_COUNTS and len(self._parts) > 1:
            self._parts = [self.total()]
            self._rows = 0

    def total(self) -> pl.DataFrame:
        """Return (one, other, shared), all Int64."""
        empty = pl.DataFrame(schema={ONE: pl.Int64, OTHER: pl.Int64, SHARED: pl.Int64})
        return pl.concat([empty, *self._parts]).group_by(ONE, OTHER).agg(pl.col(SHARED).sum())
