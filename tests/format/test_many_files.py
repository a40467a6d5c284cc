from __future__ import annotations

import threading
import time

import pytest

from sharded_eden.format import many_files
from sharded_eden.format.many_files import for_many_files

COUNT = 3 * many_files.PROBED + 17


@pytest.mark.parametrize("seconds", [0.0, 2 * many_files.SLOW_SECONDS])
def test_results_are_in_order_and_only_slow_work_is_done_by_threads(seconds):
    threads = set()

    def work(number):
        time.sleep(seconds) if seconds else None
        threads.add(threading.get_ident())
        return number * 2

    before = set(threading.enumerate())
    assert for_many_files(work, range(COUNT)) == [number * 2 for number in range(COUNT)]
    assert (len(threads) > 1) == bool(seconds)
    assert set(threading.enumerate()) <= before  # threads of other tests may end meanwhile


@pytest.mark.parametrize("items", [0, 1, many_files.PROBED, many_files.PROBED + 1])
def test_few_items(items):
    assert for_many_files(str, range(items)) == [str(item) for item in range(items)]


def test_the_first_error_is_raised_and_no_thread_is_left():
    done = []

    def work(number):
        time.sleep(2 * many_files.SLOW_SECONDS)
        done.append(number)
        if number in {many_files.PROBED + 3, COUNT - 1}:
            raise ValueError(number)

    before = set(threading.enumerate())
    with pytest.raises(ValueError, match=f"^{many_files.PROBED + 3}$"):
        for_many_files(work, range(COUNT * 10))
    assert set(threading.enumerate()) <= before  # threads of other tests may end meanwhile
    assert len(done) < COUNT * 10


@pytest.mark.parametrize("allowed", [0, 3])
def test_without_more_threads_the_work_is_done_one_by_one(allowed, monkeypatch):
    started, start = [], threading.Thread.start

    def limited(thread):
        if len(started) >= allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    def work(number):
        time.sleep(2 * many_files.SLOW_SECONDS)
        return -number

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert for_many_files(work, range(COUNT)) == [-number for number in range(COUNT)]
    assert len(started) == allowed
    assert not any(thread.is_alive() for thread in started)
