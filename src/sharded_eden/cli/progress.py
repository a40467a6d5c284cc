"""How commands show progress and numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from sharded_eden.cli.level import LEVEL, Level

LINE_SECONDS = 60.0
"""Seconds between two lines of progress on stderr where there is no terminal."""


class Shown:
    """The progress of a command: a bar on a terminal, a line a minute elsewhere."""

    def __init__(self, what: str, show: Callable[[int, int, str], object]) -> None:
        self._show = show
        self._done, self._total, self._note = 0, 0, what

    def __call__(self, done: int, total: int) -> None:
        """Show the amount done."""
        self._done, self._total = done, total
        self._show(done, total, self._note)

    def note(self, text: str) -> None:
        """Show the current work."""
        self._note = text
        self._show(self._done, self._total, text)


@contextmanager
def progress_bar(what: str) -> Iterator[Shown]:
    """Show progress on stderr while the block runs: a bar on a terminal, elsewhere a line a minute, none in the first.

    With `--quiet`, nothing is shown.
    """
    if LEVEL.get() is Level.QUIET:
        yield Shown(what, lambda done, total, note: None)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Shown(what, Lines(console.file.write).show)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield Shown(
            what,
            lambda done, total, note: bar.update(task, completed=done, total=total or None, description=escape(note)),
        )


class Lines:
    """Prints a line each minute: `12%, 1,204 records, 5,211 Mb, 310 Mb/s, SAMPLE1, 7 min left`."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._started = clock()
        self._next = self._started + LINE_SECONDS

    def show(self, done: int, total: int, note: str) -> None:
        """Write a line if it is time for one."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + LINE_SECONDS
        words = [f"{done / total:.0%}", note] if total else [note]
        if 0 < done < total:
            words.append(f"{(now - self._started) * (total - done) / done / 60:,.0f} min left")
        self._write(", ".join(words) + "\n")


def rate(amount: int, seconds: float) -> str:
    """Return an amount per second as text."""
    return f"{amount / max(seconds, 1e-9):,.0f}"


def size(size_bytes: float) -> str:
    """Return a size on disk as text."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
