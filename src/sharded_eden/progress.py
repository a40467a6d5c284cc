"""How long commands tell what they have done: a callback, given by whoever shows it.

Nothing here prints. `cli.py` hands in a progress bar where there is a terminal; everyone else may hand in nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], object]
"""Called with what is done and the total, in a unit of the step's own choice (bytes of input, contigs)."""

REPORT_SECONDS = 0.1
"""The least time between two reports of one `Meter`."""


class Meter:
    """Adds up what is done and reports it, ten times a second at most."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._next_report = 0.0

    def reach(self, before: int, done: int) -> None:
        """Say that `done` of the present part is behind us, and `before` of the total in the parts before it."""
        if self._progress is not None and (now := time.monotonic()) >= self._next_report:
            self._next_report = now + REPORT_SECONDS
            self._progress(min(before + done, self._total), self._total)

    def finish(self) -> None:
        """Say that everything is done."""
        if self._progress is not None:
            self._progress(self._total, self._total)
