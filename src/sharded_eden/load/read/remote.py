"""READ from object storage: addresses -> bases, by byte ranges that are fetched ahead.

Input: addresses, and memory to write to. Output: bases. Cost: about one request per window. Ranges of a call that lie close to
each other are merged into one request. `announce` asks for windows of later batches; their bytes wait here until they are read.

The bytes of a range are checked by `sharded_eden.storage.objects`. As for local files, page pointers must equal those in the
index. So an object that was replaced is an error.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sharded_eden.errors import DatabaseError, EdenError
from sharded_eden.load.read.plan import Planner, Reads, Request
from sharded_eden.storage.fetcher import Fetcher
from sharded_eden.storage.objects import Range, Version
from sharded_eden.storage.urls import object_name

MOST_OVERHEAD = 1.5
"""Ranges are merged while the request transfers at most so many times the bytes of its windows."""
MOST_MERGED_BYTES = 4 << 20
MOST_AHEAD_BYTES = 64 << 20
"""Announced bytes beyond which the oldest announcements are forgotten."""

Key = tuple[int, int]
"""The number of a sequence database, and an offset in it."""


class _Piece(NamedTuple):
    """The bytes of one read."""

    number: int
    """Of the request that brings them."""
    offset: int
    """Where they begin in its answer."""
    size_bytes: int


class Traffic(NamedTuple):
    """What was read from the storage."""

    requests: int
    """Requests whose bytes were read, or are no longer wanted."""
    size_bytes: int
    """The bytes of their answers."""
    waited_seconds: float
    """Time spent waiting for answers."""


class RangeReader:
    """Reads bases from object storage for one thread.

    Args:
        url: the folder of sequence databases.
        names: the samples.
        versions: the version of each database; None for those without windows.
        page_bytes: the page size of each.
        in_flight: requests at the same time.
        seconds: how long a request is tried.
    """

    cold_batches = 1
    """Batches always wait."""

    def __init__(
        self,
        url: str,
        names: Sequence[str],
        versions: Sequence[Version | None],
        page_bytes: Sequence[int],
        *,
        in_flight: int,
        seconds: float,
    ) -> None:
        self._url, self._names, self._versions = url, names, versions
        self._planner = Planner(page_bytes)
        self._fetcher = Fetcher(url, in_flight=in_flight, seconds=seconds)
        self._numbers = {number: number for number in range(len(names))}  # in place of file descriptors
        self._lock = threading.Lock()
        self._requests = self._bytes = 0
        self._waited_seconds = 0.0
        self._forget()

    def _forget(self) -> None:
        self._next_number = 0
        self._ahead: OrderedDict[Key, _Piece] = OrderedDict()
        self._ahead_bytes = 0
        self._uses: dict[int, int] = {}  # of each request: pieces that are not read yet
        self._sizes: dict[int, int] = {}  # of each request, in bytes
        self._answers: dict[int, memoryview] = {}
        self._errors: dict[int, EdenError] = {}

    @property
    def traffic(self) -> Traffic:
        """What was read so far. Announced requests count when they are read."""
        return Traffic(self._requests, self._bytes, self._waited_seconds)

    def announce(self, requests: Sequence[Request]) -> None:
        """Fetch what later batches read. An error is raised when it is read.

        Args:
            requests: see `read`; where the bases go does not matter.
        """
        scratch = memoryview(bytearray(max((to + bases for *_, bases, to in requests), default=0)))
        with self._lock:
            wanted: dict[Key, int] = {}
            samples, _, offsets, sizes = self._planner.plan(requests, scratch, self._numbers)
            for sample, offset, size_bytes in zip(samples, offsets, sizes, strict=True):
                known = self._ahead.get((sample, offset))
                if size_bytes and (known is None or known.size_bytes < size_bytes):
                    wanted[sample, offset] = max(size_bytes, wanted.get((sample, offset), 0))
            try:
                for key, piece in self._request(wanted.items()).items():
                    self._drop(key)
                    self._ahead[key] = piece
                    self._ahead_bytes += piece.size_bytes
            except BaseException:
                self._start_again()
                raise
            while self._ahead_bytes > MOST_AHEAD_BYTES:
                self._drop(next(iter(self._ahead)))

    def read(self, requests: Sequence[Request], memory: memoryview) -> None:
        """Read bases into memory.

        Args:
            requests: the windows; all have addresses.
            memory: bytes; the bases are written here.

        Raises:
            MissingDatabase: there is no such object.
            DatabaseError: a range cannot be fetched, or an object is not the one that was indexed.
        """
        with self._lock:
            self._read(self._planner.plan(requests, memory, self._numbers))

    def _read(self, reads: Reads) -> None:
        parts = [part for part in zip(*reads, strict=True) if part[3]]  # (sample, buffers, offset, bytes)
        try:
            pieces: list[_Piece | None] = []
            missing: dict[Key, int] = {}
            for sample, _, offset, size_bytes in parts:
                key = (sample, offset)
                piece = self._ahead.get(key)
                if piece is not None and piece.size_bytes >= size_bytes:
                    self._uses[piece.number] += 1
                    self._drop(key)
                    pieces.append(piece)
                else:
                    missing[key] = max(size_bytes, missing.get(key, 0))
                    pieces.append(None)
            fetched = self._request(missing.items())
            for (sample, buffers, offset, _), known in zip(parts, pieces, strict=True):
                self._scatter(buffers, fetched[sample, offset] if known is None else known)
            for piece in (*fetched.values(), *filter(None, pieces)):
                self._release(piece)
        except BaseException:
            self._start_again()
            raise
        if not self._planner.pointers_are_as_named():
            names = sorted({f"{self._url}/{object_name(self._names[part[0]])}" for part in parts})
            others = f" (or one of {len(names) - 1} others read with it)" if len(names) > 1 else ""
            raise DatabaseError(
                f"{names[0]}{others}: the pages of a contig are not where the index says: the object is not the file that was "
                "indexed. Upload the files again, and write the index of these files"
            )

    def _scatter(self, buffers: Sequence[Any], piece: _Piece) -> None:
        """Copy the bytes of a read to where they belong."""
        answer = self._answer(piece.number)
        at = piece.offset
        for buffer in buffers:
            buffer[:] = answer[at : at + len(buffer)]
            at += len(buffer)

    def _answer(self, number: int) -> memoryview:
        """Return the answer to a request, once it is there."""
        while number not in self._answers:
            if number in self._errors:
                raise self._errors[number]
            began = time.perf_counter()
            answer = self._fetcher.next_answer()
            self._waited_seconds += time.perf_counter() - began
            if answer.number not in self._uses:
                continue  # its announcement was forgotten
            if answer.body is None:
                self._errors[answer.number] = answer.error or DatabaseError(self._url)
            else:
                self._answers[answer.number] = answer.body
        return self._answers[number]

    def _request(self, wanted: Iterable[tuple[Key, int]]) -> dict[Key, _Piece]:
        """Ask for ranges, merged where they lie close to each other; return where the bytes of each will be."""
        pieces: dict[Key, _Piece] = {}
        asked: list[tuple[int, Range]] = []
        for group in merged(sorted((*key, size_bytes) for key, size_bytes in wanted)):
            sample, begin, _ = group[0]
            end = max(offset + size_bytes for _, offset, size_bytes in group)
            version = self._versions[sample]
            assert version is not None  # noqa: S101 - a sample with an address has a version
            number, self._next_number = self._next_number, self._next_number + 1
            asked.append((number, Range(object_name(self._names[sample]), begin, end - begin, version)))
            self._uses[number], self._sizes[number] = len(group), end - begin
            for _, offset, size_bytes in group:
                pieces[sample, offset] = _Piece(number, offset - begin, size_bytes)
        if asked:
            self._fetcher.request(asked)
        return pieces

    def _drop(self, key: Key) -> None:
        """Forget an announced piece."""
        piece = self._ahead.pop(key, None)
        if piece is not None:
            self._ahead_bytes -= piece.size_bytes
            self._release(piece)

    def forget(self, samples: Collection[int]) -> None:
        """Forget what was announced of sequence databases that are read from elsewhere from now on."""
        with self._lock:
            for key in [key for key in self._ahead if key[0] in samples]:
                self._drop(key)

    def _release(self, piece: _Piece) -> None:
        number = piece.number
        self._uses[number] -= 1
        if not self._uses[number]:
            del self._uses[number]
            self._requests += 1
            self._bytes += self._sizes.pop(number)
            self._answers.pop(number, None)
            self._errors.pop(number, None)

    def _start_again(self) -> None:
        """After an error: forget all answers, also those that are still to come."""
        self._fetcher.close()
        self._forget()

    def close(self) -> None:
        """End the process that fetches."""
        with self._lock:
            self._start_again()


def merged(ranges: Sequence[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Group ranges of the same object that one request gets.

    Args:
        ranges: (object, offset, bytes), sorted.

    Example:
        >>> merged([(0, 0, 100), (0, 120, 80), (0, 9000, 100)])
        [[(0, 0, 100), (0, 120, 80)], [(0, 9000, 100)]]
    """
    groups: list[list[tuple[int, int, int]]] = []
    owner, begin, end, useful = -1, 0, 0, 0
    for each in ranges:
        sample, offset, size_bytes = each
        new_end = max(end, offset + size_bytes)
        total = new_end - begin
        if sample == owner and total <= min(MOST_OVERHEAD * (useful + size_bytes), MOST_MERGED_BYTES):
            groups[-1].append(each)
            end, useful = new_end, useful + size_bytes
        else:
            groups.append([each])
            owner, begin, end, useful = sample, offset, offset + size_bytes, size_bytes
    return groups
