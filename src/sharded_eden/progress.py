"""The progress of long commands: callbacks, and the sums that they are called with.

Input: what tasks report. Output: calls of a `Progress` and a `Note`, a few times a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeAlias

Progress: TypeAlias = Callable[[int, int], object]
"""Called with the amount done and the total, in a unit that the step chooses (bytes of input, contigs)."""

Note: TypeAlias = Callable[[str], object]
"""Called with a short text about the current work: `1,204 records, 5.2 Gb, 310 Mb/s, SAMPLE1`."""

REPORT_SECONDS = 0.1
"""The least time between two reports of one `Meter`."""


class Meter:
    """Adds up the amount done and reports it, at most ten times a second."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._next_report = 0.0

    def reach(self, done: int) -> None:
        """Report how much is done."""
        if self._progress is not None and (now := time.monotonic()) >= self._next_report:
            self._next_report = now + REPORT_SECONDS
            self._progress(min(done, self._total), self._total)

    def finish(self) -> None:
        """Report that everything is done."""
        if self._progress is not None:
            self._progress(self._total, self._total)


class Tick(NamedTuple):
    """The progress of one task since it began."""

    task: Hashable
    done: int
    """In the unit of the total."""
    records: int
    bases: int
    sample: str
    """What the task works on, such as the name of a sample."""


class Ticker:
    """Reports the progress of one task, at most five times a second.

    Args:
        say: takes a `Tick`.
        task: the key of the task.
    """

    INTERVAL_SECONDS = 0.2

    def __init__(self, say: Callable[[Any], object], task: Hashable) -> None:
        self._say, self._task = say, task
        self._next = 0.0
        self.records = self.bases = 0

    def count(self, records: int, bases: int, done: int, sample: str) -> None:
        """Count more records and bases; `done` is the amount done of the whole task."""
        self.records += records
        self.bases += bases
        if (now := time.monotonic()) >= self._next:
            self._next = now + self.INTERVAL_SECONDS
            self._say(Tick(self._task, done, self.records, self.bases, sample))


class Totals:
    """Adds up the ticks of all tasks and of those that have ended, and calls both callbacks."""

    def __init__(self, progress: Progress | None, note: Note | None, total: int) -> None:
        self._meter = Meter(progress, total)
        self._note = note
        self._running: dict[Hashable, Tick] = {}
        self._done = self._records = self._bases = 0
        self._started = time.monotonic()

    def hear(self, tick: Tick) -> None:
        """Add the progress of a task."""
        self._running[tick.task] = tick
        self._tell(tick.sample)

    def end(self, task: Hashable, done: int, records: int, bases: int) -> None:
        """Add the totals of a task that has ended."""
        self._running.pop(task, None)
        self._done += done
        self._records += records
        self._bases += bases
        self._tell("")

    def finish(self) -> None:
        """Report that everything is done."""
        self._meter.finish()

    def _tell(self, sample: str) -> None:
        running = self._running.values()
        self._meter.reach(self._done + sum(tick.done for tick in running))
        if self._note is not None:
            records = self._records + sum(tick.records for tick in running)
            bases = self._bases + sum(tick.bases for tick in running)
            rate = bases / max(time.monotonic() - self._started, 1e-9)
            words = f"{records:,} records, {bases / 1e6:,.0f} Mb, {rate / 1e6:,.0f} Mb/s"
            self._note(f"{words}, {sample}" if sample else words)
