"""An optional CSV of the windows visited: one file per process, each row is written before its batch is used.

    window_access_<split>_rank<r>_<8 hex>.csv
    window_idx, sequence_id, sample_id, window_in_seq_idx, rank, access_ts, worker, epoch

`access_ts` is in nanoseconds since 1970; `worker` is the `DataLoader` worker, -1 in the main process. Rows are passed to the
operating system at once, so that even a killed process leaves a complete log.
"""

from __future__ import annotations

import csv
import io
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sharded_eden.errors import UsageError
from sharded_eden.load.locate.windows import Row
from sharded_eden.load.read.fetch import Wanted

COLUMNS = ("window_idx", "sequence_id", "sample_id", "window_in_seq_idx", "rank", "access_ts", "worker", "epoch")


class AccessLog:
    """Writes the windows that this process reads to its own file, which is created at the first one.

    Args:
        folder: where the file goes; None is the current folder.
        split: for the file name.
        rank: for the file name and the rows; None asks torch.distributed, then the environment variable RANK.
        sample_of: sequence ID -> sample ID.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, split: str, rank: int | None, sample_of: Callable[[str], str]
    ) -> None:
        self.folder = Path.cwd() if folder is None else Path(folder).absolute()
        self.split = split
        self.rank = _rank() if rank is None else rank
        self._sample_of = sample_of
        self._pid = -1
        self._descriptor = -1
        # Of this process; after a fork, the parent's lock may be held for ever.
        self._locks: dict[int, threading.Lock] = {}

    def write(self, wanted: Sequence[Wanted], located: Sequence[Row]) -> None:
        """Append a row for each window.

        Raises:
            UsageError: the folder or the file cannot be written.
        """
        worker = _worker()
        now = time.time_ns()
        self._append(
            (window_idx, row[0], self._sample_of(row[0]), row[1], self.rank, now, worker, epoch)
            for (epoch, window_idx), row in zip(wanted, located, strict=True)
        )

    def _append(self, rows: Any) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        try:
            with self._locks.setdefault(os.getpid(), threading.Lock()):
                if self._pid != os.getpid():
                    self._open()
                    writer.writerow(COLUMNS)
                writer.writerows(rows)
                left = text.getvalue().encode()
                while left:  # a disk that is nearly full writes a part of the data, and then refuses the rest
                    left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            raise UsageError(f"{self.folder}: the window access log cannot be written ({error.strerror})") from error

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"window_access_{self.split}_rank{self.rank}_{uuid.uuid4().hex[:8]}.csv"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._pid = os.getpid()

    def close(self) -> None:
        """Close the file of this process."""
        if self._pid == os.getpid():
            os.close(self._descriptor)
            self._pid = self._descriptor = -1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pid": -1, "_descriptor": -1, "_locks": {}}


def _worker() -> int:
    torch = sys.modules.get("torch")  # a process that has not loaded torch is none of its workers
    info = None if torch is None else torch.utils.data.get_worker_info()
    return -1 if info is None else int(info.id)


def _rank() -> int:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_rank())
    return int(os.environ.get("RANK", "0"))
