"""The order of the stream: nanoseconds per index, and memory compared with a stored permutation."""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from benchmarks.report import Result, Table, ratio, small
from sharded_eden.train.order import Order

VECTORS = (1, 8, 32, 1024, 65_536)
LENGTHS = {"10^6": 10**6, "10^9": 10**9, "2^30 + 1": 2**30 + 1, "2^62": 2**62}
STORED = 10**7
"""Windows of the permutation that is stored for comparison; one of 10^9 takes 8 GB."""
SEED = 42
MOST_NANOSECONDS = 1000.0
"""In vectors of 1,024, at most."""


def _nanoseconds(order: Order, vector: int, repeats: int) -> float:
    """Return the median time of one index in vectors of one size, at random positions."""
    rng = np.random.default_rng(SEED)
    calls = max(3, 4096 // vector)
    each = []
    for _ in range(repeats):
        positions = [rng.integers(0, order.length, vector) for _ in range(calls)]
        start = time.perf_counter()
        for some in positions:
            order(some)
        each.append((time.perf_counter() - start) / (calls * vector) * 1e9)
    return statistics.median(each)


def _peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    kept = work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return peak


def run(quick: bool, say: Callable[[str], None]) -> Result:
    """Measure times, then memory."""
    repeats = 3 if quick else 9
    times = Table(
        "Time of one index",
        f"Nanoseconds an index, median of {repeats} repeats at random positions. **Bold**: at most "
        f"{MOST_NANOSECONDS:,.0f} ns in vectors of 1,024. Walks are longest just above a power of two.",
        ["windows", *(f"vectors of {vector:,}" for vector in VECTORS)],
    )
    nanoseconds: dict[str, dict[int, float]] = {}
    for title, length in LENGTHS.items():
        say(f"order of {title}")
        order = Order(length, SEED, 0)
        nanoseconds[title] = {vector: _nanoseconds(order, vector, repeats) for vector in VECTORS}
        cells = []
        for vector, each in nanoseconds[title].items():
            reached = vector == 1024 and each <= MOST_NANOSECONDS
            cells.append(f"**{each:,.0f}**" if reached else f"{each:,.0f}")
        times.rows.append([title, *cells])

    say("memory")
    vector = np.arange(1024)
    ours = {title: _peak_bytes(lambda n=length: Order(n, SEED, 0)(vector)) for title, length in LENGTHS.items()}
    stored = _peak_bytes(lambda: np.random.default_rng(SEED).permutation(STORED)[vector])
    memory = Table(
        "Memory",
        "Peak of what numpy and Python allocate to make an order and ask it for 1,024 windows.",
        ["", "ours", f"a permutation of {STORED:,} that is stored"],
    )
    for title, peak in ours.items():
        memory.rows.append(
            [f"an order of {title}", f"{peak / 1024:,.0f} KiB", small(f"{ratio(stored / peak)} as much")]
        )
    return Result(
        "order", "The order", [times, memory], {"nanoseconds": nanoseconds, "peak_bytes": ours, "stored_bytes": stored}
    )
