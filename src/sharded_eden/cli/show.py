"""How commands show progress, numbers and what to run next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from sharded_eden.progress import Progress


@contextmanager
def progress_bar(what: str) -> Iterator[Progress | None]:
    """Show a progress bar on stderr while the block runs; hand out None where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def say_next(*commands: str) -> None:
    """Print what to run next."""
    for command in commands:
        print(f"Next: {command}")


def quoted(path: Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


def rate(amount: int, seconds: float) -> str:
    """Return an amount a second, in words."""
    return f"{amount / max(seconds, 1e-9):,.0f}"


def size(size_bytes: float) -> str:
    """Return a size on disk, in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
