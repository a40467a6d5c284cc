"""How often the bases of the longest contigs are in a row, along each contig.

Input: a window database. Output: mean coverage of equal parts of each contig. Costs a scan of the lengths, and the windows of a
few contigs.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.sqlite import READ_ERRORS, open_read_only, table_columns, unreadable

CONTIGS = 4
PARTS = 100


@dataclass(frozen=True)
class Coverage:
    """The coverage of one contig."""

    contig_id: str
    length: int
    mean: NDArray[np.float64]
    """(parts,) float64: how often a base of the part is in a row, on average."""


def longest_contigs(path: Path, geometry: WindowGeometry) -> list[Coverage]:
    """Return the coverage of the longest contigs of a window database; empty where it has no lengths.

    Raises:
        DatabaseError: the database cannot be read.
    """
    with closing(open_read_only(path)) as database:
        try:
            if not table_columns(database, "contig_lengths"):
                return []
            rows = database.execute(
                "SELECT w.sequence_id, c.length FROM (SELECT first_window_idx, length FROM contig_lengths "
                "ORDER BY length DESC, first_window_idx LIMIT ?) AS c JOIN window_mappings AS w "
                "ON w.window_idx = c.first_window_idx ORDER BY c.length DESC, w.window_idx",
                (CONTIGS,),
            ).fetchall()
            found = []
            for contig_id, length in ((str(name), int(bases or 0)) for name, bases in rows):
                query = "SELECT window_in_seq_idx FROM window_mappings WHERE sequence_id = ? ORDER BY window_in_seq_idx"
                numbers = np.array([number for (number,) in database.execute(query, (contig_id,))], dtype=np.int64)
                starts = numbers * geometry.stride
                ends = np.minimum(starts + geometry.usable, length)
                found.append(Coverage(contig_id, length, mean_coverage(starts, ends, length)))
            return found
        except READ_ERRORS as error:
            raise unreadable(path, error) from error


def mean_coverage(starts: NDArray[np.int64], ends: NDArray[np.int64], length: int) -> NDArray[np.float64]:
    """Return how many windows cover a base of each part, on average, (parts,) float64.

    Args:
        starts: (n,) int64, the first base of each window, ascending.
        ends: (n,) int64, the base after the last one of each window, ascending.
        length: bases of the contig.

    Example:
        >>> mean_coverage(np.array([0, 5]), np.array([10, 10]), 10).round(1).tolist()[::50]
        [1.0, 2.0]
    """
    parts = max(1, min(PARTS, length))
    edges = np.arange(parts + 1) * length / parts
    covered = _bases_before(edges, starts) - _bases_before(edges, ends)
    return np.asarray(np.diff(covered) / np.diff(edges)) if length else np.zeros(parts)


def _bases_before(places: NDArray[np.float64], begins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum of max(0, place - begin) over all begins, for each place."""
    count = np.searchsorted(begins, places)
    sums = np.concatenate([[0.0], np.cumsum(begins, dtype=np.float64)])
    return np.asarray(count * places - sums[count])
