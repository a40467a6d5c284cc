"""A limit on the bytes per second of many threads together.

Input: sizes of transfers, before each begins. Output: the thread waits until its transfer is within the limit, so that no more
than the limit times the seconds since the start is ever transferred.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PART_SECONDS = 0.25
"""Transfers are no longer than this at the limit, so that they come evenly."""
LEAST_PART_BYTES = 1 << 16


class Bandwidth:
    """The limit.

    Args:
        bytes_per_second: of all threads; None for no limit.
        clock: returns seconds.

    Example:
        >>> bandwidth = Bandwidth(8_000_000)
        >>> bandwidth.part_bytes(8 << 20)
        2000000
        >>> bandwidth.take(2_000_000)  # returns after 0.25 s
    """

    def __init__(self, bytes_per_second: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = bytes_per_second, clock
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._error: BaseException | None = None
        self._free = clock()  # when everything that was taken so far is transferred

    def part_bytes(self, most: int) -> int:
        """Return the size of a transfer, at most `most`."""
        return most if self._rate is None else min(most, max(LEAST_PART_BYTES, int(self._rate * PART_SECONDS)))

    def due(self, size_bytes: int) -> float:
        """Count a transfer, and return the seconds until it is within the limit."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free = max(self._free, now) + size_bytes / self._rate
            return self._free - now

    def take(self, size_bytes: int) -> None:
        """Wait until a transfer is within the limit.

        Raises:
            BaseException: the error of another transfer, see `close`.
        """
        if self._closed.wait(self.due(size_bytes)) and self._error is not None:
            raise self._error

    def close(self, error: BaseException) -> None:
        """End all waiting, also that of later transfers, by the error of one of them; the first error stays."""
        with self._lock:
            self._error = self._error or error
        self._closed.set()
