"""Objects of one thread of one process: SQLite connections must not be used after a fork, and cannot be pickled.

Source: https://www.sqlite.org/howtocorrupt.html, section 2.6: a connection that was carried through fork() must not be used
in the child, and not be closed there either.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, TypeVar

import apsw

T = TypeVar("T")

CLOSE_SECONDS = 30.0
"""How long closing waits for a query of another thread."""

PAUSES = (0.01, 0.02, 0.04, 0.08, 0.16)
"""Seconds between attempts to open a file while other threads use the last file descriptors."""

budgeting = threading.Lock()
"""Held while a thread takes its share of the free file descriptors."""

_inherited: list[object] = []
"""The objects that the parent process had open at the fork: this process never uses or closes them."""

_instances: weakref.WeakValueDictionary[int, PerThread[Any]] = weakref.WeakValueDictionary()


class PerThread(Generic[T]):
    """One `T` for each thread, made on first use; a forked child and an unpickled copy start with none.

    Args:
        make: makes a `T`; called in the thread that will use it.
        close: closes a `T`; called only in the process that made it.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], None]) -> None:
        self._make = make
        self._close = close
        self._start_empty()

    def _start_empty(self) -> None:
        self._local = threading.local()
        self._all: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        _instances[id(self)] = self
        _watch_forks()

    def opened(self) -> list[T]:
        """Return the open objects of all threads."""
        return alive(self._all)

    def get(self) -> T:
        """Return the `T` of this thread."""
        try:
            value: T = self._local.value
        except AttributeError:
            value = self._local.value = self._make()
            self._all[id(value)] = value
        return value

    def close(self) -> None:
        """Close the objects of all threads of this process, but not those that a parent process opened."""
        opened = self.opened()
        self._start_empty()
        for value in opened:
            self._close_when_idle(value)

    def _close_when_idle(self, value: T) -> None:
        """Close a `T`; wait while another thread uses its SQLite connection."""
        until = time.monotonic() + CLOSE_SECONDS
        while True:
            try:
                self._close(value)
            except apsw.ThreadingViolationError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.001)
            else:
                return

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make, "_close": self._close}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_empty()


def alive(values: weakref.WeakValueDictionary[int, T]) -> list[T]:
    """Return the values of a weak dictionary."""
    # valuerefs() makes its list in one step, so that no other thread can change the dictionary meanwhile.
    return [value for ref in values.valuerefs() if (value := ref()) is not None]


@lru_cache(maxsize=1)
def _watch_forks() -> None:
    """In a forked child, start with no objects, and keep those of the parent alive: freeing them would close them."""
    os.register_at_fork(
        before=lambda: _inherited.append([(each._local, each.opened()) for each in alive(_instances)]),
        after_in_parent=_inherited.pop,
        after_in_child=_empty_all,
    )


def _empty_all() -> None:
    budgeting._at_fork_reinit()  # type: ignore[attr-defined]  # as in the standard library: another thread may have held it
    for each in alive(_instances):
        each._start_empty()


def connection_budget(promised: int = 0) -> int:
    """Return how many databases a thread may keep open: a third of the free file descriptors.

    The rest is for other datasets, for threads and forked children, which inherit what is open, and for the trainer. The
    soft limit is raised to the hard one first.

    Args:
        promised: descriptors that other threads may still open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # some systems refuse a hard limit of "infinity"
            pass
    if soft == resource.RLIM_INFINITY:
        return 4096
    try:
        in_use = len(os.listdir("/dev/fd"))
    except OSError as error:  # without a free descriptor, the folder cannot be opened either
        in_use = soft if error.errno in {errno.EMFILE, errno.ENFILE} else 0
    return max(1, (soft - in_use - promised) // 3)
