"""Order-0 entropy: what a reader who knows only how often each base occurs pays per base, in nats.

In: sequences as text. Out: numbers. Pure; one pass over the bases, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

UNIFORM_NATS = math.log(4)
"""The entropy of bases that are all equally frequent: 1.386 nats."""


def base_counts(sequences: Iterable[str]) -> tuple[int, int, int, int]:
    """Count A, C, G and T over all sequences, in either case; other letters are left out."""
    counts = [0, 0, 0, 0]
    for sequence in sequences:
        for i, (upper, lower) in enumerate(("Aa", "Cc", "Gg", "Tt")):
            counts[i] += sequence.count(upper) + sequence.count(lower)
    return (counts[0], counts[1], counts[2], counts[3])


def order0_entropy(counts: Sequence[int]) -> float:
    """Give the entropy in nats per base of the frequencies behind `counts`; 0.0 where all are zero."""
    total = sum(counts)
    return sum(-n / total * math.log(n / total) for n in counts if n)


def order0_entropy_within(counts_by_sample: Mapping[str, Sequence[int]]) -> float:
    """Give the mean of the samples' own order-0 entropies, weighted by their bases.

    Never above the entropy of the pooled counts: it also knows which sample a base is from. The harder baseline.
    """
    total = sum(sum(counts) for counts in counts_by_sample.values())
    return sum(sum(counts) / total * order0_entropy(counts) for counts in counts_by_sample.values() if sum(counts))
