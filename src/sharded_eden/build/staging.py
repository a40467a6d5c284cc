"""From finished databases to published ones, such that a process may be killed at any moment.

    desk          a folder of one task, on scratch or in the staging folder; removed when the task ends
    ready/        databases that are whole and synced
    receipts/     one file a task: what became ready, from what, and the rows of the contig table
    OUT/<sample>/ where a database goes by one rename

A task makes its databases ready, writes its receipt, and renames them. A run that finds a receipt therefore knows what a
killed one had finished: it completes the renames, and enters the receipts into the manifest and the contig table.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import polars as pl

from sharded_eden.build.manifest import Receipt
from sharded_eden.errors import EdenError, UsageError
from sharded_eden.format import schema
from sharded_eden.format.sqlite import is_mutable_now, lock, sync_folder

STAGING = ".partial-build"
"""The folder inside the output folder in which everything is built; it is gone when the build ends."""

_RECEIPT = "sharded-eden receipt"

RUN_FILE = "run"
"""Says in the staging folder which run works there."""

ORPHAN_SECONDS = 20.0
"""How long a new run waits for the tasks of a killed one, which notice within milliseconds."""


@dataclass(frozen=True)
class Place:
    """Where a build works; sent along with each of its tasks."""

    out: Path
    scratch: Path | None
    """The user's folder on a local disk; None for the staging folder."""
    run: str
    """What tells this run from earlier ones."""

    @property
    def staging(self) -> Path:
        """The staging folder."""
        return self.out / STAGING

    @property
    def ready(self) -> Path:
        """Databases that are whole."""
        return self.staging / "ready"

    @property
    def receipts(self) -> Path:
        """What tasks have finished."""
        return self.staging / "receipts"

    @property
    def scratch_of_out(self) -> Path:
        """The folder on scratch that belongs to this output folder, whichever run it is."""
        if self.scratch is None:
            return self.staging / "scratch"
        key = blake2b(os.fsencode(self.out.resolve()), digest_size=8).hexdigest()
        return self.scratch / f".sharded-eden-{key}"

    @property
    def scratch_of_run(self) -> Path:
        """The folder on scratch that belongs to this run."""
        return self.scratch_of_out / self.run

    @contextmanager
    def desk(self) -> Iterator[Path]:
        """Hand out an empty folder to one task; what earlier runs left beside it on this machine is removed.

        Raises:
            UsageError: the folder cannot be made.
            EdenError: this run was killed, and another one has begun: its process ends in a moment.
        """
        guard = os.open(self.staging, os.O_RDONLY | os.O_DIRECTORY)  # gone: the run is over
        try:
            with suppress(OSError):
                fcntl.flock(guard, fcntl.LOCK_SH)
            if (present := (self.staging / RUN_FILE).read_text()) != self.run:
                raise EdenError(f"{self.out}: run {present} has taken the place of run {self.run}")
            folder = self.scratch_of_run / f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
            try:
                if self.scratch is not None and self.scratch_of_out.is_dir():
                    self._remove_earlier_runs()
                _make_folder(folder)
            except OSError as error:
                raise UsageError(f"{folder.parent}: cannot be written to ({error.strerror})") from error
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                if self.scratch is not None:
                    _remove_empty(self.scratch_of_run, self.scratch_of_out)
        finally:
            os.close(guard)

    def _remove_earlier_runs(self) -> None:
        with suppress(FileNotFoundError):  # the last task of another process has just removed it
            for left in self.scratch_of_out.iterdir():
                if left.name != self.run:
                    shutil.rmtree(left, ignore_errors=True)

    def make_ready(self, database: Path) -> str:
        """Move a finished and synced database into the output folder's file system; return its name there."""
        name = f"{uuid4().hex}.sqlite"
        target = self.ready / name
        try:
            os.rename(database, target)
        except OSError:  # another file system
            shutil.copyfile(database, target)
            with target.open("rb") as file:
                os.fsync(file.fileno())
            database.unlink()
        return name

    def publish(self, key: str, receipt: Receipt, rows: pl.LazyFrame) -> None:
        """Write the receipt of a task, then rename its databases to where they belong.

        Args:
            key: what tells the task from others; receipts are read in the order of their keys.
            receipt: what it has finished.
            rows: their rows of the contig table, sorted by sample.
        """
        for built in receipt.built:
            self._check_free(built.result.sample)
        unfinished = self.ready / f"{uuid4().hex}.parquet"
        rows.sink_parquet(unfinished, metadata={_RECEIPT: receipt.to_json()})
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, self.receipts / f"{key}.parquet")
        sync_folder(self.receipts)
        self.finish(receipt)

    def finish(self, receipt: Receipt) -> None:
        """Rename the databases of a receipt that are not yet in place."""
        for built in receipt.built:
            staged = self.ready / built.staged
            if staged.exists():
                final = schema.sample_database_path(self.out, built.result.sample)
                self._check_free(built.result.sample)
                final.parent.mkdir(exist_ok=True)
                os.replace(staged, final)
                sync_folder(final.parent)

    def _check_free(self, sample: str) -> None:
        final = schema.sample_database_path(self.out, sample)
        if is_mutable_now(final):
            raise UsageError(f"{final} is being written to: a -wal or -journal file stands beside it")

    def read_receipts(self) -> list[tuple[Path, Receipt]]:
        """Return the receipts there are, in the order of their keys."""
        if not self.receipts.is_dir():
            return []
        return [
            (path, Receipt.from_json(pl.read_parquet_metadata(path)[_RECEIPT]))
            for path in sorted(self.receipts.iterdir())
        ]


@contextmanager
def workplace(out: Path, scratch: Path | None = None) -> Iterator[Place]:
    """Lock the output folder and hand out a place to work at in it.

    It may hold receipts of a killed run; everything else that such a run left is removed. At the end the staging folder
    is removed, unless receipts remain in it; and so is an output folder that an error leaves empty and that was not there
    before.

    Raises:
        UsageError: the folder cannot be written to, or another process is building into it.
    """
    out_is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written to ({error.strerror})") from error
    place = Place(out, scratch, uuid4().hex[:12])
    try:
        lock(descriptor, out)
        try:
            _clear(place)
            yield place
        except OSError as error:
            if isinstance(error, EdenError):
                raise
            raise UsageError(f"{out}: cannot be written to ({error.strerror or error})") from error
        finally:
            _leave(place)
    except BaseException:
        if out_is_new:
            _remove_empty(out)
        raise
    finally:
        os.close(descriptor)


def _clear(place: Place) -> None:
    """Make the folders, and remove what a killed run left but what its receipts tell of."""
    place.staging.mkdir(exist_ok=True)
    guard = os.open(place.staging, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _wait_for_orphans(guard, place.out)
        shutil.rmtree(place.staging / "scratch", ignore_errors=True)
        if place.scratch is not None:
            shutil.rmtree(place.scratch_of_out, ignore_errors=True)
        for folder in (place.ready, place.receipts):
            folder.mkdir(exist_ok=True)
        known = {built.staged for _, receipt in place.read_receipts() for built in receipt.built}
        for left in place.ready.iterdir():
            if left.name not in known:
                left.unlink()
        # From here on no task of a killed run begins, and none is under way.
        (place.staging / RUN_FILE).write_text(place.run)
    finally:
        os.close(guard)


def _wait_for_orphans(guard: int, out: Path) -> None:
    """Wait until no task of a killed run works in the staging folder."""
    until = time.monotonic() + ORPHAN_SECONDS
    while True:
        try:
            return lock(guard, out)
        except UsageError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _leave(place: Place) -> None:
    if place.receipts.is_dir() and any(place.receipts.iterdir()):
        return
    shutil.rmtree(place.staging, ignore_errors=True)
    if place.scratch is not None:
        shutil.rmtree(place.scratch_of_run, ignore_errors=True)
        _remove_empty(place.scratch_of_out)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, which other tasks remove whenever they find them empty."""
    for _ in range(100):
        with suppress(FileNotFoundError):
            return folder.mkdir(parents=True)
    return folder.mkdir(parents=True)


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
