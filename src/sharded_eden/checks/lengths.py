"""`contig_lengths` of a window database, checked against its windows and its fingerprint.

Input: an open window database. Output: findings. Costs one pass over its contigs, in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import apsw
import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.checks.findings import Findings, Tally
from sharded_eden.errors import DatabaseError, shown
from sharded_eden.format.fingerprint import Fingerprint
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.schema import CONTIG_ID, LENGTH

CHUNK_ROWS = 100_000


def check_lengths(
    findings: Findings,
    connection: apsw.Connection,
    path: Path,
    fix: str,
    *,
    geometry: WindowGeometry,
    windows: int,
    fingerprint: int | None,
    has_holes: bool,
) -> None:
    """Check that the recorded lengths are integers that give the existing windows, and the fingerprint in the metadata.

    Where ambiguous windows were left out (`has_holes`), contigs may have fewer windows.
    """
    query = "SELECT count(*) FROM (SELECT DISTINCT sequence_id FROM window_mappings)"
    firsts = connection.execute(query).get
    recorded = connection.execute("SELECT count(*) FROM contig_lengths").get
    if firsts != recorded:
        findings.error("windows", path, f"contig_lengths has {recorded} rows for {firsts} contigs", fix)
        return
    odd = Tally()
    query = "SELECT first_window_idx, length FROM contig_lengths WHERE typeof(length) <> 'integer'"
    for first_window, length in connection.execute(query):
        odd.add(f"{shown(length)} at window {first_window}")
    if odd.count:
        findings.error("windows", path, f"contig_lengths has lengths that are not integers: {odd}", fix)
        return
    computed = Fingerprint(geometry)
    wrong = Tally()
    seen = 0
    for first, ids, lengths in _chunks(connection, windows, has_holes):
        computed.update(pl.DataFrame({CONTIG_ID: ids, LENGTH: lengths}))
        _compare(geometry, first, ids, lengths, wrong, has_holes)
        if has_holes:
            _add_windows(computed, connection, first, seen)
        seen += len(ids)
    if wrong.count:
        what = f"contigs have other windows than their lengths in contig_lengths make: {wrong}"
        findings.error("windows", path, what, fix)
    if fingerprint not in {None, computed.value()}:
        what = f"metadata fingerprint={fingerprint}, but its contigs and lengths make {computed.value()}"
        findings.error("fingerprint", path, what, fix)


def _chunks(
    connection: apsw.Connection, total: int, has_holes: bool
) -> Iterator[tuple[NDArray[np.int64], list[str], NDArray[np.int64]]]:
    """Yield the contigs in chunks: first windows and the end of the last one (n + 1,), IDs, lengths (n,)."""
    rows = connection.execute(
        "SELECT first_window_idx, sequence_id, length FROM contig_lengths LEFT JOIN window_mappings "
        "ON window_idx = first_window_idx AND (window_in_seq_idx = 0 OR ?) ORDER BY first_window_idx",
        (has_holes,),
    )
    kept: list[tuple[int, str | None, int]] = []
    while chunk := list(islice(rows, CHUNK_ROWS)):
        kept += chunk
        yield _columns(kept[:-1], kept[-1][0])
        kept = kept[-1:]
    if kept:
        yield _columns(kept, total)


def _add_windows(
    computed: Fingerprint, connection: apsw.Connection, first: NDArray[np.int64], contigs_before: int
) -> None:
    """Add the windows of a chunk of contigs, which begin at `first`, (n + 1,), to a fingerprint."""
    start, end = first[[0, -1]].tolist()
    for low in range(start, end, CHUNK_ROWS):
        rows = connection.execute(
            "SELECT window_in_seq_idx FROM window_mappings WHERE window_idx >= ? AND window_idx < ? ORDER BY window_idx",
            (low, min(low + CHUNK_ROWS, end)),
        ).fetchall()
        contig = np.searchsorted(first, np.arange(low, low + len(rows)), side="right") - 1 + contigs_before
        computed.update_windows(contig, np.array(rows, dtype=np.int64).reshape(-1))


def _columns(
    rows: list[tuple[int, str | None, int]], end: int
) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
    if astray := [first for first, sequence_id, _ in rows if sequence_id is None]:
        raise DatabaseError(
            f"contig_lengths has a row for window {astray[0]}, which is not the first window of a contig"
        )
    firsts, lengths = [*(row[0] for row in rows), end], [row[2] for row in rows]
    return np.array(firsts, dtype=np.int64), [str(row[1]) for row in rows], np.array(lengths, dtype=np.int64)


def _compare(
    geometry: WindowGeometry,
    first: NDArray[np.int64],
    ids: list[str],
    lengths: NDArray[np.int64],
    wrong: Tally,
    has_holes: bool,
) -> None:
    """Compare the windows of contigs with those that follow from their recorded lengths."""
    counts, expected = np.diff(first), geometry.counts(lengths)
    wrong.add_rows(
        counts > expected if has_holes else counts != expected,
        lambda row: f"{ids[row]!r} of {lengths[row]} bases has {counts[row]} instead of {expected[row]}",
    )
