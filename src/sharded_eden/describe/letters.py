"""Counts of letters: GC, ambiguous and soft-masked shares.

Input: letters as bytes. Output: counts. Costs 1 to 4 ns a base: a few vectorised comparisons of blocks that fit into
the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharded_eden.format.schema import NUCLEOTIDES, STITCH_MARKS

BLOCK_BASES = 1 << 18
"""Letters that are counted at once."""

A, C, G, T, U, N, OTHER, LOWER = range(8)
"""The columns of counts. Each letter is in one of the first seven, in either case; lower-case letters are in LOWER, too."""
COLUMNS = 8

_LETTERS = (NUCLEOTIDES + NUCLEOTIDES.lower() + STITCH_MARKS).encode()


class StrangeLetter(ValueError):
    """A letter that no sequence may hold; `at` is its position."""

    def __init__(self, letter: int, at: int) -> None:
        super().__init__(f"{chr(letter)!r} at base {at}")
        self.letter, self.at = letter, at


def count_letters(
    letters: NDArray[np.uint8], ends: Sequence[int] | NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Count the letters of contigs that lie one after another.

    Args:
        letters: (L,) uint8.
        ends: where each contig ends, ascending; None for a single one.

    Returns:
        (contigs, 8) int64, see `A` to `LOWER`.

    Raises:
        StrangeLetter: a letter is neither an IUPAC nucleotide letter nor a stitch mark.

    Example:
        >>> count_letters(np.frombuffer(b"ACGTacNN", dtype=np.uint8)).tolist()
        [[2, 2, 1, 1, 0, 2, 0, 2]]
    """
    stops = [len(letters)] if ends is None else [int(end) for end in ends]
    counts = np.zeros((len(stops), COLUMNS), dtype=np.int64)
    first, begin = 0, 0  # the first contig of a block that has not ended, and where the block begins
    while begin < len(letters):
        until = min(begin + BLOCK_BASES, len(letters))
        last = first
        spans = []
        start = begin
        while last < len(stops) and start < until:
            spans.append((last, start - begin, min(stops[last], until) - begin))
            start = min(stops[last], until)
            if stops[last] <= until:
                last += 1
            else:
                break
        _count_block(letters[begin:until], spans, counts, begin)
        first, begin = last, until
    return counts


def _count_block(
    block: NDArray[np.uint8], spans: Sequence[tuple[int, int, int]], counts: NDArray[np.int64], offset: int
) -> None:
    """Add the letters of a block to the counts of its contigs; a span is (contig, from, to) in the block."""
    upper = block & 0xDF
    known = 0
    for column, letter in ((A, 65), (C, 67), (G, 71), (T, 84), (N, 78), (U, 85)):
        if column == U and known == len(block):  # U and letters for several bases are rare
            break
        known += _add(upper == letter, spans, counts[:, column])
    if known < len(block):
        if strange := block.tobytes().translate(None, _LETTERS):
            raise StrangeLetter(strange[0], offset + block.tobytes().index(strange[:1]))
        is_known = np.isin(upper, np.frombuffer(b"ACGTNU", dtype=np.uint8))
        _add(~is_known, spans, counts[:, OTHER])
    _add(block > 90, spans, counts[:, LOWER])


def _add(mask: NDArray[np.bool_], spans: Sequence[tuple[int, int, int]], out: NDArray[np.int64]) -> int:
    total = int(np.count_nonzero(mask))
    if total:
        for contig, start, stop in spans:
            out[contig] += np.count_nonzero(mask[start:stop])
    return total


GC_BINS = 101
"""GC in percent, rounded down: 0 to 100."""


@dataclass(kw_only=True, eq=False)
class LetterCounts:
    """The letters of many contigs, and the distribution of the GC share over contigs."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(COLUMNS, dtype=np.int64))
    """(8,) int64, see `A` to `LOWER`."""
    gc_contigs: NDArray[np.int64] = field(default_factory=lambda: np.zeros(GC_BINS, dtype=np.int64))
    """(101,) int64: contigs by their GC share in percent, rounded down. Contigs without A, C, G and T are in none."""
    gc_bases: NDArray[np.int64] = field(default_factory=lambda: np.zeros(GC_BINS, dtype=np.int64))
    """(101,) int64: the letters A, C, G and T of those contigs."""

    def add(self, counts: NDArray[np.int64]) -> None:
        """Add contigs, (contigs, 8) int64."""
        self.counts += counts.sum(axis=0)
        certain = counts[:, [A, C, G, T]].sum(axis=1)
        has = certain > 0
        percent = 100 * counts[has][:, [C, G]].sum(axis=1) // certain[has]
        np.add.at(self.gc_contigs, percent, 1)
        np.add.at(self.gc_bases, percent, certain[has])

    def merge(self, other: LetterCounts) -> None:
        """Add the contigs of another."""
        self.counts += other.counts
        self.gc_contigs += other.gc_contigs
        self.gc_bases += other.gc_bases

    @property
    def bases(self) -> int:
        """All letters that were counted."""
        return int(self.counts[: OTHER + 1].sum())

    @property
    def gc(self) -> float | None:
        """G and C among A, C, G and T; None without them."""
        certain = int(self.counts[[A, C, G, T]].sum())
        return int(self.counts[[C, G]].sum()) / certain if certain else None

    @property
    def ambiguous(self) -> int:
        """Letters other than A, C, G and T."""
        return int(self.counts[[U, N, OTHER]].sum())

    @property
    def soft_masked(self) -> int:
        """Lower-case letters: repeats in soft-masked genomes."""
        return int(self.counts[LOWER])

    def as_dict(self) -> dict[str, Any]:
        """Return counts and shares as plain values."""
        total = self.bases
        return {
            "letters": total,
            "a": int(self.counts[A]),
            "c": int(self.counts[C]),
            "g": int(self.counts[G]),
            "t": int(self.counts[T]),
            "u": int(self.counts[U]),
            "n": int(self.counts[N]),
            "other_ambiguous": int(self.counts[OTHER]),
            "gc_share": self.gc,
            "ambiguous": self.ambiguous,
            "ambiguous_share": self.ambiguous / total if total else None,
            "soft_masked": self.soft_masked,
            "soft_masked_share": self.soft_masked / total if total else None,
        }
