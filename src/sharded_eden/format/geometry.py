"""Which windows a contig has. Pure arithmetic on lengths: no file, no state, O(1) a contig.

    stride     |-----------|
    window 0   [===============]           usable = window_size - special_tokens bases are shown, the rest of the
    window 1               [===============]   row is BOS, SEP and EOS
    contig     ---------------------------------->

0-based, half-open: window i covers bases [i * stride, i * stride + window_size) of its contig, cut off at its end.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import UsageError, shown

MOST = (1 << 31) - 1
"""The largest number of bases of a contig: SQLite has no longer values."""


def integer(value: Any, name: str) -> int:
    """Return an argument as an int; Python and NumPy integers are accepted.

    Raises:
        UsageError: it is not an integer.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise UsageError(f"{name} must be an integer, not {shown(value)}") from None


@dataclass(frozen=True, kw_only=True)
class WindowGeometry:
    """How contigs are cut into windows.

    Raises:
        UsageError: a size below 1, or no room for a base beside the special tokens.

    Example:
        >>> from sharded_eden import WindowGeometry
        >>> geometry = WindowGeometry(window_size=8192, stride=7992)
        >>> geometry.count(20_000)
        2
    """

    window_size: int = 8192
    """Tokens of a training row, and bases that a window spans."""
    stride: int = 7992
    """Bases from the start of one window to the start of the next."""
    min_length: int = 0
    """Windows with fewer bases than this are left out."""
    special_tokens: int = 3
    """Tokens of a row that are not bases; the default is BOS, SEP and EOS."""
    keep_tail: bool = False
    """Add windows until every base of every contig is in a window."""

    def __post_init__(self) -> None:
        for name, least in (("window_size", 1), ("stride", 1), ("min_length", 0), ("special_tokens", 0)):
            value = integer(getattr(self, name), name)
            object.__setattr__(self, name, value)  # a NumPy integer would be stored as a BLOB
            if value > MOST:
                raise UsageError(f"{name} must be at most {MOST:,}, not {shown(value)}")
            if value < least:
                raise UsageError(f"{name} must be at least {least}, not {value}")
        if self.keep_tail and self.usable < 1:
            raise UsageError(
                f"keep_tail cannot show every base: window_size={self.window_size} leaves no room beside "
                f"special_tokens={self.special_tokens}"
            )

    @property
    def usable(self) -> int:
        """The bases of a window that fit into a row; 0 where the special tokens fill the row."""
        return max(0, self.window_size - self.special_tokens)

    def count(self, length: int) -> int:
        """Return the number of windows of a contig of `length` bases."""
        return int(self.counts(np.array([length], dtype=np.int64))[0])

    def counts(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of windows of each contig.

        Args:
            lengths: (C,) int64, bases.

        Returns:
            (C,) int64.
        """
        # 1 if L < window_size, else 1 + (L - window_size) // stride
        windows = 1 + np.maximum(lengths - self.window_size, 0) // self.stride
        if self.keep_tail:
            to_the_end = 1 + -(-np.maximum(lengths - self.usable, 0) // self.stride)
            with_a_base = 1 + np.maximum(lengths - 1, 0) // self.stride
            windows = np.maximum(windows, np.minimum(to_the_end, with_a_base))
        if self.min_length > 0:
            # Window i has min(window_size, L - i * stride) bases, never more than the window before it.
            long_enough = np.where(lengths >= self.min_length, 1 + (lengths - self.min_length) // self.stride, 0)
            windows = (
                np.minimum(windows, long_enough) if self.min_length <= self.window_size else np.zeros_like(windows)
            )
        return windows

    def least_lengths(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the least length of contigs that have these windows.

        The first window of a contig may be short. Later ones are whole, or with `keep_tail` have a base or more.

        Args:
            windows: (C,) int64, numbers of windows in their contigs.

        Returns:
            (C,) int64, bases.
        """
        is_later = windows > 0
        is_whole = is_later & (not self.keep_tail)
        return windows * self.stride + np.where(is_whole, self.window_size, np.maximum(is_later, self.min_length))

    def unseen_bases(self, lengths: NDArray[np.int64]) -> int:
        """Return how many bases of these contigs are in no row: tails, gaps, and contigs left out.

        Args:
            lengths: (C,) int64, bases.
        """
        windows = self.counts(lengths)
        last_start = np.maximum(windows - 1, 0) * self.stride
        # Each window before the last adds min(stride, usable) bases; the last one adds all its usable bases.
        shown = np.maximum(windows - 1, 0) * min(self.stride, self.usable)
        shown += np.where(windows > 0, np.minimum(self.usable, lengths - last_start), 0)
        return int((lengths - shown).sum())

    def as_metadata(self) -> dict[str, int]:
        """Return the rows that the `metadata` table holds about the geometry."""
        return {
            "window_size": self.window_size,
            "stride": self.stride,
            "window_min_length_threshold": self.min_length,
            "special_tokens": self.special_tokens,
            "keep_tail": int(self.keep_tail),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, int]) -> WindowGeometry:
        """Return the geometry that a window database states; what older databases leave out has its default."""
        return cls(
            window_size=metadata["window_size"],
            stride=metadata["stride"],
            min_length=metadata.get("window_min_length_threshold", 0),
            special_tokens=metadata.get("special_tokens", 3),
            keep_tail=bool(metadata.get("keep_tail", 0)),
        )


OVERLAP = 200
"""Bases that two windows of the default stride share, for windows of 1,024 bases or more. Source of 200: the window size 8,192
and stride 7,992 of the original loader."""


def default_stride(window_size: int, special_tokens: int = 3) -> int:
    """Return the stride that `precompute` uses where none is given.

    It is the window size less 200 bases from 1,024 on, four fifths of shorter windows, rounded down, and never more than the
    bases that a row shows, so that no base between two windows is left out.

    Raises:
        UsageError: an argument is not an integer.

    Example: `default_stride(8192)` is 7992, `default_stride(1024)` is 824, `default_stride(512)` is 409.
    """
    window_size, special_tokens = integer(window_size, "window_size"), integer(special_tokens, "special_tokens")
    stride = window_size - OVERLAP if window_size >= 1024 else window_size * 4 // 5
    return max(1, min(stride, window_size - special_tokens))


def compute_num_windows(seq_len: int, window_size: int = 8192, stride: int = 7992) -> int:
    """Return the default number of windows of a contig of `seq_len` bases.

    Example:
        >>> from sharded_eden import compute_num_windows
        >>> compute_num_windows(20_000, 8192, 7992)
        2
    """
    return WindowGeometry(window_size=window_size, stride=stride).count(seq_len)
