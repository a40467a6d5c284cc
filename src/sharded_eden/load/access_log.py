"""Optional logs of the windows visited: CSV files, or Parquet files.

    window_access_<split>_rank<r>_<8 hex>.csv        one for each process, and another whenever one is full
    window_idx, sequence_id, sample_id, window_in_seq_idx, rank, access_ts, worker, epoch

`access_ts` is in nanoseconds since 1970; `worker` is the `DataLoader` worker, -1 in the main process. All rows of a batch have
one time. Rows are passed to the operating system before the batch is used, so that even a killed process leaves a complete log.
With `log_format="parquet"`, they are written as integers to a file with the suffix `.rows`, which is replaced by a Parquet file
when it is full or closed (`load/access_rows.py`). A killed process leaves its last file as `.rows`.

In the name of a file, `/`, `%` and characters that are not printable are percent-encoded. Numbers come from the index,
where there is one, and a sequence ID is read once for its contig.

A spreadsheet runs text that begins with `=`, `+`, `-` or `@` as a formula. Such an ID is written with a `'` before it, and so
is an ID that begins with `'`: `sharded_eden.read_access_logs` removes exactly one. Parquet files hold IDs as they are.
Source: OWASP, "CSV Injection".
"""

from __future__ import annotations

import csv
import io
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import quote, unquote

from sharded_eden.errors import EdenError, MissingExtra, UsageError, shown
from sharded_eden.load import access_rows
from sharded_eden.load.access_rows import COLUMNS
from sharded_eden.load.locate.addresses import WindowAddresses
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.read.fetch import Wanted

if TYPE_CHECKING:
    from sharded_eden.load.options import ExampleOptions

LogFormat = Literal["csv", "parquet"]

LEAST_FILE_BYTES = 1 << 12
KEPT_NAMES = 1 << 16
"""Contigs whose IDs are kept as they are written."""
_FORMULA = tuple("=+-@\t\r'")
_PLAIN = re.compile(r"(?:[A-Za-z0-9][\w.|:/-]*,[A-Za-z0-9][\w.|:/-]*\n)*", re.ASCII)
"""Lines of a sequence ID and a sample ID that need neither a `'` nor quotes: most of them."""


def as_cell(text: str) -> str:
    """Return an ID for a CSV file: one that a spreadsheet could run as a formula gets a `'`. `as_cell("=A1")` is `"'=A1"`."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def name_of(split: str) -> str:
    """Return a split for the name of a file: `name_of("human/chr1")` is `"human%2Fchr1"`, see `split_in`."""
    return "".join(c if c.isprintable() and c not in "/%" else quote(c, safe="", errors="surrogatepass") for c in split)


def split_in(name: str) -> str:
    """Return the split that `name_of` was called with."""
    return unquote(name)


class AccessLog:
    """Writes the windows that this process reads to its own file, which is created at the first one.

    Args:
        folder: where the file goes; None is the current folder.
        split: for the file name.
        rank: for the file name and the rows; None: that of torch.distributed, or the environment variable RANK.
        only_sample: the sample of all contigs; None takes it from the sequence ID.
        log_format: `csv`, or `parquet`, which needs pyarrow.
        file_bytes: a file is closed at this size, and another one begun; with Parquet, at 32 MB at most.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        split: str,
        rank: int | None,
        only_sample: str | None,
        *,
        log_format: LogFormat = "csv",
        file_bytes: int = 1 << 28,
    ) -> None:
        self.folder = Path.cwd() if folder is None else Path(folder).absolute()
        self.split = split
        self.rank = _rank() if rank is None else rank
        self._only_sample = only_sample
        self._format = log_format
        self._file_bytes = file_bytes if log_format == "csv" else min(file_bytes, access_rows.MOST_BYTES)
        self._cells: dict[int | str, str] = {}
        """{run of the index, or sequence ID: the cells of sequence and sample}"""
        self._pid = -1
        self._descriptor = -1
        self._path = Path()
        self._written_bytes = 0
        self._windows: tuple[WindowIndex, WindowAddresses | None] | None = None
        self._at_exit: util.Finalize | None = None
        # Of this process; after a fork, the parent's lock may be held for ever.
        self._locks: dict[int, threading.RLock] = {}

    @classmethod
    def of(cls, options: ExampleOptions, split: str, rank: int | None, only_sample: str | None) -> AccessLog:
        """Return the log that options describe."""
        return cls(
            options.log_dir,
            split,
            rank,
            only_sample,
            log_format=options.log_format,
            file_bytes=int(options.log_file_bytes),
        )

    def write(self, wanted: Sequence[Wanted], index: WindowIndex, addresses: WindowAddresses | None) -> None:
        """Append a row for each window.

        Args:
            wanted: the windows; must not change afterwards.
            index: their window database.
            addresses: its index, which has all but the sequence IDs; None: the window database gives everything.

        Raises:
            UsageError: the folder or the file cannot be written.
            DatabaseError: the window database or its index cannot be read.
        """
        if not wanted:
            return
        now = time.time_ns()
        with self._lock():
            if self._pid != os.getpid():
                self._open()
            self._windows = index, addresses
            self._append(self._text(now, wanted) if self._format == "csv" else access_rows.record(now, wanted))

    def _lock(self) -> threading.RLock:
        return self._locks.setdefault(os.getpid(), threading.RLock())

    def _text(self, now: int, wanted: Sequence[Wanted]) -> bytes:
        """Return the rows of a batch as CSV."""
        contigs, numbers = self._located([window_idx for _, window_idx in wanted])
        cells, worker = self._cells, _worker()
        # The same for all rows of an epoch.
        rest = {epoch: f"{self.rank},{now},{worker},{epoch}" for epoch in {epoch for epoch, _ in wanted}}
        return "".join(
            [
                f"{window_idx},{cells[contig]},{number},{rest[epoch]}\n"
                for (epoch, window_idx), contig, number in zip(wanted, contigs, numbers, strict=True)
            ]
        ).encode()

    def _append(self, left: bytes) -> None:
        """Write rows, and begin another file where this one is full."""
        whole = self._written_bytes
        try:
            if not self._written_bytes:
                left = self._head() + left
            while left:  # a disk that is nearly full writes a part of the data, and then refuses the rest
                written = os.write(self._descriptor, left)
                self._written_bytes += written
                left = left[written:]
            if self._written_bytes >= self._file_bytes:
                self._end()
        except OSError as error:
            if self._pid == os.getpid():
                with suppress(OSError):  # a part of a row would be the beginning of the next one
                    os.ftruncate(self._descriptor, whole)
                    self._written_bytes = whole
            raise self._unwritable(error) from error

    def _head(self) -> bytes:
        if self._format == "csv":
            return f"{','.join(COLUMNS)}\n".encode()
        index, _ = self._windows  # type: ignore[misc]  # set by `write`
        return access_rows.head(index, self._only_sample, self.rank, _worker())

    def _located(self, windows: Sequence[int]) -> tuple[Sequence[int | str], Sequence[int]]:
        """Return the key in `_cells` and the window_in_seq_idx of each window; sequence IDs are looked up once for a contig."""
        if len(self._cells) > KEPT_NAMES:
            self._cells.clear()
        cells = self._cells
        index, addresses = self._windows  # type: ignore[misc]  # set by `write`
        if addresses is None:
            names = index.names(windows)
            found = [sequence_id for sequence_id, _ in names]
            if new_ids := list({each for each in found if each not in cells}):
                cells.update(zip(new_ids, self._cells_of(new_ids), strict=True))
            return found, [number for _, number in names]
        runs, numbers = addresses.contigs(windows)
        if new := {run: window_idx for run, window_idx in zip(runs, windows, strict=True) if run not in cells}:
            names = index.names(list(new.values()))
            cells.update(zip(new, self._cells_of([sequence_id for sequence_id, _ in names]), strict=True))
        return runs, numbers

    def _cells_of(self, ids: Sequence[str]) -> list[str]:
        """Return the cells of sequence and sample of contigs."""
        samples = access_rows.samples_of(ids, self._only_sample)
        lines = list(map("%s,%s".__mod__, zip(ids, samples, strict=True)))
        text = "\n".join([*lines, ""])
        # One match for all is many times faster than one for each.
        is_plain = text.count("\n") == len(lines) and _PLAIN.fullmatch(text)
        return lines if is_plain else list(map(_cells, ids, samples))

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(f"{self.folder}: the window access log cannot be written ({error.strerror})")

    def _open(self) -> None:
        suffix = ".csv" if self._format == "csv" else access_rows.SUFFIX
        name = f"window_access_{name_of(self.split)}_rank{self.rank}_{uuid.uuid4().hex[:8]}{suffix}"
        self._path = self.folder / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        except OSError as error:
            raise self._unwritable(error) from error
        self._pid, self._written_bytes = os.getpid(), 0
        if self._format == "parquet":
            # A worker ends without deleting its dataset: its last file is then closed by this.
            self._at_exit = util.Finalize(None, _close_quietly, args=(self,), exitpriority=10)

    def _end(self) -> None:
        """Close the file of this process; the next row begins another one."""
        os.close(self._descriptor)
        self._pid = self._descriptor = -1
        if self._at_exit is not None:
            self._at_exit.cancel()
            self._at_exit = None
        if self._format == "parquet" and self._written_bytes and self._windows is not None:
            access_rows.to_parquet(self._path, *self._windows)

    def close(self) -> None:
        """Close the file of this process.

        Raises:
            WriteError: the Parquet file cannot be written; the file of rows is kept.
            DatabaseError: IDs cannot be read from the window database; the file of rows is kept.
        """
        with self._lock():
            if self._pid == os.getpid():
                self._end()

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_pid": -1,
            "_descriptor": -1,
            "_locks": {},
            "_cells": {},
            "_at_exit": None,
            "_windows": None,
        }


def _cells(sequence_id: str, sample_id: str) -> str:
    text = io.StringIO()
    # Characters of the terminator are quoted; it is removed again.
    csv.writer(text, lineterminator="\r\n").writerow((as_cell(sequence_id), as_cell(sample_id)))
    return text.getvalue()[:-2]


def _close_quietly(log: AccessLog) -> None:
    with suppress(EdenError):  # the file of rows stays
        log.close()


def check_log(log_format: str, file_bytes: int) -> None:
    """Refuse settings of a log.

    Raises:
        UsageError: another format, or a size below 4,096 bytes.
        MissingExtra: pyarrow is requested and not installed.
    """
    if log_format not in get_args(LogFormat):
        raise UsageError(f"log_format must be 'csv' or 'parquet', not {shown(log_format)}")
    if file_bytes < LEAST_FILE_BYTES:
        raise UsageError(f"log_file_bytes must be at least {LEAST_FILE_BYTES:,}, not {shown(file_bytes)}")
    if log_format == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtra("pyarrow", "formats") from error


def _worker() -> int:
    torch = sys.modules.get("torch")  # a process that has not loaded torch is none of its workers
    info = None if torch is None else torch.utils.data.get_worker_info()
    return -1 if info is None else int(info.id)


def _rank() -> int:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_rank())
    given = os.environ.get("RANK") or "0"
    try:
        return int(given)
    except ValueError:
        raise UsageError(f"the environment variable RANK must be an integer, not {shown(given)}") from None
