"""What all processes that read from the storage are started with.

They are started by their source text and not by `multiprocessing`, so the script of the caller is not imported again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sharded_eden.errors import printable
from sharded_eden.storage.objects import StorageError


def command(code: str, values: Sequence[Any]) -> list[str]:
    """Return the command that runs code with `sys.path` and some values, as JSON, in `sys.argv`."""
    paths = [os.fsdecode(each) for each in sys.path]  # some hold a Path
    return [sys.executable, "-c", code, json.dumps(paths), json.dumps(list(values))]


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Block SIGINT in the processes that the block starts: it would end them before they ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:  # the call that blocks it may raise the error of a signal that came just before
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def not_started(url: str, error: OSError) -> StorageError:
    """Return the error to raise where the system starts no process."""
    return StorageError(
        f"{printable(url)}: the process that reads it cannot be started ({error.strerror or error}). Use fewer workers, or "
        "raise the limits on processes (ulimit -u), open files (ulimit -n) or memory"
    )
