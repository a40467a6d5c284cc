"""position -> (source, position in that source's own stream): the order of a weighted mixture, O(1) in memory. Pure.

Positions are divided into blocks of B. Let w_i be the integer weight of source i, W their sum, and n the position at the end of
a block. Source i has had n * w_i / W samples there, rounded by the method of largest remainders (Hamilton's method), so it is
always less than one sample away from its exact share. B is at least W / w_i for each weight above 0: rounded counts then never
fall from one block to the next. All of it is integer arithmetic, so nothing drifts at large positions.

Inside a block, the keyed permutation of `sharded_eden.shuffle` places the samples. Each source's stream is read in its own
order. So after any number of positions, each source has shown the first samples of its stream, none twice, and a change of
the weights loses and repeats nothing. Inside a block, the count of a source differs from its exact share by less than
1 + B * f * (1 - f), where f = w_i / W.

Source of the rounding: Balinski and Young, "Fair Representation", 2nd edition, 2001, chapter 3.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from numbers import Rational
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import UsageError, shown
from sharded_eden.shuffle import Permutation
from sharded_eden.train.order import keep
from sharded_eden.train.state import MAX_POSITION

LEAST_BLOCK = 1024
MOST_BLOCK = 1 << 20
"""Bounds of B, in positions. The least share of a source is `1 / MOST_BLOCK`."""

KEPT_BLOCKS = 2
"""Blocks whose places are kept: 16 B bytes each."""

Weights = Sequence[Any] | Mapping[str, Any]


class Phase(NamedTuple):
    """A range of positions with its own weights; it ends where the next one begins."""

    begin: int
    weights: tuple[int, ...]
    """Integer weights without a common divisor, one for each source."""

    @property
    def shares(self) -> list[Fraction]:
        """The exact share of each source."""
        total = sum(self.weights)
        return [Fraction(weight, total) for weight in self.weights]


class _Block(NamedTuple):
    source: NDArray[np.int64]  # (B,)
    nth: NDArray[np.int64]  # (B,): how many samples of the same source are before it


def integer_weights(weights: Sequence[Any]) -> tuple[int, ...]:
    """Return weights as integers of the same ratio, without a common divisor.

    A float counts as the decimal number that Python prints: 0.1 is exactly 1/10.

    Raises:
        UsageError: a weight is not a number from 0 on, all are 0, or one is less than 1 / 2**20 of their sum.

    Example:
        `integer_weights([0.3, 0.1, 0])` is `(3, 1, 0)`.
    """
    exact = [_fraction(weight) for weight in weights]
    total = sum(exact)
    if not total:
        raise UsageError(f"a mixture needs a weight above 0, but all {len(exact)} weights are 0")
    least = min(weight for weight in exact if weight)
    if least * MOST_BLOCK < total:
        raise UsageError(
            f"weight {_rounded(least)} is less than 1/{MOST_BLOCK} of {_rounded(total)}, the sum of the weights: raise it, or "
            "set it to 0"
        )
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    return tuple(weight // divisor for weight in whole)


def _rounded(value: Fraction | int) -> str:
    try:
        return str(float(value))
    except OverflowError:
        return "more than 1e308"


def _fraction(weight: Any) -> Fraction:
    value = weight.item() if isinstance(weight, np.generic) else weight
    if isinstance(value, float) and math.isfinite(value):
        value = Decimal(repr(value))
    is_number = isinstance(value, Rational | Decimal) and not isinstance(value, bool)
    if not is_number or (isinstance(value, Decimal) and not value.is_finite()) or value < 0:
        raise UsageError(f"a weight must be a number from 0 on, not {shown(weight)}")
    return Fraction(value)


def counts_after(weights: Sequence[int], positions: int) -> list[int]:
    """Return how many of the first positions each source has, at the end of a block: (S,), their sum is `positions`.

    Args:
        weights: integers, see `integer_weights`.
        positions: n.

    Example:
        `counts_after([1, 1, 1], 4)` is `[2, 1, 1]`: among equal remainders, the first source gets the sample.
    """
    total = sum(weights)
    parts = [divmod(positions * weight, total) for weight in weights]
    counts = [whole for whole, _ in parts]
    by_remainder = sorted(range(len(weights)), key=lambda k: -parts[k][1])  # stable: equal ones in the order of sources
    for k in by_remainder[: positions - sum(counts)]:
        counts[k] += 1
    return counts


def block_of(weights: Sequence[int]) -> int:
    """Return B, the positions of a block: a power of two, so large that each source with a weight has one of them."""
    needed = -(-sum(weights) // min(weight for weight in weights if weight))
    return max(LEAST_BLOCK, 1 << (needed - 1).bit_length())


class Schedule:
    """Which source each position shows.

    Args:
        phases: with ascending `begin`, the first from position 0.
        seed: decides the places inside blocks.

    Raises:
        UsageError: phases that do not ascend, or have other numbers of weights.
    """

    def __init__(self, phases: Sequence[Phase], seed: int) -> None:
        self.phases = list(phases)
        self.seed = seed
        begins = [phase.begin for phase in self.phases]
        if not begins or begins[0] != 0:
            raise UsageError(f"the first phase of a mixture begins at position 0, not at {shown(begins[:1])}")
        for before, after in zip(self.phases, self.phases[1:], strict=False):
            if after.begin <= before.begin:
                raise UsageError(f"phases must ascend, but one from {after.begin} follows one from {before.begin}")
            if len(after.weights) != len(before.weights):
                raise UsageError(
                    f"the phase from position {after.begin} has {len(after.weights)} weights, there are "
                    f"{len(before.weights)} sources"
                )
        self._begins = begins
        self.block_sizes = [block_of(phase.weights) for phase in self.phases]
        self._blocks: OrderedDict[tuple[int, int], _Block] = OrderedDict()
        self._before: list[list[int]] = [[0] * len(self.phases[0].weights)]
        """The samples of each source before each phase."""
        for phase in begins[1:]:
            self._before.append(self.counts(phase))

    def counts(self, position: int) -> list[int]:
        """Return how many samples of each source the positions before this one have, (S,)."""
        number = max(bisect_right(self._begins, position - 1, hi=len(self._before)) - 1, 0)
        phase, size = self.phases[number], self.block_sizes[number]
        block, inside = divmod(position - phase.begin, size)
        counts = counts_after(phase.weights, block * size)
        if inside:
            shown_inside = np.bincount(self._block(number, block).source[:inside], minlength=len(counts)).tolist()
            counts = [count + more for count, more in zip(counts, shown_inside, strict=True)]
        return [before + count for before, count in zip(self._before[number], counts, strict=True)]

    def locate(self, positions: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of each position, and the position in the stream of that source: (n,) int64 each."""
        first = min(positions, default=0)
        number = bisect_right(self._begins, first) - 1
        end_of_phase = self._begins[number + 1] if number + 1 < len(self._begins) else math.inf
        size = self.block_sizes[number]
        block = (first - self._begins[number]) // size
        begin = self._begins[number] + block * size
        if max(positions, default=0) < min(begin + size, end_of_phase):  # as in most batches
            found = self._block(number, block)
            inside = np.array(positions, dtype=np.int64) - begin
            return found.source[inside], found.nth[inside]
        source = np.empty(len(positions), dtype=np.int64)
        nth = np.empty(len(positions), dtype=np.int64)
        by_block: dict[tuple[int, int], list[int]] = {}
        for k, position in enumerate(positions):
            number = bisect_right(self._begins, position) - 1
            block = (position - self._begins[number]) // self.block_sizes[number]
            by_block.setdefault((number, block), []).append(k)
        for (number, block), places in by_block.items():
            begin = self._begins[number] + block * self.block_sizes[number]
            inside = np.array([positions[k] - begin for k in places])
            found = self._block(number, block)
            source[places], nth[places] = found.source[inside], found.nth[inside]
        return source, nth

    def _block(self, number: int, block: int) -> _Block:
        """Return the places of a block: where the phase ends does not matter, so a later phase changes nothing before it."""
        key = number, block
        found = self._blocks.get(key)
        if found is None:
            phase, size = self.phases[number], self.block_sizes[number]
            before, after = (counts_after(phase.weights, n * size) for n in (block, block + 1))
            shares = np.array(after) - np.array(before)
            place = Permutation(size, "mixture", self.seed, phase.begin, block)(np.arange(size))
            source = np.repeat(np.arange(len(shares)), shares)[place]
            by_source = np.argsort(source, kind="stable")
            nth = np.empty(size, dtype=np.int64)
            nth[by_source] = np.arange(size) - np.repeat(np.cumsum(shares) - shares, shares)
            nth += np.array(before, dtype=np.int64)[source] + np.array(self._before[number], dtype=np.int64)[source]
            found = keep(self._blocks, key, _Block(source, nth), KEPT_BLOCKS)
        else:
            with suppress(KeyError):  # another thread has removed it
                self._blocks.move_to_end(key)
        return found


class Skips:
    """Ranges of positions that are left out: count without them -> position.

    Args:
        ranges: (first, last) pairs, both left out, in any order.

    Raises:
        UsageError: a range is not a pair of integers from 0 on, ends before it begins, or overlaps another.

    Example:
        `Skips([(2, 3)]).place([0, 1, 2])` is `[0, 1, 4]`.
    """

    def __init__(self, ranges: Sequence[Sequence[int]]) -> None:
        self.ranges: list[tuple[int, int]] = []
        for first, last in sorted(_pair(each) for each in ranges):
            if self.ranges and first <= self.ranges[-1][1]:
                raise UsageError(f"skip has overlapping ranges {self.ranges[-1]} and {(first, last)}")
            if self.ranges and first == self.ranges[-1][1] + 1:
                self.ranges[-1] = self.ranges[-1][0], last
            else:
                self.ranges.append((first, last))
        self._from: list[int] = []
        self._skipped = [0]
        for first, last in self.ranges:
            self._from.append(first - self._skipped[-1])
            self._skipped.append(self._skipped[-1] + last + 1 - first)

    def place(self, counted: Sequence[int]) -> Sequence[int]:
        """Return the position of each sample, counted without the ranges."""
        if not self.ranges:
            return counted
        return [number + self._skipped[bisect_right(self._from, number)] for number in counted]


def _pair(each: Any) -> tuple[int, int]:
    is_pair = isinstance(each, Sequence) and not isinstance(each, str) and len(each) == 2
    if not is_pair or not all(isinstance(p, int | np.integer) and not isinstance(p, bool) for p in each):
        raise UsageError(f"skip takes (first, last) pairs of positions, not {shown(each)}")
    first, last = int(each[0]), int(each[1])
    if not 0 <= first <= last < MAX_POSITION:
        raise UsageError(f"skip takes (first, last) with 0 <= first <= last < 2**62, not {shown(each)}")
    return first, last
