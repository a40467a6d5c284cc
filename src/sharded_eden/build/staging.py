"""Publishes finished databases so that killing a process at any moment loses nothing.

    task folder   a folder of one task, on scratch or in the staging folder; removed when the task ends
    ready/        databases that are whole and synced
    receipts/     one file a task: what became ready, from what, and the rows of the contig table
    OUT/<sample>/ where a database goes by one rename

A task makes its databases ready, writes its receipt, and renames them. From the receipts of a killed run, the next one learns
what was finished: it completes the renames, and enters the receipts into the manifest and the contig table. Databases that
cannot be published are removed and built again. Nothing is written through a symbolic link.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import polars as pl

from sharded_eden.build.contig_rows import CONTIG_COLUMNS, polars_path, scan_rows
from sharded_eden.build.manifest import Built, Receipt
from sharded_eden.errors import EdenError, UsageError, WriteError, printable, warn
from sharded_eden.format import schema
from sharded_eden.format.pages.recorded import move_record, record_addresses, record_path
from sharded_eden.format.publish import check_path_length, lock, real_folder, sync, write_error, writing
from sharded_eden.format.sqlite import is_mutable_now

STAGING = ".partial-build"
"""The folder inside the output folder in which everything is built; it is removed when the build ends."""

DIRECT, GATHERED = "0-", "1-"
"""The beginnings of the keys of receipts: of a sample built from its own inputs, and of samples gathered from runs."""

_RECEIPT = "sharded-eden receipt"

_STAGED = re.compile(r"[0-9a-f]{32}\.sqlite")

RUN_FILE = "run"
"""A file in the staging folder that names the current run."""

ORPHAN_SECONDS = 20.0
"""How long a new run waits for the tasks of a killed run to end; they do so within milliseconds."""


@dataclass(frozen=True)
class Place:
    """The folders in which a build works; each task has a copy."""

    out: Path
    scratch: Path | None
    """The folder that `--scratch` names; None for the staging folder."""
    run: str
    """A random name, different for each run."""

    @property
    def staging(self) -> Path:
        """The staging folder."""
        return self.out / STAGING

    @property
    def ready(self) -> Path:
        """The folder of databases that are whole."""
        return self.staging / "ready"

    @property
    def receipts(self) -> Path:
        """The folder of receipts."""
        return self.staging / "receipts"

    @property
    def scratch_of_out(self) -> Path:
        """The folder on scratch that belongs to this output folder, the same for all runs."""
        if self.scratch is None:
            return self.staging / "scratch"
        key = blake2b(os.fsencode(self.out.resolve()), digest_size=8).hexdigest()
        return self.scratch / f".sharded-eden-{key}"

    @property
    def scratch_of_run(self) -> Path:
        """The folder on scratch that belongs to this run."""
        return self.scratch_of_out / self.run

    @contextmanager
    def task_folder(self) -> Iterator[Path]:
        """Yield an empty folder for one task, and remove the folders of earlier runs on this machine.

        Raises:
            WriteError: the folder cannot be made.
            EdenError: another run has begun in the output folder: this one was killed, or the file system has no locks.
        """
        try:
            guard = os.open(self.staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise self._is_over() from error
        try:
            with suppress(OSError):
                fcntl.flock(guard, fcntl.LOCK_SH)
            try:
                present = (self.staging / RUN_FILE).read_text()
            except OSError as error:
                raise self._is_over() from error
            if present != self.run:
                raise EdenError(f"{self.out}: run {present} has taken the place of run {self.run}")
            folder = self.scratch_of_run / f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
            with writing(folder.parent):
                self.check_scratch()
                if self.scratch is not None and self.scratch_of_out.is_dir():
                    self._remove_earlier_runs()
                _make_folder(folder)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                if self.scratch is not None:
                    _remove_empty(self.scratch_of_run, self.scratch_of_out)
        finally:
            os.close(guard)

    def _is_over(self) -> EdenError:
        return EdenError(
            f"{printable(self.out)}: another build has removed the staging folder of this one. Run one build at a time into a "
            "folder (file systems without locks do not prevent two)"
        )

    def check_scratch(self) -> None:
        """Refuse a folder on scratch, whose name others can guess, that is a link or belongs to another user.

        Raises:
            WriteError: with the reason.
        """
        with suppress(FileNotFoundError):
            folder = self.scratch_of_out
            found = os.lstat(folder)  # once: the last task of another process may remove the folder at any moment
            is_foreign = self.scratch is not None and found.st_uid != os.geteuid()
            if not stat.S_ISDIR(found.st_mode) or is_foreign:
                raise write_error(folder, "it is a link, not a folder, or belongs to another user; remove it")

    def _remove_earlier_runs(self) -> None:
        with suppress(FileNotFoundError):  # the last task of another process has removed it
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
            with writing(target):
                shutil.copyfile(database, target)
                with target.open("rb") as file:
                    os.fsync(file.fileno())
            database.unlink()
        with writing(record_path(target)):
            record_addresses(target, record_path(target))
        return name

    def publish(self, key: str, receipt: Receipt, rows: pl.LazyFrame) -> None:
        """Write the receipt of a task, then rename its databases to their final names.

        Args:
            key: names the task; receipts are read in the order of their keys.
            receipt: what the task has finished.
            rows: their rows of the contig table, sorted by sample.
        """
        for built in receipt.built:
            self._check_free(built.result.sample)
        unfinished = self.ready / f"{uuid4().hex}.parquet"
        with writing(unfinished):
            rows.sink_parquet(polars_path(unfinished), metadata={_RECEIPT: receipt.to_json()})
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, self.receipts / f"{key}.parquet")
            sync(self.receipts)
        for built in receipt.built:
            self._finish(built)

    def finish(self, receipt: Receipt) -> tuple[Receipt, list[EdenError]]:
        """Publish the databases of a receipt that are not published yet.

        Returns:
            The receipt with the published samples, and an error for each of the others.
        """
        in_place: list[Built] = []
        errors: list[EdenError] = []
        for built in receipt.built:
            try:
                self._finish(built)
                in_place.append(built)
            except EdenError as error:
                errors.append(error)
        return replace(receipt, built=tuple(in_place)), errors

    def _finish(self, built: Built) -> None:
        staged = self.ready / built.staged
        final = schema.sample_database_path(self.out, built.result.sample)
        if staged.exists():
            with writing(final):
                self._check_free(built.result.sample)
                real_folder(final.parent)
                os.replace(staged, final)
                move_record(staged, final)
                sync(final.parent)
        elif record_path(staged).exists():  # a run was stopped after it had renamed the database
            with writing(final):
                move_record(staged, final)

    def _check_free(self, sample: str) -> None:
        final = schema.sample_database_path(self.out, sample)
        check_path_length(final)
        if is_mutable_now(final):
            raise UsageError(f"{printable(final)} is being written to: a -wal or -journal file is beside it")

    def read_receipts(self) -> list[tuple[Path, Receipt]]:
        """Return all receipts, in the order of their keys; one that cannot be read is removed with a warning."""
        found = []
        for path in sorted(self.receipts.iterdir()) if self.receipts.is_dir() else ():
            try:
                with path.open("rb") as file:
                    receipt = Receipt.from_json(pl.read_parquet_metadata(file)[_RECEIPT])
                if not CONTIG_COLUMNS.items() <= dict(scan_rows(path).collect_schema()).items():
                    raise ValueError("its columns are not those of a receipt")
                for built in receipt.built:
                    schema.check_folder_name(built.result.sample, printable(path))
                    if not _STAGED.fullmatch(built.staged):
                        raise ValueError(f"{built.staged!r} is not the name of a finished database")
            except Exception as error:  # a damaged receipt must not block this run and all later ones
                warn(f"{printable(path)}: was left by an earlier run, cannot be read and is removed ({error})")
                path.unlink(missing_ok=True)
                continue
            found.append((path, receipt))
        return found


@contextmanager
def workplace(out: Path, scratch: Path | None = None) -> Iterator[Place]:
    """Lock the output folder and yield the folders to work in.

    Receipts of a killed run are kept; everything else that such a run left is removed. At the end the staging folder is removed
    unless receipts remain in it. After an error, an output folder that this run created and that is empty is removed.

    Raises:
        UsageError: another process is building into the folder.
        WriteError: the folder cannot be written to.
    """
    out_is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise WriteError(f"{printable(out)}: cannot be written to ({error.strerror})") from error
    place = Place(out, scratch, uuid4().hex[:12])
    try:
        lock(descriptor, out)
        try:
            _clear(place)
            yield place
        except OSError as error:
            if isinstance(error, EdenError):
                raise
            where = (
                printable(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else printable(out)
            )
            raise WriteError(f"{where}: cannot be written to ({error.strerror or error})") from error
        finally:
            _leave(place)
    except BaseException:
        if out_is_new:
            _remove_empty(out)
        raise
    finally:
        os.close(descriptor)


def _clear(place: Place) -> None:
    """Make the folders, and remove all files of a killed run except its receipts and the databases that they name."""
    real_folder(place.staging)
    guard = os.open(place.staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _wait_for_orphans(guard, place.out)
        for folder in (place.ready, place.receipts):
            real_folder(folder)
        for left in place.staging.iterdir():
            if left not in (place.ready, place.receipts):
                _remove(left)
        place.check_scratch()
        if place.scratch is not None:
            shutil.rmtree(place.scratch_of_out, ignore_errors=True)
        staged = {built.staged for _, receipt in place.read_receipts() for built in receipt.built}
        known = staged | {record_path(Path(name)).name for name in staged}
        for left in place.ready.iterdir():
            if left.name not in known:
                _remove(left)
        # From here on no task of a killed run begins, and none is running.
        (place.staging / RUN_FILE).write_text(place.run)
    finally:
        os.close(guard)


def _wait_for_orphans(guard: int, out: Path) -> None:
    """Wait until all tasks of a killed run have ended."""
    until = time.monotonic() + ORPHAN_SECONDS
    while True:
        try:
            return lock(guard, out)
        except UsageError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder; the target of a link is kept."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _leave(place: Place) -> None:
    if place.receipts.is_dir() and any(place.receipts.iterdir()):
        return
    shutil.rmtree(place.staging, ignore_errors=True)
    if place.scratch is not None:
        shutil.rmtree(place.scratch_of_run, ignore_errors=True)
        _remove_empty(place.scratch_of_out)


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, which other tasks may remove while they are empty."""
    for _ in range(100):
        with suppress(FileNotFoundError, FileExistsError):  # a parent was removed before or after mkdir looked at it
            return folder.mkdir(parents=True)
    return folder.mkdir(parents=True)


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
