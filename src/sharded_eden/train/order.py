"""(seed, epoch, position) -> window index: the order of each pass over the data, O(1) in memory. Pure.

The construction and its sources are in `sharded_eden.shuffle`. tests/train/test_order.py shows that standard tests cannot tell
it from a uniform one.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import TypeVar

from sharded_eden.shuffle import MAX_LENGTH, Permutation

__all__ = ["MAX_LENGTH", "Order", "keep"]

Key = TypeVar("Key")
Value = TypeVar("Value")


def keep(kept: OrderedDict[Key, Value], key: Key, value: Value, most: int) -> Value:
    """Store a value that was computed, remove the oldest beyond `most`, and return the value. Several threads may do so."""
    kept[key] = value
    with suppress(KeyError):  # other threads have removed all
        while len(kept) > most:
            kept.popitem(last=False)
    return value


class Order(Permutation):
    """The order in which epoch `epoch` visits `length` windows: `order(positions)` -> (n,) int64 window indices.

    Args:
        length: N, the number of windows, 0 to 2**62.
        seed: the job's seed.
        epoch: the pass over the data; each has another order.

    Raises:
        UsageError: a length outside that range.
    """

    def __init__(self, length: int, seed: int, epoch: int) -> None:
        super().__init__(length, "order", seed, epoch)
