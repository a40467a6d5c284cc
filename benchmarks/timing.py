"""Side by side: every contender visits the same windows in the same random order, A B C A B C ..., medians of the repeats.

Rates are windows/s. What is slow is given fewer windows a repeat, a shorter stretch of the same order, so that each takes
about as long as the others; every repeat starts at another place of the order.
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
    """A contender gave an error instead of an answer; the others go on."""


@dataclass
class Rates:
    """What one contender did."""

    windows: int
    """Windows of each repeat."""
    each: list[float] = field(default_factory=list)
    """Windows/s of each repeat."""

    @property
    def median(self) -> float:
        """The median of the repeats, windows/s."""
        return statistics.median(self.each)

    def over(self, other: Rates) -> float:
        """Return how many times as fast as another this is: the median over the repeats, each with the other's own.

        Cores that are slow for minutes are slow for both.
        """
        return statistics.median(mine / its for mine, its in zip(self.each, other.each, strict=True))


def timed(runner: Runner, order: NDArray[np.int64]) -> Timed:
    """Return what times a runner on a stretch of an order, which is walked in a circle."""

    def run(first: int, windows: int) -> float:
        stretch = order[np.arange(first, first + windows) % len(order)]
        gc.collect()
        start = time.perf_counter()
        runner(stretch)
        return time.perf_counter() - start

    return run


@dataclass
class Race(Generic[Key]):
    """All that is measured in one run.

    Args:
        contenders: {key: how to time it, how many windows it takes at once}.
        seconds: how long each contender runs in a repeat, about.
        repeats: how often.
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
        """Return how many windows fill the time, after a first touch."""
        windows = max(step, FEWEST_WINDOWS)
        while True:
            elapsed = run(0, windows)
            fitting = windows * self.seconds / elapsed
            if elapsed > self.seconds / 8 or windows >= MOST_WINDOWS:
                break
            windows = min(MOST_WINDOWS, 8 * windows)
        whole = max(step, FEWEST_WINDOWS, min(MOST_WINDOWS, int(fitting)))
        return -(-whole // step) * step
