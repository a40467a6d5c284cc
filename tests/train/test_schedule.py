"""position -> source of a mixture: exact shares at the end of each block, a bound inside, no sample lost or repeated."""

from __future__ import annotations

from collections import OrderedDict
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharded_eden import Mixture, Stream
from sharded_eden.errors import UsageError
from sharded_eden.train.order import keep
from sharded_eden.train.schedule import Phase, Schedule, Skips, block_of, counts_after, integer_weights

WEIGHTS = (
    st.lists(st.one_of(st.just(0), st.integers(1, 1000)), min_size=1, max_size=60).filter(any).map(integer_weights)
)


@given(WEIGHTS, st.integers(0, 10**12 // 1024), st.integers(1, 5))
def test_counts_stay_within_one_sample_and_never_fall(weights, block, blocks):
    size = block_of(weights)
    total = sum(weights)
    last = counts_after(weights, block * size)
    for n in range(block * size, (block + blocks + 1) * size, size):
        counts = counts_after(weights, n)
        assert sum(counts) == n
        for weight, count, before in zip(weights, counts, last, strict=True):
            assert abs(Fraction(n * weight, total) - count) < 1
            assert count >= before
            assert count == 0 or weight
        last = counts


@settings(max_examples=40)
@given(WEIGHTS, st.integers(0, 2**40), st.integers(0, 10**12 // 1024))
def test_inside_a_block_the_bound_holds(weights, seed, block):
    schedule, size = Schedule([Phase(0, weights)], seed), block_of(weights)
    shares = [float(share) for share in Phase(0, weights).shares]
    begin = block * size
    source, nth = schedule.locate(range(begin, begin + size))
    for k, (share, before) in enumerate(zip(shares, counts_after(weights, begin), strict=True)):
        seen = np.cumsum(source == k)
        offset = np.arange(1, size + 1)
        # The offset from the exact share at the beginning of the block is less than one sample.
        start = before - float(Fraction(begin * weights[k], sum(weights)))
        assert np.abs(start + seen - share * offset).max() < 1 + size * share * (1 - share)
        assert nth[source == k].tolist() == list(range(before, before + int(seen[-1])))


PHASES = st.tuples(
    st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any), min_size=1, max_size=4),
    st.lists(st.integers(1, 1500), min_size=3, max_size=3),
)


@settings(max_examples=60)
@given(PHASES, st.integers(0, 99), st.randoms())
def test_each_source_is_read_in_its_order_across_phases(drawn, seed, choose):
    weights, lengths = drawn
    begins = np.cumsum([0, *lengths]).tolist()
    phases = [Phase(begin, integer_weights(each)) for begin, each in zip(begins, weights, strict=False)]
    schedule = Schedule(phases, seed)
    end = phases[-1].begin + 1200
    source, nth = schedule.locate(range(end))
    for k in range(3):
        assert nth[source == k].tolist() == list(range(np.count_nonzero(source == k)))
    for position in [0, end, *(choose.randrange(end) for _ in range(5)), *(p.begin for p in phases)]:
        assert schedule.counts(position) == np.bincount(source[:position], minlength=3).tolist()
    some = [choose.randrange(end) for _ in range(40)]  # any order, and positions several times
    again, ordinal = Schedule(phases, seed).locate(some)
    assert again.tolist() == source[some].tolist()
    assert ordinal.tolist() == nth[some].tolist()
    for phase in phases:  # a later phase changes nothing before it
        known = [each for each in phases if each.begin < phase.begin]
        if known:
            shorter, before = Schedule(known, seed).locate(range(phase.begin))
            assert shorter.tolist() == source[: phase.begin].tolist()
            assert before.tolist() == nth[: phase.begin].tolist()


def test_the_order_inside_a_block_is_that_of_the_keyed_permutation():
    one, other = (Schedule([Phase(0, (1, 1))], seed).locate(range(2048))[0] for seed in (1, 2))
    assert one.tolist() != other.tolist()
    assert one[:1024].tolist() != one[1024:].tolist()
    changes = np.count_nonzero(np.diff(one[:1024]))
    assert 440 < changes < 584, "placed at random, not alternately: 511 changes are expected, with a deviation of 16"


def test_far_positions_are_exact():
    weights = integer_weights([0.1, Fraction(1, 3), 0.5, Decimal("1e-5")])
    schedule, size = Schedule([Phase(0, weights)], 0), block_of(weights)
    begin = 10**12 // size * size
    for position in (begin, begin + size):
        for count, share in zip(schedule.counts(position), Phase(0, weights).shares, strict=True):
            assert abs(count - share * position) < 1
    source, nth = schedule.locate([begin + 3, 10**17])
    assert nth[0] in (schedule.counts(begin + 3)[source[0]],)
    assert nth[1] == schedule.counts(10**17)[source[1]]


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        ([0.3, 0.1, 0], (3, 1, 0)),
        ([6, 4], (3, 2)),
        ([np.float64(0.1), Fraction(9, 10)], (1, 9)),
        ([Decimal("0.25"), np.int64(3)], (1, 12)),
        ([7], (1,)),
        ([1e-3, 0.999], (1, 999)),
    ],
)
def test_weights_become_integers_of_their_exact_ratio(weights, whole):
    assert integer_weights(weights) == whole


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "1", None, True, Decimal("NaN"), 1j])
def test_what_is_no_weight_is_refused(weight):
    with pytest.raises(UsageError, match="a weight must be a number from 0 on, not "):
        integer_weights([1, weight])


def test_weights_that_cannot_be_kept_are_refused():
    with pytest.raises(UsageError, match="all 2 weights are 0"):
        integer_weights([0, 0.0])
    with pytest.raises(UsageError, match=r"weight 1\.0 is less than 1/1048576 of more than 1e308"):
        integer_weights([10**400, 1])
    with pytest.raises(UsageError, match=r"weight 1e-09 is less than 1/1048576 of 1\.0"):
        integer_weights([1e-9, 1 - 1e-9])
    assert block_of(integer_weights([1, (1 << 20) - 1])) == 1 << 20


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ([], "begins at position 0"),
        ([Phase(5, (1,))], "begins at position 0, not at"),
        ([Phase(0, (1,)), Phase(0, (1,))], "phases must ascend"),
        ([Phase(0, (1,)), Phase(9, (1, 1))], "the phase from position 9 has 2 weights, there are 1 sources"),
    ],
)
def test_phases_that_do_not_fit_are_refused(phases, words):
    with pytest.raises(UsageError, match=words):
        Schedule(phases, 1)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5)), max_size=6))
def test_skips_leave_out_exactly_their_ranges(drawn):
    ranges = [(first, first + more) for first, more in drawn]
    left_out = {p for first, last in ranges for p in range(first, last + 1)}
    if sum(last + 1 - first for first, last in ranges) != len(left_out):
        with pytest.raises(UsageError, match="overlapping ranges"):
            Skips(ranges)
        return
    kept = [p for p in range(200) if p not in left_out]
    assert list(Skips(ranges).place(range(len(kept)))) == kept


@pytest.mark.parametrize("each", [(3, 2), (-1, 2), 5, "ab", (1, 2, 3), (1.0, 2), (True, 3), None])
def test_what_is_no_range_is_refused(each):
    with pytest.raises(UsageError, match="skip takes"):
        Skips([each])


class Raced(OrderedDict):
    """Another thread removes everything between two steps of this one."""

    def get(self, key, default=None):
        found = super().get(key, default)
        self.clear()
        return found

    def __len__(self):
        length = super().__len__()
        self.clear()
        return length


def test_threads_may_remove_what_another_thread_uses(small):
    schedule = Schedule([Phase(0, (1, 3))], 0)
    blocks = [range(k, k + 8) for k in (0, 0, 1024, 2048, 3072, 0)]
    wanted = [[part.tolist() for part in Schedule(schedule.phases, 0).locate(block)] for block in blocks]
    schedule._blocks = Raced()
    schedule._blocks[0, 0] = schedule._block(0, 0)
    assert [[part.tolist() for part in schedule.locate(block)] for block in blocks] == wanted
    with small.dataset() as dataset:
        for stream, name in ((Stream(dataset), "_orders"), (Mixture([(dataset, 1)]), "_orders_of")):
            far = [k * len(dataset) for k in range(12)]
            wanted = stream.windows_at(far)
            setattr(stream, name, Raced(dict.fromkeys(range(100, 109))))
            assert [stream.windows_at([position])[0] for position in far] == wanted


def test_the_newest_are_kept():
    kept = OrderedDict()
    for k in range(5):
        assert keep(kept, k, -k, 3) == -k
    assert list(kept.items()) == [(2, -2), (3, -3), (4, -4)]
