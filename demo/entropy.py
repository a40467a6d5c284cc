"""The order-0 entropy of sequences: what a model that knows nothing but how frequent each base is would lose on them."""

from __future__ import annotations

import math
from collections.abc import Iterable


def order0_entropy(sequences: Iterable[str]) -> float:
    """Return -sum(p ln p) over A, C, G and T, in nats a base; other letters are not counted.

    Source: Shannon, "A mathematical theory of communication", 1948.
    """
    counts = dict.fromkeys("ACGT", 0)
    for sequence in sequences:
        upper = sequence.upper()
        for base in counts:
            counts[base] += upper.count(base)
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values() if n)
