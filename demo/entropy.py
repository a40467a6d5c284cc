"""Order-0 entropy: what someone who knows only how often each base occurs pays for a base, in nats.

In: sequences as text. Out: numbers. Pure: one pass over the bases, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

Counts = tuple[int, int, int, int]
"""How many A, C, G and T."""


def base_counts(sequences: Iterable[str]) -> Counts:
    """Count A, C, G and T over all sequences, upper and lower case alike; other letters are left out."""
    a = c = g = t = 0
    for sequence in sequences:
        upper = sequence.upper()
        a, c, g, t = a + upper.count("A"), c + upper.count("C"), g + upper.count("G"), t + upper.count("T")
    return a, c, g, t


def entropy_of_counts(counts: Counts) -> float:
    """Give -sum p ln p of the frequencies behind `counts`; 0.0 where there are none."""
    total = sum(counts)
    return sum(n / total * math.log(total / n) for n in counts if n)


def order0_entropy(sequences: Iterable[str]) -> float:
    """Give the order-0 entropy of all the sequences taken together, in nats a base; at most ln 4."""
    return entropy_of_counts(base_counts(sequences))


def order0_entropy_within(samples: Mapping[str, Iterable[str]]) -> float:
    """Give the mean of the samples' own order-0 entropies, each base counting once, in nats a base.

    The harder baseline: it knows of every base which genome it is from. Never above `order0_entropy` of the pooled bases.
    """
    counts = [base_counts(sequences) for sequences in samples.values()]
    total = sum(map(sum, counts))
    return sum(sum(c) / total * entropy_of_counts(c) for c in counts if any(c))
