"""The share of useful tokens that `pack` would reach, from the lengths of rows.

Input: how many rows have each number of bases. Output: a share. Costs the packing of 65,536 windows at most, 0.1 s; memory for
the distinct lengths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sharded_eden.describe.lengths import LengthDistribution
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.windows.pack import BUFFER_WINDOWS, best_fit, buffers

BUFFERS = 16
"""Buffers that are packed for an estimate."""


@dataclass(kw_only=True, eq=False)
class RowLengths:
    """How many rows have each number of bases, with one window in each row."""

    full: int = 0
    """Rows without padding."""
    short: LengthDistribution = field(default_factory=LengthDistribution)
    """The other rows."""

    def add(self, geometry: WindowGeometry, lengths: NDArray[np.int64], windows: NDArray[np.int64]) -> None:
        """Add the rows of the first windows of contigs, (C,) int64 each."""
        full = np.clip((lengths - geometry.usable) // geometry.stride + 1, 0, windows)
        self.full += int(full.sum())
        bases, windows = lengths - full * geometry.stride, windows - full
        while len(bases := bases[windows > 0]):
            windows = windows[windows > 0]
            self.short.add(bases)
            bases, windows = bases - geometry.stride, windows - 1

    def add_listed(self, geometry: WindowGeometry, bases: NDArray[np.int64]) -> None:
        """Add rows with these numbers of bases, (n,) int64."""
        is_full = bases >= geometry.usable
        self.full += int(is_full.sum())
        self.short.add(bases[~is_full])

    def merge(self, other: RowLengths) -> None:
        """Add the rows of another."""
        self.full += other.full
        self.short.merge(other.short)


@dataclass(frozen=True, kw_only=True)
class IfPacked:
    """The share of useful tokens that packs would have."""

    share: float
    is_exact: bool
    """Whether all windows were packed together, as `pack` does with so few; otherwise an estimate from random windows."""


def share_if_packed(rows: RowLengths, geometry: WindowGeometry) -> IfPacked | None:
    """Return the share of useful tokens that `pack` reaches; None where there is nothing that it can pack.

    `pack` fills rows from buffers of 4,096 random windows. Buffers of as many random windows are filled here in the same way.
    """
    total = rows.full + rows.short.contigs
    if not total or geometry.usable < 1:
        return None
    tokens = np.append(rows.short.values, geometry.usable) + geometry.special_tokens
    ends = np.cumsum(np.append(rows.short.counts, rows.full))
    useful = packs = 0
    for windows in islice(buffers(total, 42), BUFFERS):
        costs = tokens[np.searchsorted(ends, windows, side="right")]
        useful += int(costs.sum())
        packs += len(best_fit(costs, geometry.window_size))
    return IfPacked(share=useful / (packs * geometry.window_size), is_exact=total <= BUFFER_WINDOWS)
