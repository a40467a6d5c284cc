"""The end of a worker process that was started with "spawn": it waits for the thread that sends its batches.

PyTorch gives up the lock of Python while it frees a tensor. A thread that does so while the interpreter ends aborts the
process ("terminate called without an active exception"), and the main process raises "DataLoader worker (pid N) is killed by
signal: Aborted". The thread of the queue of batches frees a tensor for each one that it has pickled, and a worker that is
stopped in the middle of an epoch does not wait for it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import sys
import threading
import time

SECONDS = 2.0
"""How long a worker waits at its end."""

_registered = False


def wait_for_senders_at_exit() -> None:
    """In a worker process, wait at its end until no thread of a queue pickles or frees a batch.

    A forked worker ends without running this function, and without ending its interpreter.
    """
    global _registered  # noqa: PLW0603 - one registration for each process
    if not _registered:
        _registered = True
        atexit.register(_wait_for_senders)


def _wait_for_senders() -> None:
    # While a worker is being unpickled, its parent is not known yet. So this is asked at the end.
    if multiprocessing.parent_process() is None:
        return
    deadline = time.monotonic() + SECONDS
    for thread in threading.enumerate():
        was_idle = False
        while thread.name == "QueueFeederThread" and thread.is_alive() and time.monotonic() < deadline:
            if (idle := _is_idle(thread)) and was_idle:
                break
            was_idle = idle
            thread.join(0.02)


def _is_idle(thread: threading.Thread) -> bool:
    """Return whether a thread waits for a batch or for room in the pipe: it holds no tensor, and may wait forever."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_name in {"wait", "_send"}  # of a Condition, and of a Connection
