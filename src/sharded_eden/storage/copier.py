"""The process that copies whole sequence databases to a cache folder while a job reads.

Of all processes of a node that read, one at a time has such a child: the one that got the lock on the folder, which the child
holds until it ends. It ends with its parent, and the next process that asks starts another one, which goes on with the copy
that was stopped. Copies with the most windows in the split per byte come first, by name where they are equal.

    worker ──index, folder, limit──▶ child: 2 requests at a time ──▶ .KEY.partial ─digest, fsync, rename─▶ KEY.MTIME_NS.sqlite
           ◀─what went wrong, at its end─
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sharded_eden.errors import DatabaseError, EdenError, WriteError, printable, warn
from sharded_eden.format.index import IndexFile, identity_of, index_path
from sharded_eden.format.publish import sync, write_error, writing
from sharded_eden.storage.copies import continue_copy, digest_of
from sharded_eden.storage.copy_folder import NO_DIGEST, Room, Wanted, complete_path, copying_lock, partial_path
from sharded_eden.storage.fetcher import end_with
from sharded_eden.storage.in_use import locked_alone
from sharded_eden.storage.objects import Objects, Version
from sharded_eden.storage.start import command, without_ctrl_c
from sharded_eden.storage.urls import object_name

logger = logging.getLogger(__name__)

REQUESTS_AT_ONCE = 2
"""Few, so that windows are not kept waiting."""
NICE = 10
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 60.0, 3600.0
"""After an error, and before looking for room again."""
END_SECONDS = 2.0

_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sharded_eden.storage.copier import serve; "
    "serve(*json.loads(sys.argv[2]))"
)


class CopySettings(NamedTuple):
    """What is copied, and where to."""

    url: str
    window_db: str
    """Its index names the objects."""
    folder: str
    limit_bytes: int
    seconds: float
    """How long a request is tried."""


def wanted_of(file: IndexFile, url: str) -> list[Wanted | None]:
    """Return the sequence databases of an index that names objects, in its order; None for those without windows."""
    objects = file.meta["remote"]["objects"]
    return [
        Wanted.of(
            url,
            object_name(name),
            Version(identity_of(sample).size_bytes, *objects[name]),
            sample["digest"].tobytes(),
        )
        if name in objects
        else None
        for name, sample in zip(file.meta["samples"], file.samples, strict=True)
    ]


def in_order(file: IndexFile, url: str) -> list[Wanted]:
    """Return the sequence databases in the order in which they are copied: by windows per byte, then by name."""
    windows = np.zeros(len(file.samples), dtype=np.int64)
    ends = np.append(file.firsts[1:], file.meta["total_windows"])
    np.add.at(windows, file.runs["sample"], ends - file.firsts)
    known = [(each, count) for each, count in zip(wanted_of(file, url), windows.tolist(), strict=True) if each]
    known.sort(key=lambda pair: (-pair[1] / max(1, pair[0].version.size_bytes), pair[0].name))
    return [each for each, _ in known]


class Copier:
    """Starts the process that copies, where no other process of the node has one.

    Args:
        settings: what is copied.
        wanted: the sequence databases, in any order.
    """

    def __init__(self, settings: CopySettings, wanted: Sequence[Wanted]) -> None:
        self._settings, self._wanted = settings, wanted
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before, self._pause = 0.0, FIRST_PAUSE_SECONDS
        self.is_idle = False
        """Whether nothing is copied now: what is missing does not fit, or the last attempt failed."""

    def tend(self) -> None:
        """Start the process if it is needed; note that it has ended. Costs a lock where another process copies.

        Raises:
            DatabaseError: an object does not have the bytes that were indexed.
        """
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._note_end()
        if time.monotonic() >= self._not_before:
            try:
                self._start()
            except OSError as error:
                self._wait(f"{printable(self._settings.folder)}: {error.strerror}")

    def look_again(self) -> None:
        """Look at once for what is to be copied: copies were lost."""
        self._not_before = 0.0

    def _start(self) -> None:
        folder = Path(self._settings.folder)
        with locked_alone(copying_lock(folder)) as lock:
            if lock is None:
                return
            room = Room(folder, self._settings.limit_bytes)
            if not any(map(room.fits, self._wanted)):
                self._not_before = time.monotonic() + FIRST_PAUSE_SECONDS
                self.is_idle = True
                return
            with without_ctrl_c():
                self._process = subprocess.Popen(
                    command(_CODE, [*self._settings, os.getpid()]),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    pass_fds=[lock],
                )
                self._end = weakref.finalize(self, _end, self._process, os.getpid())
            self.is_idle = False
            logger.info("copying sequence databases from %s to %s", self._settings.url, folder)

    def _note_end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.stdout is None:
            return
        self._end.detach()
        with process.stdout:
            answer = process.stdout.read()
        try:
            kind, text = json.loads(answer)
        except ValueError:
            kind, text = "", f"the process that copies has ended (exit status {process.returncode})"
        if kind == _DONE:
            self._pause = FIRST_PAUSE_SECONDS
            logger.info("%s", text)
        elif kind == _WRONG:
            raise DatabaseError(text)
        else:
            self._wait(text)

    def _wait(self, problem: str) -> None:
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        self._not_before = time.monotonic() + pause
        self.is_idle = True
        warn(
            f"sequence databases are not copied to {printable(self._settings.folder)} at the moment, and windows are read by "
            f"ranges: {problem}. The next attempt is in {pause:.0f} s"
        )

    def close(self) -> None:
        """End the process. In a forked child, nothing is done: it belongs to the parent."""
        if self._process is not None:
            self._end()
            self._process = None


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return
    process.kill()  # what it has written is continued
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    if process.stdout is not None:
        process.stdout.close()


_DONE, _PROBLEM, _WRONG = "done", "problem", "wrong"


def serve(url: str, window_db: str, folder: str, limit_bytes: int, seconds: float, parent: int) -> None:
    """Copy until all is complete or nothing more fits; write [kind, text] as JSON to the standard output."""
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent
    os.nice(NICE)
    kind = _PROBLEM
    try:
        file = IndexFile(index_path(window_db))
        copied = _copy_all(Objects(url, seconds), Path(folder), in_order(file, url), limit_bytes)
        kind, text = _DONE, f"copied {copied} sequence databases to {folder}"
    except _OtherBytes as error:
        kind, text = _WRONG, str(error)
    except EdenError as error:
        text = str(error)
    except Exception as error:  # the job goes on without copies
        text = printable(f"{type(error).__name__}: {error}", 300)
    sys.stdout.write(json.dumps([kind, text]))
    sys.stdout.flush()
    os._exit(0)  # without waiting for obstore's threads


class _OtherBytes(DatabaseError):
    """An object has the ETag of the index, but not the bytes that were indexed."""


def _copy_all(objects: Objects, folder: Path, wanted: Sequence[Wanted], limit_bytes: int) -> int:
    """Copy what fits; return how many were copied."""
    with writing(folder):
        room = Room(folder, limit_bytes)
    copied = 0
    for each in wanted:  # what did not fit once does not fit later
        if not room.fits(each):
            continue
        try:
            with writing(folder):
                room.reserve(each)
                room.completed(each, _copy(objects, folder, each))
        except (WriteError, _OtherBytes):
            room.release(each)
            raise
        copied += 1
    return copied


def _copy(objects: Objects, folder: Path, each: Wanted) -> Path:
    """Copy one sequence database, check and publish it; return its path."""
    partial = partial_path(folder, each.key)
    try:
        if each.digest == NO_DIGEST:  # a copy that a power failure has damaged would not be detected
            partial.unlink(missing_ok=True)
        kept = continue_copy(objects, each.name, each.version, partial, at_once=REQUESTS_AT_ONCE)
        if each.digest != NO_DIGEST and digest_of(partial) != each.digest:
            partial.unlink()
            if not kept:
                raise _OtherBytes(
                    f"{printable(objects.url)}/{each.name}: its bytes are not those of the file that was indexed (XXH3-128). "
                    "Upload that file, or index the files that were uploaded"
                )
            return _copy(objects, folder, each)
        descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            mtime_ns = os.fstat(descriptor).st_mtime_ns
        finally:
            os.close(descriptor)
        path = complete_path(folder, each.key, mtime_ns)
        os.replace(partial, path)
        sync(folder)
    except EdenError:  # a missing object is an OSError, too
        raise
    except OSError as error:
        raise write_error(partial, error.strerror or str(error)) from error
    return path
