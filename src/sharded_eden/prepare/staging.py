"""Building many files in a folder so that all of them appear, or none.

Enters: an output folder. Leaves: a staging folder inside it, on the same file system, whose files are renamed into place
at the end. Costs one sync a file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sharded_eden.errors import EdenError, UsageError
from sharded_eden.sqlite import lock, sync_folder

STAGING = ".partial-build"
"""The folder inside the output folder in which everything is built; it is gone when the build ends."""


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """Lock the output folder and hand out an empty staging folder in it.

    The staging folder is removed at the end, and so is an output folder that an error leaves empty and that was not there
    before. What a killed run left is removed at the start.

    Raises:
        UsageError: the folder cannot be written to, or another process is building into it.
    """
    out_is_new = not out.exists()
    staging = out / STAGING
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written to ({error.strerror})") from error
    try:
        lock(descriptor, out)
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            yield staging
        except OSError as error:
            if isinstance(error, EdenError):
                raise
            raise UsageError(f"{out}: cannot be written to ({error.strerror or error})") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except BaseException:
        if out_is_new:
            with suppress(OSError):
                out.rmdir()
        raise
    finally:
        os.close(descriptor)


def move_all(moves: Mapping[Path, Path], *, attic: Path) -> None:
    """Sync files and rename them one after another; after an error take back those that were moved.

    Args:
        moves: {where a file is: where it shall be}; folders are made as needed.
        attic: a folder on the same file system for the files that are replaced, until all is done.
    """
    for staged in moves:
        with staged.open("rb") as file:
            os.fsync(file.fileno())
    begun: list[tuple[Path, Path, Path]] = []
    try:
        for number, (staged, final) in enumerate(moves.items()):
            replaced = attic / f"replaced{number}"
            begun.append((staged, final, replaced))
            final.parent.mkdir(exist_ok=True)
            if final.exists():
                os.replace(final, replaced)
            os.replace(staged, final)
    except BaseException:
        for staged, final, replaced in reversed(begun):
            if not staged.exists():
                final.unlink(missing_ok=True)
            if replaced.exists():
                os.replace(replaced, final)
            with suppress(OSError):  # not empty, or not ours
                final.parent.rmdir()
        raise
    for folder in {final.parent for final in moves.values()}:
        sync_folder(folder)
