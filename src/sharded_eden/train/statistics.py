"""What a job has read, how fast, and how long it waited for data: `LoaderCounter`, for any training loop.

Input: a stream, and the position that the job has reached. Output: a dict of numbers. The order is a function of the position,
so the windows are known without looking at tensors (`train/totals.py`). Costs a fraction of a microsecond a window, when values
are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from sharded_eden.errors import UsageError, shown, warn
from sharded_eden.format.commands import bench_command, index_command
from sharded_eden.format.geometry import integer
from sharded_eden.train.stream import Stream
from sharded_eden.train.totals import Totals

Batch = TypeVar("Batch")

WAITING_SHARE = 0.1
"""From this share of the time on, waiting for data is worth a warning."""
LEAST_SECONDS = 5.0
"""Shorter intervals give no warning: workers start in the first seconds."""


def arrivals(batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Yield each batch with the seconds that it was waited for."""
    arriving = iter(batches)
    while True:
        begin = time.perf_counter()
        try:
            batch = next(arriving)
        except StopIteration:
            return
        yield batch, time.perf_counter() - begin


class LoaderCounter:
    """Counts what a job reads from a stream, and the time that it waits for data.

    Args:
        stream: the stream that is trained on, as `StreamBatchSampler` gets it.
        samples_per_batch: positions that one batch of the loader stands for: micro batch size times data-parallel size.
        consumed_samples: the position where the job begins or is resumed.
        prefix: of the names in `values`.

    Raises:
        UsageError: a negative position, or no sample per batch.

    Example:
        counter = LoaderCounter(stream, samples_per_batch=micro_batch_size * ranks)
        for batch in counter.watch(loader):
            train(batch)
            if step % 100 == 0:
                log(counter.values())
    """

    def __init__(
        self, stream: Stream, *, samples_per_batch: int = 1, consumed_samples: int = 0, prefix: str = "loader/"
    ) -> None:
        self._stream = stream
        self._per_batch = integer(samples_per_batch, "samples_per_batch")
        self._reached = self._counted = integer(consumed_samples, "consumed_samples")
        if self._per_batch < 1 or self._reached < 0:
            raise UsageError(
                "samples_per_batch must be at least 1 and consumed_samples at least 0, not "
                f"{shown(samples_per_batch)} and {shown(consumed_samples)}"
            )
        self._prefix = prefix
        self._totals = Totals(stream)
        self._pass: int | None = None  # that of the positions; None before the first one is reached
        self._before = (0, 0, 0)
        self._since = time.perf_counter()
        self._waited = self._paused = 0.0
        self._has_warned = False

    def watch(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches of a loader, and count them and the time until each arrives."""
        self._enter_pass()  # also where no batch is left of it
        for batch, seconds in arrivals(loader):
            self.waited(seconds)
            self.reach(self._reached + self._per_batch)
            yield batch

    def waited(self, seconds: float) -> None:
        """Add time that was spent waiting for data."""
        self._waited += seconds

    def paused(self, seconds: float) -> None:
        """Leave time out that belongs to no step, such as a validation."""
        self._paused += seconds

    def reach(self, consumed_samples: int) -> None:
        """State the position that the job has reached, in the pass that `set_epoch` chose.

        The end of a finite stream is the last one: beyond it, ranks with fewer rows repeat some.
        """
        self._enter_pass()
        end = self._stream.num_samples
        self._reached = int(consumed_samples) if end is None else min(int(consumed_samples), end)

    def _enter_pass(self) -> None:
        """Where `set_epoch` has begun another pass, count the rest of the last one, and go on at position 0."""
        epoch = self._stream.epoch
        if self._pass not in {None, epoch}:
            self._count()
            self._reached = self._counted = 0
        self._pass = epoch

    def _count(self) -> None:
        self._totals.add(self._counted, self._reached, self._pass)
        self._counted = self._reached

    def values(self) -> dict[str, float]:
        """Return what was read and how fast, since the last call; totals since the beginning of the process.

        Names, after the prefix: `windows_per_second` and `tokens_per_second` of all ranks; `useful_token_share` (0 to 1;
        left out where the window database has no lengths, or the tokenizer has no id for each letter); `waiting_share` of the
        time (0 to 1); `pass` and `position_in_pass` (0 to 1); `samples` (the position of the job), `windows` and `bases` since
        the process began; `samples/NAME` for each source of a mixture.

        Raises:
            DatabaseError: a window database cannot be read.
        """
        now = time.perf_counter()
        seconds = max(now - self._since - self._paused, 1e-9)
        totals = self._totals
        self._count()
        rows, windows, tokens = (
            new - old for new, old in zip((totals.rows, totals.windows, totals.tokens), self._before, strict=True)
        )
        self._before = (totals.rows, totals.windows, totals.tokens)
        length = self._stream.dataset.seq_length
        share = min(1.0, self._waited / seconds)
        epoch = self._stream.epoch if self._pass is None else self._pass
        position = epoch * len(self._stream) + self._reached
        found: dict[str, float] = {
            "windows_per_second": windows / seconds,
            "tokens_per_second": rows * length / seconds,
            "waiting_share": share,
            "pass": position // len(self._stream.dataset),
            "position_in_pass": position % len(self._stream.dataset) / len(self._stream.dataset),
            "samples": self._reached,
            "windows": totals.windows,
        }
        if totals.knows_bases:
            found["bases"] = totals.bases
        if totals.knows_tokens and rows:
            found["useful_token_share"] = tokens / (rows * length)
        for name, count in totals.rows_of.items():
            found[f"samples/{name}"] = count
        if share > WAITING_SHARE and seconds >= LEAST_SECONDS:
            self._warn(share)
        self._since, self._waited, self._paused = time.perf_counter(), 0.0, 0.0
        return {f"{self._prefix}{name}": value for name, value in found.items()}

    def _warn(self, share: float) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        warn(f"training waits for data for {share:.0%} of the time. {' '.join(advice(self._stream))}")


def advice(stream: Stream) -> list[str]:
    """Return what may make a stream faster, as sentences."""
    dataset: Any = stream.dataset
    first = getattr(dataset, "datasets", [dataset])[0]
    found = ["Use more num_workers, up to the number of processors."]
    if first.has_table and not first.options.compact:
        found.append("Send rows of one byte per token to the device: compact=True.")
    if not first.options.packed:
        found.append("Where contigs are short, fill rows with several windows: packed=True.")
    if first._addresses is None:
        found.append(
            "Write an index, so that a window is one read: "
            f"{index_command(first.sequence_db_dir, first.window_db_path)}"
        )
    found.append(
        "Copy the data to a local disk, or to memory that the page cache can keep. To measure each of these: "
        f"{bench_command(first.sequence_db_dir, first.window_db_path)}"
    )
    return found
