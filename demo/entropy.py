"""Order-0 entropy: the mean of -ln(frequency of the base) over all bases, in nats.

Input: sequences as text. Output: numbers. Pure functions: one pass over the bases, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

Counts = tuple[int, int, int, int]
"""Numbers of A, C, G and T."""


def base_counts(sequences: Iterable[str]) -> Counts:
    """Count A, C, G and T over all sequences, ignoring case; other letters are ignored."""
    a = c = g = t = 0
    for sequence in sequences:
        upper = sequence.upper()
        a, c, g, t = a + upper.count("A"), c + upper.count("C"), g + upper.count("G"), t + upper.count("T")
    return a, c, g, t


def entropy_of_counts(counts: Counts) -> float:
    """Return -sum p ln p of the frequencies that `counts` gives; 0.0 if all counts are 0."""
    total = sum(counts)
    return sum(n / total * math.log(total / n) for n in counts if n)


def order0_entropy(sequences: Iterable[str]) -> float:
    """Return the order-0 entropy of all sequences together, in nats per base; at most ln 4."""
    return entropy_of_counts(base_counts(sequences))


def order0_entropy_within(samples: Mapping[str, Iterable[str]]) -> float:
    """Return the mean of the order-0 entropies of the samples, weighted by their bases, in nats per base.

    The harder baseline: it knows the genome of every base. Never above `order0_entropy` of the pooled bases.
    """
    counts = [base_counts(sequences) for sequences in samples.values()]
    total = sum(map(sum, counts))
    return sum(sum(c) / total * entropy_of_counts(c) for c in counts if any(c))
