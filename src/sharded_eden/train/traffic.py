"""What batches of a stream cost where sequence databases are at a URL: requests, bytes, and time spent waiting.

Input: a stream that this process reads itself, without workers. Output: numbers per window.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from sharded_eden.load.locate.remote import RemoteAddresses
from sharded_eden.train.statistics import arrivals
from sharded_eden.train.stream import Stream

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class StorageRate:
    """What windows cost, read by one process from sequence databases at a URL."""

    requests_per_window: float
    bytes_per_window: float
    waiting_share: float
    """The share of the time that is spent waiting for the storage (0 to 1)."""


@dataclass(frozen=True, kw_only=True)
class CopiesRate:
    """What reading from local copies of the sequence databases at a URL brings, in one process."""

    databases: int
    """Sequence databases that have windows."""
    copied: int
    """Those that were read from copies at the end."""
    seconds: float
    """How long it took until all that fit were there."""
    copying_windows_per_second: float | None
    """While they were copied; None if there was nothing to copy."""
    windows_per_second: float
    """Afterwards."""


def datasets_of(stream: Stream) -> list[Any]:
    """Return the dataset of a stream, or those of a mixture."""
    dataset: Any = stream.dataset
    return list(getattr(dataset, "datasets", [dataset]))


class TrafficCounter:
    """Counts what is read from the storage since it was made.

    Args:
        stream: the stream.
    """

    def __init__(self, stream: Stream) -> None:
        self._remote = [each._addresses for each in datasets_of(stream) if isinstance(each._addresses, RemoteAddresses)]
        self._batches, self._seconds = 0, 0.0
        self._before = self._traffic()

    def _traffic(self) -> list[float]:
        return [sum(each) for each in zip(*(addresses.traffic for addresses in self._remote), strict=True)]

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches, and count them and the time until each arrives."""
        for batch, seconds in arrivals(batches):
            self._seconds += seconds
            self._batches += 1
            yield batch

    def rate(self, batch_size: int) -> StorageRate | None:
        """Return what the batches cost; None where all sequence databases are local files.

        Args:
            batch_size: windows of a batch.
        """
        if not self._remote:
            return None
        requests, size_bytes, waited = (now - then for now, then in zip(self._traffic(), self._before, strict=True))
        windows = self._batches * batch_size
        return StorageRate(
            requests_per_window=requests / windows,
            bytes_per_window=size_bytes / windows,
            waiting_share=min(1.0, waited / self._seconds),
        )


def copies_rate(
    stream: Stream, batches: Callable[[], Iterable[Any]], rate_of: Callable[[Iterable[Any]], float]
) -> CopiesRate:
    """Return the rates while sequence databases are copied, until all that fit are complete, and afterwards.

    Args:
        stream: the stream, whose datasets were opened with `cache_bytes`.
        batches: returns batches of it without end.
        rate_of: returns the windows/s of batches that it takes.

    Raises:
        DatabaseError: an object does not have the bytes that were indexed.
    """
    remote = [each._addresses for each in datasets_of(stream) if isinstance(each._addresses, RemoteAddresses)]

    def until_complete() -> Iterator[Any]:
        for batch in batches():  # reading the first one starts the process that copies
            if not any(addresses.copies[2] for addresses in remote):
                return
            yield batch

    begun, counted = time.perf_counter(), 0
    for batch in until_complete():
        counted += len(next(iter(batch.values())))
    seconds = time.perf_counter() - begun
    return CopiesRate(
        databases=sum(addresses.copies[0] for addresses in remote),
        copied=sum(addresses.copies[1] for addresses in remote),
        seconds=seconds,
        copying_windows_per_second=counted / seconds if counted else None,
        windows_per_second=rate_of(batches()),
    )
