"""The distribution of contig lengths, exact in bounded memory.

Input: lengths in any order. Output: totals, N50 and quantiles. Memory: 16 bytes for each distinct length. Contigs of 1 Gb in
all have at most 45,000 distinct lengths, those of 1 Tb at most 1.4 million, because k distinct lengths sum to at least k² / 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
PENDING_LENGTHS = 1 << 18
"""Lengths that are kept before they are merged into the distribution."""


def _none() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass(kw_only=True, eq=False)
class LengthDistribution:
    """How many contigs have each length.

    Example:
        >>> lengths = LengthDistribution()
        >>> lengths.add(np.array([70, 20, 10]))
        >>> lengths.n50, lengths.bases
        (70, 100)
    """

    _values: NDArray[np.int64] = field(default_factory=_none)
    _counts: NDArray[np.int64] = field(default_factory=_none)
    _pending: list[NDArray[np.int64]] = field(default_factory=list)
    _n_pending: int = 0

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Add the lengths of contigs, (n,) int64, bases."""
        self._pending.append(np.asarray(lengths, dtype=np.int64))
        self._n_pending += len(lengths)
        if self._n_pending >= PENDING_LENGTHS:
            self._merge()

    def merge(self, other: LengthDistribution) -> None:
        """Add the contigs of another distribution."""
        other._merge()
        self._merge()
        self._put(np.concatenate([self._values, other._values]), np.concatenate([self._counts, other._counts]))

    def _merge(self) -> None:
        if self._pending:
            lengths = np.concatenate(self._pending)
            self._pending, self._n_pending = [], 0
            self._put(
                np.concatenate([self._values, lengths]),
                np.concatenate([self._counts, np.ones(len(lengths), dtype=np.int64)]),
            )

    def _put(self, values: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        self._values, place = np.unique(values, return_inverse=True)
        self._counts = np.zeros(len(self._values), dtype=np.int64)
        np.add.at(self._counts, place, counts)

    @property
    def values(self) -> NDArray[np.int64]:
        """The distinct lengths, ascending, (d,) int64, bases."""
        self._merge()
        return self._values

    @property
    def counts(self) -> NDArray[np.int64]:
        """The number of contigs of each length in `values`, (d,) int64."""
        self._merge()
        return self._counts

    @property
    def contigs(self) -> int:
        """The number of contigs."""
        return int(self.counts.sum())

    @property
    def bases(self) -> int:
        """The sum of all lengths."""
        return int((self.values * self.counts).sum())

    @property
    def n50(self) -> int:
        """The largest length for which contigs of at least this length hold half of the bases; 0 without bases."""
        return self._nx()[0]

    @property
    def l50(self) -> int:
        """The least number of contigs that hold half of the bases."""
        return self._nx()[1]

    def _nx(self) -> tuple[int, int]:
        values, counts = self.values[::-1], self.counts[::-1]
        total = self.bases
        if not total:
            return 0, 0
        before = np.cumsum(values * counts)
        at = int(np.searchsorted(before, -(-total // 2)))  # before[at] >= total / 2
        missing = -(-total // 2) - (int(before[at - 1]) if at else 0)
        contigs = int(counts[:at].sum()) + -(-missing // int(values[at]))
        return int(values[at]), contigs

    def quantile(self, q: float) -> float:
        """Return the length below which a share `q` of the contigs lies, interpolated linearly; NaN without contigs.

        Source: definition 7 of Hyndman and Fan, "Sample quantiles in statistical packages", 1996 (the default of NumPy and R).
        """
        values, ends = self.values, np.cumsum(self.counts)
        if not len(values):
            return float("nan")
        at = (int(ends[-1]) - 1) * q
        low, high = (int(values[np.searchsorted(ends, int(k), side="right")]) for k in (at, np.ceil(at)))
        return low + (high - low) * (at - int(at))

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as plain values; lengths are None where there is no contig."""
        n = self.contigs
        return {
            "contigs": n,
            "bases": self.bases,
            "shortest": int(self.values[0]) if n else None,
            "longest": int(self.values[-1]) if n else None,
            "mean": self.bases / n if n else None,
            "n50": self.n50,
            "l50": self.l50,
            "quantiles": {f"{q:g}": self.quantile(q) if n else None for q in QUANTILES},
        }
