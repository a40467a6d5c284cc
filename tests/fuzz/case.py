"""What one fuzz case is: its random generator, its folder, and which part of it runs the package and which part judges."""

from __future__ import annotations

import gc
import os
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharded_eden.errors import EdenError

SECONDS = 10.0
MEMORY_BYTES = 2 << 30

STAGES = {"package", "judge"}


class Wrong(Exception):
    """The package gave wrong data, accepted what it must refuse, or left something."""


class Undecided(Exception):
    """No independent reader can tell what is right."""


class Refused(Exception):
    """The independent reader says that this input must be refused."""


@dataclass
class Case:
    """One case of a target.

    Attributes:
        target: the name of the target.
        seed: with the target, decides everything about the case.
        folder: an empty folder.
        say: called with the stage that begins, so that a crash can be attributed.
        error: the EdenError that the package raised, if any.
        done: what was changed and called, for reports.
    """

    target: str
    seed: int
    folder: Path
    say: Callable[[str], None]
    error: EdenError | None = None
    done: list[str] = field(default_factory=list)
    open_before: set[str] | None = None

    def __post_init__(self) -> None:
        self.choose = random.Random(f"{self.target}:{self.seed}")

    @contextmanager
    def package(self) -> Iterator[None]:
        """Mark the statements that run the package; an EdenError is an outcome, all else is passed on."""
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        before = files_below(self.folder)
        if self.open_before is None:
            self.open_before = open_files()
        self.say("package")
        _reset_peak()
        try:
            yield
        except EdenError as error:
            self.error = error
            text = str(error)
            self.done.append(f"{type(error).__name__}: {text[:200]}")
            if len(text) > 5000:
                raise Wrong(f"a message of {len(text):,} characters: {text[:200]!r}") from error
            if any((ord(c) < 32 and c not in "\n\t") or 0xD800 <= ord(c) < 0xE000 or ord(c) == 127 for c in text):
                raise Wrong(f"a message with control characters or lone surrogates: {text[:300]!r}") from error
            part: BaseException | None = error
            while part is not None:  # the callers of this still hold the traceback, and so what the frames held
                traceback.clear_frames(part.__traceback__)
                part = part.__context__
            error.__traceback__ = None
            error.__cause__ = error.__context__ = None
        finally:
            self.say("judge")
        if (peak := _peak_bytes()) > MEMORY_BYTES:
            raise Wrong(f"{peak / 2**30:.1f} GB of memory")
        if left := [str(path) for path in files_below(temporary)]:
            raise Wrong(f"temporary files left: {left}")
        self.new_files = files_below(self.folder) - before

    def must_not_leave_open(self) -> None:
        """Refuse files that are open after the case: while an error is handled, its frames hold objects that have files."""
        if self.open_before is None:
            return
        if open_files() - self.open_before:
            gc.collect()  # objects that refer to each other are freed later than others
        if left := open_files() - self.open_before:
            raise Wrong(f"files left open: {sorted(left)}")

    def must_not_leave(self, *allowed: Path) -> None:
        """Refuse new files other than these, or below these folders."""
        left = [path for path in self.new_files if not any(path == one or one in path.parents for one in allowed)]
        # SQLite itself makes the -shm of a -wal that is there.
        left = [p for p in left if p.suffix[-4:] != "-shm" or not p.with_name(p.name[:-4] + "-wal").exists()]
        if left:
            raise Wrong(f"not removed: {sorted(str(path.relative_to(self.folder)) for path in left)}")


def files_below(folder: Path) -> set[Path]:
    """Return all files and links below a folder."""
    return {Path(parent, name) for parent, _, names in os.walk(folder) for name in names}


def open_files() -> set[str]:
    """Return the regular files that this process holds open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("/dev/shm/") or (target.startswith("/") and not target.startswith(("/dev/", "/proc/"))):
            found.add(f"{name} {target}")
    return found


def _reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")), 0)


Target = Callable[[Case], Any]
