"""What belongs to one thread of one process: SQLite connections cross neither a fork nor a pickle.

Source: https://www.sqlite.org/howtocorrupt.html, section 2.6: a connection that was carried through fork() must not be used
in the child, and not be closed there either.
"""

from __future__ import annotations

import os
import resource
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_inherited: list[object] = []
"""What the parent process had open when it forked this one: never used here, and never closed here either."""


class PerThread(Generic[T]):
    """One `T` for each thread that asks, made on first use; a forked child and an unpickled copy start with none.

    Args:
        make: makes a `T`; called in the thread that will use it.
        close: closes a `T`; called only in the process that made it.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], None]) -> None:
        self._make = make
        self._close = close
        self._start_empty()

    def _start_empty(self) -> None:
        self._pid = os.getpid()
        self._local = threading.local()
        self._all: weakref.WeakSet[Any] = weakref.WeakSet()

    def get(self) -> T:
        """Return the `T` of this thread."""
        if self._pid != os.getpid():
            _inherited.append((self._local, list(self._all)))
            self._start_empty()
        try:
            value: T = self._local.value
        except AttributeError:
            value = self._local.value = self._make()
            self._all.add(value)
        return value

    def close(self) -> None:
        """Close what this process has open, in every thread; what a parent process opened is left alone."""
        if self._pid != os.getpid():
            return
        opened = list(self._all)
        self._start_empty()
        for value in opened:
            self._close(value)

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make, "_close": self._close}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_empty()


def connection_budget() -> int:
    """Return how many databases one process may hold open: a third of its file descriptors.

    Forked children inherit the descriptors of their parent, and the trainer needs some too. The soft limit is raised to the
    hard one first.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # some systems refuse a hard limit of "infinity"
            pass
    return 4096 if soft == resource.RLIM_INFINITY else max(4, soft // 3)
