"""What access logs say about one split: counted in one pass, in bounded memory.

Input: access logs as CSV or Parquet, one or more files for each process, see `describe/access_logs.py`. Output: `Reads`.
Memory: 6 bytes for each window, and 2 bytes for each window and pass; rows are read about a million at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.describe.access_logs import scan_access_log
from sharded_eden.errors import InputError, UsageError, printable, shown

COLUMNS = ("window_idx", "rank", "access_ts", "worker", "epoch")
ROWS_AT_ONCE = 1 << 20
MOST_CELLS = 1_500_000_000
"""Windows times passes whose first readers are kept: 3 GB."""
POINTS = 6000
"""Points of the scatter plot, at most."""
RUN = 256
"""Reads of one process in a row whose spread is compared with that of a global shuffle."""
NEAR = 0.02
"""Two reads in a row are near if their windows are less than this share of the split apart."""
PAUSE_EDGES = np.logspace(-4, 4, 81)
"""Borders of the histogram of pauses between batches, in seconds."""
PARTS = 200
"""Parts of the split whose reads are shown."""


@dataclass(kw_only=True)
class Pass:
    """One pass (epoch) over a split."""

    number: int
    reads: int = 0
    repeats: int = 0
    """Reads of windows that were read before in this pass."""
    unread: int = 0
    longest_gap: tuple[int, int] = (0, 0)
    """The first and the last but one window of the longest run of unread windows, half-open."""
    gaps_expected: int = 0
    """The longest run of unread windows that a global shuffle would leave, at odds of one in a million."""


@dataclass(kw_only=True)
class Reads:
    """What was read of one split."""

    split: str
    windows: int
    is_evaluation: bool = False
    rows: int = 0
    files: int = 0
    by_process: dict[tuple[int, int], int] = field(default_factory=dict)
    """{(rank, worker): reads}; worker -1 is the main process."""
    times_read: dict[int, int] = field(default_factory=dict)
    """{how often: windows}."""
    by_part: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Mean reads of a window in each part of the split, (parts,) float64."""
    passes: list[Pass] = field(default_factory=list)
    repeated_by: dict[tuple[int, int], int] = field(default_factory=dict)
    """{(rank that read a window first, rank that read it again in the same pass): reads}."""
    reads_by_rank: dict[int, int] = field(default_factory=dict)
    spread_by_rank: dict[int, float] = field(default_factory=dict)
    """{rank: standard deviation of all windows that it read, divided by that of the whole split}."""
    spread: float | None = None
    """Standard deviation of the windows in runs of 256 reads, divided by that of a global shuffle; None with fewer reads."""
    near: float | None = None
    """The share of reads that are near the read before."""
    in_order: float = 0.0
    """The share of reads that follow the window before."""
    typical_step: float = 0.0
    """The median distance of the windows of two reads in a row."""
    points: pl.DataFrame = field(default_factory=pl.DataFrame)
    """seconds, window, rank: some of the reads, at random."""
    pauses: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(PAUSE_EDGES) + 1, dtype=np.int64))
    """Pauses between two batches of one process, by `PAUSE_EDGES`."""
    longest_pause: tuple[float, int, int, float] = (0.0, 0, 0, 0.0)
    """Seconds, rank, worker, and seconds since the first read."""
    seconds: float = 0.0


def count_reads(split: str, files: list[Path], windows: int, *, is_evaluation: bool = False) -> Reads:
    """Count the reads of a split.

    Args:
        split: its name.
        files: its access logs.
        windows: the number of its windows.
        is_evaluation: whether windows may be read any number of times, in any order.

    Raises:
        InputError: a file is no access log, or names a window that the split does not have.
        UsageError: there are more windows and passes than fit into memory.
    """
    found = _Counter(split, files, windows).result()
    found.is_evaluation = is_evaluation
    return found


def _batches(path: Path) -> Iterator[pl.DataFrame]:
    """Yield the rows of an access log, about a million at a time."""
    try:
        yield from scan_access_log(path).select(COLUMNS).collect_batches(chunk_size=ROWS_AT_ONCE, maintain_order=True)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{printable(path)}: is damaged, or no access log ({shown(str(error), 200)})") from error


class _Counter:
    def __init__(self, split: str, files: list[Path], windows: int) -> None:
        self._files = files
        self._found = Reads(split=split, windows=windows, files=len(files))
        self._windows = windows
        self._counts = np.zeros(windows, dtype=np.int32)
        self._owners: dict[int, NDArray[np.int16]] = {}  # the rank that read a window first in a pass; -1: nobody
        self._passes: dict[int, Pass] = {}
        self._rng = np.random.default_rng(0)
        self._keep = 1.0
        self._points: list[pl.DataFrame] = []
        self._kept = 0
        self._spreads: list[float] = []
        self._sums: dict[int, NDArray[np.float64]] = {}  # of each rank: reads, windows, windows squared
        self._steps: list[NDArray[np.int64]] = []
        self._near = self._following = self._pairs = 0
        self._first, self._last = 2**63 - 1, 0
        self._longest = (0, 0, 0, 0)  # nanoseconds, rank, worker, when

    def result(self) -> Reads:
        for path in self._files:
            before: tuple[int, int] | None = None  # window and time of the last row
            for frame in _batches(path):
                if frame.height:
                    before = self._add(path, frame, before)
        return self._finish()

    def _add(self, path: Path, frame: pl.DataFrame, before: tuple[int, int] | None) -> tuple[int, int]:
        if frame.null_count().sum_horizontal().item():
            raise InputError(f"{printable(path)}: is no access log: a row lacks one of {', '.join(COLUMNS)}")
        window, rank, time, worker, epoch = (frame[name].to_numpy() for name in COLUMNS)
        wrong = np.flatnonzero((window < 0) | (window >= self._windows))
        if len(wrong):
            raise InputError(
                f"{printable(path)}: names window {shown(int(window[wrong[0]]))}, but the split has "
                f"{self._windows:,} windows. "
                "It belongs to another window database"
            )
        if rank.min() < 0 or rank.max() > np.iinfo(np.int16).max or epoch.min() < 0:
            raise InputError(f"{printable(path)}: a rank or an epoch is out of range")
        self._found.rows += len(window)
        self._first, self._last = min(self._first, int(time.min())), max(self._last, int(time.max()))
        np.add.at(self._counts, window, 1)
        self._by_process(rank, worker)
        self._by_pass(window, rank, epoch)
        self._order(window, epoch, before)
        self._pauses(time, rank, worker, before)
        self._sample(time, window, rank)
        return int(window[-1]), int(time[-1])

    def _by_process(self, rank: NDArray[np.int64], worker: NDArray[np.int64]) -> None:
        counted = pl.DataFrame({"rank": rank, "worker": worker}).group_by("rank", "worker").len()
        for one, other, count in counted.iter_rows():
            self._found.by_process[one, other] = self._found.by_process.get((one, other), 0) + count

    def _by_pass(self, window: NDArray[np.int64], rank: NDArray[np.int64], epoch: NDArray[np.int64]) -> None:
        for number in np.unique(epoch).tolist():
            owners = self._owner(number)
            state = self._passes[number]
            in_pass = epoch == number
            for reader in np.unique(rank[in_pass]).tolist():
                chosen = window[in_pass & (rank == reader)]
                distinct, counts = np.unique(chosen, return_counts=True)
                state.reads += len(chosen)
                state.repeats += len(chosen) - len(distinct)
                self._repeat(reader, reader, len(chosen) - len(distinct))
                previous = owners[distinct]
                for owner, count in zip(*np.unique(previous[previous >= 0], return_counts=True), strict=True):
                    state.repeats += int(count)
                    self._repeat(int(owner), reader, int(count))
                owners[distinct[previous < 0]] = reader
                scaled = chosen / self._windows
                sums = np.array([len(chosen), scaled.sum(), (scaled**2).sum()])
                self._sums[reader] = self._sums.get(reader, np.zeros(3)) + sums
                self._found.reads_by_rank[reader] = self._found.reads_by_rank.get(reader, 0) + int(counts.sum())

    def _owner(self, number: int) -> NDArray[np.int16]:
        if number not in self._owners:
            if (len(self._owners) + 1) * self._windows > MOST_CELLS:
                raise UsageError(
                    f"the access logs of {self._found.split} hold more than {len(self._owners)} passes over "
                    f"{self._windows:,} "
                    "windows, too many to compare in memory. Give a folder with fewer logs"
                )
            self._owners[number] = np.full(self._windows, -1, dtype=np.int16)
            self._passes[number] = Pass(number=number)
        return self._owners[number]

    def _repeat(self, first: int, again: int, count: int) -> None:
        if count:
            self._found.repeated_by[first, again] = self._found.repeated_by.get((first, again), 0) + count

    def _order(self, window: NDArray[np.int64], epoch: NDArray[np.int64], before: tuple[int, int] | None) -> None:
        steps = np.diff(window, prepend=window[0] if before is None else before[0])[0 if before is not None else 1 :]
        self._pairs += len(steps)
        self._near += int((np.abs(steps) < max(1.0, NEAR * self._windows)).sum())
        self._following += int((steps == 1).sum())
        if len(steps):
            self._steps.append(np.abs(steps[:: max(1, len(steps) // 2000)]))
        runs = len(window) // RUN
        if runs:
            table = window[: runs * RUN].reshape(runs, RUN)
            one_pass = epoch[: runs * RUN].reshape(runs, RUN)
            whole = table[one_pass.min(axis=1) == one_pass.max(axis=1)]
            self._spreads += whole[:: max(1, len(whole) // 64)].std(axis=1).tolist()

    def _pauses(
        self,
        time: NDArray[np.int64],
        rank: NDArray[np.int64],
        worker: NDArray[np.int64],
        before: tuple[int, int] | None,
    ) -> None:
        pauses = np.diff(time, prepend=time[0] if before is None else before[1])
        batches = pauses > 0  # rows of one batch have the same time
        places = np.searchsorted(PAUSE_EDGES, pauses[batches] / 1e9)
        self._found.pauses += np.bincount(places, minlength=len(PAUSE_EDGES) + 1)
        at = int(pauses.argmax())
        if pauses[at] > self._longest[0]:
            self._longest = (int(pauses[at]), int(rank[at]), int(worker[at]), int(time[at]))

    def _sample(self, time: NDArray[np.int64], window: NDArray[np.int64], rank: NDArray[np.int64]) -> None:
        chosen = np.flatnonzero(self._rng.random(len(window)) < self._keep)
        self._points.append(pl.DataFrame({"time": time[chosen], "window": window[chosen], "rank": rank[chosen]}))
        self._kept += len(chosen)
        while self._kept > POINTS:
            everything = pl.concat(self._points)
            self._points = [everything.filter(pl.Series(self._rng.random(len(everything)) < 0.5))]
            self._kept = self._points[0].height
            self._keep /= 2

    def _finish(self) -> Reads:
        found = self._found
        if not found.rows:
            return found
        found.times_read = dict(enumerate(np.bincount(self._counts).tolist()))
        found.times_read = {times: count for times, count in found.times_read.items() if count}
        parts = min(PARTS, self._windows)
        edges = np.arange(parts + 1) * self._windows // parts
        found.by_part = np.add.reduceat(self._counts, edges[:-1], dtype=np.int64) / np.diff(edges)
        found.passes = [self._passes[number] for number in sorted(self._passes)]
        for state in found.passes:
            _add_gaps(state, self._owners[state.number] < 0)
        expected = np.sqrt((self._windows**2 - 1) / 12)
        found.spread = float(np.mean(self._spreads) / expected) if self._spreads and expected else None
        for rank, (count, total, squares) in sorted(self._sums.items()):
            found.spread_by_rank[rank] = float(np.sqrt(max(0.0, 12 * (squares / count - (total / count) ** 2))))
        found.near = self._near / self._pairs if self._pairs else None
        found.in_order = self._following / max(1, self._pairs)
        found.typical_step = float(np.median(np.concatenate(self._steps))) if self._steps else 0.0
        found.points = pl.concat(self._points).select(
            ((pl.col("time") - self._first) / 1e9).alias("seconds"), "window", "rank"
        )
        found.seconds = (self._last - self._first) / 1e9
        longest = self._longest
        found.longest_pause = (longest[0] / 1e9, longest[1], longest[2], (longest[3] - self._first) / 1e9)
        return found


def _add_gaps(state: Pass, unread: NDArray[np.bool_]) -> None:
    state.unread = int(unread.sum())
    if not state.unread:
        return
    edges = np.flatnonzero(np.diff(np.concatenate([[False], unread, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    longest = int((ends - starts).argmax())
    state.longest_gap = int(starts[longest]), int(ends[longest])
    share = state.unread / len(unread)
    # In a random order, a run of n begins at each window with probability share^n.
    odds = np.log(1e-6 / len(unread)) / np.log(share) if share < 1 else len(unread)
    state.gaps_expected = int(np.ceil(odds))
