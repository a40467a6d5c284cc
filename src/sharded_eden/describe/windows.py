"""What the windows of contigs show, and which option would show the rest. Arithmetic on lengths, O(1) a contig.

Input: lengths of contigs and the numbers of their windows. Output: counts of bases.

    contig     --------------------------------------------->
    window 0   [============]
    window 1            [============]                 the overlap is shown twice
    shown      ======================                  the rest is a tail: --keep-tail shows it

Windows 0 to n - 1 of a contig are a prefix. Contigs whose windows are no prefix, because `--max-ambiguous` left some out, are
counted window by window.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharded_eden.describe.packing import RowLengths
from sharded_eden.format.geometry import WindowGeometry

KEEP_TAIL, MIN_LENGTH, BOTH, STRIDE, LEFT_OUT, ROOM = (
    "keep_tail",
    "window_min_length_threshold",
    "keep_tail_and_threshold",
    "stride",
    "left_out_windows",
    "special_tokens",
)
REASONS = (KEEP_TAIL, MIN_LENGTH, BOTH, STRIDE, LEFT_OUT, ROOM)
"""Why bases are in no window, named after the option that would show them."""


def shown_by_first(
    geometry: WindowGeometry, lengths: NDArray[np.int64], windows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return how many different bases the first windows of each contig show, (C,) int64.

    Args:
        geometry: how contigs are cut.
        lengths: (C,) int64, bases.
        windows: (C,) int64, the number of windows.
    """
    before = np.maximum(windows - 1, 0)
    last = np.clip(lengths - before * geometry.stride, 0, geometry.usable)
    return np.asarray(np.where(windows > 0, before * min(geometry.stride, geometry.usable) + last, 0))


def rows_of_first(
    geometry: WindowGeometry, lengths: NDArray[np.int64], windows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the bases in the rows of the first windows of each contig, (C,) int64; bases in two windows count twice."""
    full = np.clip((lengths - geometry.usable) // geometry.stride + 1, 0, windows)
    short = windows - full
    # The sum of the starts of the windows that are not full.
    starts = geometry.stride * (full + windows - 1) * short // 2
    return np.asarray(full * geometry.usable + short * lengths - starts)


def unseen_by_reason(
    geometry: WindowGeometry, lengths: NDArray[np.int64], windows: NDArray[np.int64]
) -> dict[str, int]:
    """Return the bases that the windows of these contigs do not show, by the option that would show them.

    The windows are those that the geometry makes. Without zero values; the sum is `geometry.unseen_bases(lengths)`.

    Args:
        geometry: how contigs are cut.
        lengths: (C,) int64, bases.
        windows: (C,) int64, `geometry.counts(lengths)`.
    """
    if geometry.usable < 1:
        return _positive({ROOM: int(lengths.sum())})

    def shown(**changes: Any) -> NDArray[np.int64]:
        other = replace(geometry, **changes)
        return shown_by_first(other, lengths, other.counts(lengths))

    now = shown_by_first(geometry, lengths, windows)
    longer, tails, both = shown(min_length=0), shown(keep_tail=True), shown(keep_tail=True, min_length=0)
    return _positive(
        {
            KEEP_TAIL: int((tails - now).sum()),
            MIN_LENGTH: int((longer - now).sum()),
            BOTH: int((both - tails - longer + now).sum()),
            STRIDE: int((lengths - both).sum()),
        }
    )


def _positive(reasons: dict[str, int]) -> dict[str, int]:
    return {reason: bases for reason, bases in reasons.items() if bases}


@dataclass(kw_only=True, eq=False)
class WindowCounts:
    """The windows of contigs, and the bases that their rows show."""

    geometry: WindowGeometry
    contigs: int = 0
    """Contigs that have a window."""
    windows: int = 0
    bases: int = 0
    """Bases of those contigs."""
    bases_in_rows: int = 0
    """Bases of all rows; a base that is in two windows counts twice."""
    bases_shown: int = 0
    """Bases that are in at least one window."""
    unseen: dict[str, int] = field(default_factory=dict)
    """Bases of those contigs in no window, by the option that would show them: see `REASONS`."""
    rows: RowLengths = field(default_factory=RowLengths)

    def add(self, lengths: NDArray[np.int64], windows: NDArray[np.int64]) -> None:
        """Add contigs with windows 0 to n - 1 each, as the geometry makes them, (C,) int64 each."""
        self.contigs += len(lengths)
        self.windows += int(windows.sum())
        self.bases += int(lengths.sum())
        self.bases_in_rows += int(rows_of_first(self.geometry, lengths, windows).sum())
        self.bases_shown += int(shown_by_first(self.geometry, lengths, windows).sum())
        self.rows.add(self.geometry, lengths, windows)
        self._leave(unseen_by_reason(self.geometry, lengths, windows))

    def add_listed(self, length: int, windows: NDArray[np.int64]) -> None:
        """Add one contig with any windows.

        Args:
            length: bases.
            windows: (n,) int64, `window_in_seq_idx`, ascending; a window may be there more than once.
        """
        geometry = self.geometry
        starts = windows * geometry.stride
        ends = np.minimum(starts + geometry.usable, length)
        in_rows = ends - starts
        begins = np.maximum(starts, np.concatenate([[0], ends])[:-1])  # without what the window before shows
        shown = int(np.maximum(ends - begins, 0).sum())
        contig = np.array([length], dtype=np.int64)
        expected = geometry.counts(contig)
        reasons = unseen_by_reason(geometry, contig, expected)
        left_out = length - shown - sum(reasons.values())
        self.contigs += 1
        self.windows += len(windows)
        self.bases += length
        self.bases_in_rows += int(in_rows.sum())
        self.bases_shown += shown
        self.rows.add_listed(geometry, in_rows)
        self._leave({**reasons, LEFT_OUT: left_out})

    def _leave(self, reasons: dict[str, int]) -> None:
        for reason, bases in reasons.items():
            if bases:
                self.unseen[reason] = self.unseen.get(reason, 0) + bases

    def merge(self, other: WindowCounts) -> None:
        """Add the windows of another."""
        for name in ("contigs", "windows", "bases", "bases_in_rows", "bases_shown"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.rows.merge(other.rows)
        self._leave(other.unseen)

    @property
    def useful_tokens(self) -> int:
        """Tokens of all rows that are not padding: bases and special tokens."""
        return self.bases_in_rows + self.windows * self.geometry.special_tokens

    @property
    def useful_padded(self) -> float | None:
        """The share of useful tokens with one window in each row; None without windows."""
        tokens = self.windows * self.geometry.window_size
        return self.useful_tokens / tokens if tokens else None

    def as_dict(self) -> dict[str, Any]:
        """Return counts and shares as plain values."""
        return {
            "windows": self.windows,
            "contigs_with_windows": self.contigs,
            "windows_per_contig": self.windows / self.contigs if self.contigs else None,
            "bases_of_these_contigs": self.bases,
            "bases_in_rows": self.bases_in_rows,
            "bases_shown": self.bases_shown,
            "bases_not_shown": self.bases - self.bases_shown,
            "not_shown_by_option": dict(self.unseen),
            "times_shown": self.bases_in_rows / self.bases_shown if self.bases_shown else None,
            "useful_tokens": self.useful_tokens,
            "useful_share_padded": self.useful_padded,
        }
