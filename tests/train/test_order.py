"""The order is a bijection, and standard tests cannot tell it from a uniform one."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharded_eden.errors import UsageError
from sharded_eden.shuffle import FEW
from sharded_eden.train.order import MAX_LENGTH, Order

LIMIT = 4.5
"""Standard deviations that a fixed-seed statistic may lie off: a chance of 1 in 150,000 for each."""


def z_of_chi_square(observed: np.ndarray, expected: float, freedom: int) -> float:
    """How many standard deviations a chi-square statistic lies above its mean (Wilson and Hilferty, 1931)."""
    chi = float(((observed - expected) ** 2).sum() / expected)
    return ((chi / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


@settings(max_examples=150, deadline=None)
@given(length=st.integers(0, 3000), seed=st.integers(0, 2**64), epoch=st.integers(0, 2**40))
def test_every_window_once(length, seed, epoch):
    assert sorted(Order(length, seed, epoch)(np.arange(length)).tolist()) == list(range(length))


@settings(max_examples=60, deadline=None)
@given(length=st.integers(2, MAX_LENGTH), seed=st.integers(0, 2**40), positions=st.lists(st.integers(0, 2**62 - 1)))
def test_any_length_at_any_position_alone_or_in_a_vector(length, seed, positions):
    order = Order(length, seed, 3)
    positions = [p % length for p in positions] + [0, length - 1]
    together = order(positions).tolist()
    assert all(0 <= window < length for window in together)
    assert together == [int(order([p])[0]) for p in positions]
    assert len(set(together)) == len(set(positions))


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 61), beyond=st.integers(-2, 2), seed=st.integers(0, 2**40), data=st.data())
def test_few_values_in_plain_integers_are_the_values_of_vectors(bits, beyond, seed, data):
    """Lengths around the powers of two: there the walks are longest."""
    length = max(1, 2**bits + beyond)
    order = Order(length, seed, 0)
    positions = data.draw(st.lists(st.integers(0, length - 1), min_size=40, max_size=60))
    together = order(positions).tolist()
    for size in (1, 2, FEW, FEW + 1, 3 * FEW):
        parts = [order(positions[k : k + size]).tolist() for k in range(0, len(positions), size)]
        assert [window for part in parts for window in part] == together


def test_the_ends_of_the_range():
    assert Order(0, 1, 0)([]).tolist() == []
    assert Order(1, 1, 0)([0]).tolist() == [0]
    assert Order(MAX_LENGTH, 1, 0)([0, MAX_LENGTH - 1]).dtype == np.int64
    for length in (-1, MAX_LENGTH + 1):
        with pytest.raises(UsageError, match=r"0 to 2\*\*62"):
            Order(length, 1, 0)
    for position in (5, 2**40):
        with pytest.raises(IndexError, match="outside an order of 5"):
            Order(5, 1, 0)([0, position])


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_every_permutation_is_equally_likely(length):
    seeds = 6000
    seen = Counter(tuple(Order(length, seed, 0)(np.arange(length)).tolist()) for seed in range(seeds))
    permutations = math.factorial(length)
    counts = np.array(list(seen.values()) + [0] * (permutations - len(seen)))
    assert z_of_chi_square(counts, seeds / permutations, permutations - 1) < LIMIT


@pytest.mark.parametrize("length", [10, 16, 17, 64, 100, 257, 1000])
def test_windows_are_uniform_over_positions(length):
    seeds = 2000
    visits = np.array([Order(length, seed, 0)(np.arange(length)) for seed in range(seeds)])
    counts = np.array([np.bincount(visits[:, p], minlength=length) for p in range(length)])
    assert abs(z_of_chi_square(counts, seeds / length, (length - 1) ** 2)) < LIMIT


@pytest.mark.parametrize("length", [1000, 4096, 100_003])
def test_neighbours_in_the_stream_are_no_neighbours_in_the_data(length):
    steps = np.concatenate([np.diff(Order(length, seed, 0)(np.arange(length))) for seed in range(8)]) % length
    bins = 97
    counts = np.bincount((steps - 1) * bins // (length - 1), minlength=bins)
    sizes = np.bincount((np.arange(1, length) - 1) * bins // (length - 1), minlength=bins)
    expected = sizes / sizes.sum() * counts.sum()
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi - (bins - 1)) / math.sqrt(2 * (bins - 1)) < LIMIT


@pytest.mark.parametrize("length", [1000, 65_537])
@pytest.mark.parametrize("lag", [1, 2, 64])
def test_no_serial_correlation(length, lag):
    visits = Order(length, 7, 1)(np.arange(length)).astype(float)
    correlation = np.corrcoef(visits[:-lag], visits[lag:])[0, 1]
    assert abs(correlation) * math.sqrt(length) < LIMIT


@pytest.mark.parametrize("length", [1000, 65_537])
def test_displacement_is_that_of_a_uniform_order(length):
    """The mean of |window - position| is N / 3, its variance N**2 / 18 (independent uniforms)."""
    mean = np.mean([np.abs(Order(length, s, 0)(np.arange(length)) - np.arange(length)).mean() for s in range(10)])
    assert abs(mean - length / 3) / (length / math.sqrt(18 * 10 * length)) < LIMIT


@pytest.mark.parametrize("other", [(42, 1), (43, 0), (42, 2), (41, 0), (42, 2**32), (42 + 2**32, 0)])
@pytest.mark.parametrize("length", [1000, 65_537])
def test_epochs_and_neighbouring_seeds_are_independent(length, other):
    one, two = Order(length, 42, 0)(np.arange(length)), Order(length, *other)(np.arange(length))
    assert abs(np.corrcoef(one, two)[0, 1]) * math.sqrt(length) < LIMIT
    assert (one == two).sum() < 12  # a uniform pair has about 1 in common
    steps = np.bincount((one - two) % length * 50 // length, minlength=50)
    assert abs(z_of_chi_square(steps, length / 50, 49)) < LIMIT


def test_a_prefix_of_a_huge_order_is_uniform():
    length = 10**9
    visits = np.concatenate([Order(length, seed, 0)(np.arange(5000)) for seed in range(20)])
    counts = np.bincount(visits * 1000 // length, minlength=1000)
    assert abs(z_of_chi_square(counts, len(visits) / 1000, 999)) < LIMIT
    low_bits = np.bincount(visits % 1024, minlength=1024)
    assert abs(z_of_chi_square(low_bits, len(visits) / 1024, 1023)) < LIMIT


def test_the_order_of_this_version_is_fixed():
    """A change here breaks every checkpoint: bump `state.VERSION` with it."""
    assert Order(1000, 42, 0)(np.arange(6)).tolist() == [674, 501, 571, 66, 414, 430]
    assert Order(10**9, 42, 1)(np.arange(3)).tolist() == [837474752, 166008271, 5169272]


@pytest.mark.parametrize("position", [-1, 10, 1 << 70])
@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_positions_outside_are_refused(position, kind):
    if kind is np.array and position == 1 << 70:
        kind = lambda values: np.array(values, dtype=object)  # noqa: E731
    with pytest.raises(IndexError, match="outside an order of 10 windows"):
        Order(10, 0, 0)(kind([3, position]))
