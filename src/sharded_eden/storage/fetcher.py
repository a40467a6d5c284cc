"""A process that fetches byte ranges for one worker, many at a time.

obstore's threads do not survive a fork, and a worker may be forked at any time. So requests are made by a child process that is
started, not forked: `Fetcher` starts it, sends it ranges over a socket, and takes the answers as they arrive.
The child ends when its parent closes the socket or ends. Credentials stay in the environment of both.

    worker ──[(number, Range), ...]──▶ child: threads ──HTTP──▶ storage
           ◀──number, status, bytes───
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import struct
import subprocess
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

from sharded_eden.errors import DatabaseError, EdenError, MissingDatabase, MissingExtra, UsageError
from sharded_eden.storage.objects import Objects, Range, StorageError
from sharded_eden.storage.start import command, not_started, without_ctrl_c

GRACE_SECONDS = 10.0
"""What the process may take beyond the time of one request: to start, and to pass on an answer."""
END_SECONDS = 2.0
"""How long a process is given to end."""

_HEADER = struct.Struct("<QB")
_ERRORS: tuple[type[EdenError], ...] = (DatabaseError, StorageError, MissingDatabase, UsageError, MissingExtra)
_FETCHED, _ARRIVING, *_KINDS = range(2 + len(_ERRORS))

_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sharded_eden.storage.fetcher import serve; "
    "serve(*json.loads(sys.argv[2]))"
)


class Answer(NamedTuple):
    """One answer."""

    number: int
    body: memoryview | None
    """The bytes; None after an error."""
    error: EdenError | None


class Fetcher:
    """The process of this thread that fetches ranges; it starts with the first request.

    Args:
        url: the folder of objects.
        in_flight: requests at the same time.
        seconds: how long a request is tried.
    """

    def __init__(self, url: str, *, in_flight: int, seconds: float) -> None:
        self._settings = (url, in_flight, seconds)
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def request(self, wanted: Sequence[tuple[int, Range]]) -> None:
        """Ask for ranges, each with a number of the caller's."""
        if self._connection is None:
            self._start()
        try:
            self._connection.send(wanted)  # type: ignore[union-attr]
        except OSError as error:
            raise self._ended() from error

    def next_answer(self) -> Answer:
        """Return the next answer of those that were asked for.

        Raises:
            DatabaseError: none comes in the time of one request, or the process has ended.
        """
        connection = self._connection
        assert connection is not None  # noqa: S101 - something was requested
        status = _ARRIVING
        while status == _ARRIVING:
            if not connection.poll(self._seconds + GRACE_SECONDS):
                raise StorageError(f"{self._settings[0]}: no answer in {self._seconds + GRACE_SECONDS:.0f} s")
            try:
                message = memoryview(connection.recv_bytes())
            except (EOFError, OSError) as error:
                raise self._ended() from error
            number, status = _HEADER.unpack_from(message)
        body = message[_HEADER.size :]
        if status == _FETCHED:
            return Answer(number, body, None)
        kind, text = _ERRORS[_KINDS.index(status)], str(body, "utf-8")
        return Answer(number, None, MissingExtra("obstore", "cloud") if kind is MissingExtra else kind(text))

    def _start(self) -> None:
        arguments = command(_CODE, [*self._settings, os.getpid()])
        try:
            ours, theirs = socket.socketpair()
            with theirs, without_ctrl_c():
                try:
                    self._process = subprocess.Popen(arguments, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
                except BaseException:
                    ours.close()
                    raise
                self._connection = Connection(ours.detach())
                self._end = weakref.finalize(self, _end, self._process, self._connection, os.getpid())
        except OSError as error:
            raise not_started(self._settings[0], error) from error

    def _ended(self) -> DatabaseError:
        status = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                status = self._process.wait(END_SECONDS)
        return StorageError(f"{self._settings[0]}: the process that fetches from it has ended (exit status {status})")

    def close(self) -> None:
        """End the process. In a forked child, nothing is done: it belongs to the parent."""
        if self._connection is not None:
            self._end()
            self._connection = self._process = None


def _end(process: subprocess.Popen[bytes], connection: Connection, owner: int) -> None:
    if os.getpid() != owner:
        return
    connection.close()
    process.terminate()  # a forked child may hold the socket open
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(url: str, in_flight: int, seconds: float, parent: int) -> None:
    """Fetch what arrives on file descriptor 0, until it is closed or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which may go on
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    connection = Connection(os.dup(0))
    answers: queue.SimpleQueue[tuple[bytes, bytes | memoryview]] = queue.SimpleQueue()
    threading.Thread(target=_send, args=(connection, answers), daemon=True).start()
    objects: Objects | None = None
    problem: EdenError | None = None
    try:
        objects = Objects(url, seconds)
    except EdenError as error:
        problem = error

    def fetch(number: int, wanted: Range) -> None:
        try:
            if objects is None:
                raise problem or EdenError(url)
            body = objects.read(wanted, arrived=lambda: answers.put((_HEADER.pack(number, _ARRIVING), b"")))
        except EdenError as error:
            answers.put(_failed(number, error))
        except BaseException as error:  # whatever it is, obstore's panics too, the worker must not wait for it
            answers.put(_failed(number, DatabaseError(f"{url}/{wanted.name}: {type(error).__name__}")))
        else:
            answers.put((_HEADER.pack(number, _FETCHED), body))

    pool, has_threads = ThreadPoolExecutor(in_flight), False
    while True:
        try:
            asked: Sequence[tuple[int, Range]] = connection.recv()
        except (EOFError, OSError):
            os._exit(0)  # threads may wait for the storage
        for number, wanted in asked:
            try:
                pool.submit(fetch, number, wanted)
                has_threads = True
            except RuntimeError as error:  # no thread can be started: those that are there take it from the queue
                if not has_threads:
                    answers.put(_failed(number, _without_threads(url, in_flight, error)))


def _without_threads(url: str, in_flight: int, error: RuntimeError) -> StorageError:
    return StorageError(
        f"{url}: no thread can be started to fetch from it ({error}). Lower requests_in_flight={in_flight} or the number of "
        "workers, or raise the limit on threads (ulimit -u)"
    )


def _failed(number: int, error: EdenError) -> tuple[bytes, bytes]:
    kind = _ERRORS.index(type(error)) if type(error) in _ERRORS else 0
    return _HEADER.pack(number, _KINDS[kind]), str(error).encode("utf-8", "replace")


def _send(connection: Connection, answers: queue.SimpleQueue[tuple[bytes, bytes | memoryview]]) -> None:
    while True:
        header, body = answers.get()
        try:
            connection.send_bytes(header + bytes(body))
        except OSError:
            os._exit(0)


def end_with(parent: int) -> None:
    """End this process soon after its parent."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)
