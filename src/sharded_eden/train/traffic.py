"""What batches of a stream cost where sequence databases are at a URL: requests, bytes, and time spent waiting.

Input: a stream that this process reads itself, without workers. Output: numbers per window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
