"""How much commands print on standard error: `--quiet`, `--verbose`, or neither."""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from enum import Enum, auto
from pathlib import Path
from typing import Any

from sharded_eden.doctor.packages import NAME, packages
from sharded_eden.errors import printable
from sharded_eden.format.kinds import kinds_of


class Level(Enum):
    """How much is printed."""

    QUIET = auto()
    NORMAL = auto()
    VERBOSE = auto()


LEVEL = ContextVar("LEVEL", default=Level.NORMAL)
"""The level of the command that runs."""


def say(message: str) -> None:
    """Print to standard error."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def traced(arguments: Mapping[str, Any]) -> Iterator[None]:
    """With `--verbose`, print versions, files and log messages, and afterwards the times."""
    if LEVEL.get() is not Level.VERBOSE:
        yield
        return
    for line in _about(arguments):
        say(line)
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger(__package__.partition(".")[0])
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    wall, processor = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        say(f"took {wall:.2f} s, {processor:.2f} s of them on the processor of this process{_peak()}")


def _about(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that a report of a fault needs."""
    from sharded_eden import __version__

    installed = {each.name: each.version for each in packages() if each.version is not None}
    yield f"{NAME} {__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield ", ".join(f"{name} {version}" for name, version in installed.items())
    yield f"folder {printable(Path.cwd())}"
    for name, value in arguments.items():
        for each in value if isinstance(value, list) else [value]:
            if each is None or isinstance(each, bool):
                continue
            yield f"{name} {printable(str(each))}{_of_path(each)}"


def _of_path(value: Any) -> str:
    """Return what is at a path; empty where the value is no path."""
    if not isinstance(value, Path):
        return ""
    try:
        kinds = kinds_of(value) or ["a folder" if value.is_dir() else "a file" if value.exists() else "does not exist"]
        size = f", {value.stat().st_size:,} bytes" if value.is_file() else ""
    except OSError as error:
        return f" ({error})"
    return f" ({' and '.join(kinds)}{size})"


def _peak() -> str:
    """Return the largest memory of this process as text; empty where the system does not tell."""
    megabytes = peak_mb()
    return "" if megabytes is None else f"; {megabytes:,.0f} MB of memory at most"


def peak_mb() -> float | None:
    """Return the largest resident set of this process so far, in MB; None where the system does not tell."""
    with suppress(OSError):
        # getrusage() would count that of the process that started this one, too (Linux carries it over).
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
