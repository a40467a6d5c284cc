"""The limit on bytes per second, by a clock of the test."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_eden.storage.bandwidth import Bandwidth


class Clock:
    """Time that stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(
    st.integers(1, 10**9),
    st.lists(st.tuples(st.integers(1, 10**7), st.floats(0, 100)), min_size=1, max_size=50),
)
def test_never_more_than_the_limit_since_the_start(rate, transfers):
    clock = Clock()
    bandwidth, total = Bandwidth(rate, clock=clock), 0
    for size_bytes, pause in transfers:
        seconds = bandwidth.due(size_bytes)
        total += size_bytes
        assert seconds >= 0
        assert total <= rate * (clock.now + seconds - 100.0) * (1 + 1e-6) + 0.1  # the seconds are rounded
        clock.now += pause  # other threads may ask before this one has waited


def test_no_faster_after_a_pause_and_no_slower_than_the_limit():
    clock = Clock()
    bandwidth = Bandwidth(1000, clock=clock)
    assert [bandwidth.due(500) for _ in range(4)] == [0.5, 1.0, 1.5, 2.0]
    clock.now += 60.0
    assert bandwidth.due(500) == 0.5


def test_parts_take_a_quarter_of_a_second():
    assert Bandwidth(4_000_000).part_bytes(8 << 20) == 1_000_000
    assert Bandwidth(10**9).part_bytes(8 << 20) == 8 << 20
    assert Bandwidth(1000).part_bytes(8 << 20) == 1 << 16
    assert Bandwidth(None).part_bytes(8 << 20) == 8 << 20


def test_without_a_limit_nothing_waits():
    assert Bandwidth(None).due(10**12) == 0.0


def test_closing_ends_a_wait_of_days_by_the_first_error():
    bandwidth = Bandwidth(1)
    ended = []

    def wait() -> None:
        try:
            bandwidth.take(10**6)
        except OSError as error:
            ended.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    bandwidth.close(OSError("first"))
    bandwidth.close(OSError("second"))
    thread.join()
    assert ended == ["first"]
    with pytest.raises(OSError, match="first"):
        bandwidth.take(0)
