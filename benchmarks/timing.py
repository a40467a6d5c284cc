"""Interleaved timing: every contender visits the same windows in the same order, A B C A B C ...; medians of the repeats.

Rates are windows/s. A slow contender gets fewer windows per repeat, a shorter range of the same order, so that all take
about the same time; every repeat starts at another place of the order.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import Runner

FEWEST_WINDOWS = 4
MOST_WINDOWS = 1 << 17

Key = TypeVar("Key", bound=Hashable)
Timed = Callable[[int, int], float]
"""(first position in the order, windows) -> seconds."""


class ContenderFailed(Exception):
    """A contender returned an error; the others continue."""


@dataclass
class Rates:
    """The result of one contender."""

    windows: int
    """Windows of each repeat."""
    each: list[float] = field(default_factory=list)
    """Windows/s of each repeat."""

    @property
    def median(self) -> float:
        """The median of the repeats, windows/s."""
        return statistics.median(self.each)

    def over(self, other: Rates) -> float:
        """Return the speed relative to another contender: the median of the ratios of each repeat.

        A core that is slow for minutes then affects both.
        """
        return statistics.median(mine / its for mine, its in zip(self.each, other.each, strict=True))


def timed(runner: Runner, order: NDArray[np.int64]) -> Timed:
    """Return a function that times a runner on a range of an order, which wraps around."""

    def run(first: int, windows: int) -> float:
        stretch = order[np.arange(first, first + windows) % len(order)]
        gc.collect()
        start = time.perf_counter()
        runner(stretch)
        return time.perf_counter() - start

    return run


@dataclass
class Race(Generic[Key]):
    """All measurements of one run.

    Args:
        contenders: {key: (function that times it, windows per call)}.
        seconds: approximate time of each contender in a repeat.
        repeats: number of repeats.
    """

    contenders: Mapping[Key, tuple[Timed, int]]
    seconds: float
    repeats: int
    say: Callable[[str], None] = lambda text: None
    failures: dict[Key, str] = field(default_factory=dict)

    def run(self) -> dict[Key, Rates]:
        """Return the rates of all contenders."""
        rates: dict[Key, Rates] = {}
        for key, (run, step) in self.contenders.items():
            self.say(f"trying {key}")
            try:
                rates[key] = Rates(self._windows_for(run, step))
            except ContenderFailed as error:
                self.failures[key] = str(error)
        for repeat in range(self.repeats):
            for key, of_key in rates.items():
                if key in self.failures:
                    continue
                self.say(f"repeat {repeat + 1} of {self.repeats}: {key}")
                try:
                    of_key.each.append(of_key.windows / self.contenders[key][0](1000 * (repeat + 1), of_key.windows))
                except ContenderFailed as error:
                    self.failures[key] = str(error)
        return {key: of_key for key, of_key in rates.items() if key not in self.failures}

    def _windows_for(self, run: Timed, step: int) -> int:
        """Return the number of windows that fill the time, after a first run."""
        windows = max(step, FEWEST_WINDOWS)
        while True:
            elapsed = run(0, windows)
            fitting = windows * self.seconds / elapsed
            if elapsed > self.seconds / 8 or windows >= MOST_WINDOWS:
                break
            windows = min(MOST_WINDOWS, 8 * windows)
        whole = max(step, FEWEST_WINDOWS, min(MOST_WINDOWS, int(fitting)))
        return -(-whole // step) * step
