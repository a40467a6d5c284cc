"""`bench`: measures how fast a split loads from its disk or storage, which stage takes the time, and what to change.

Takes some seconds for each line of the result. Windows are visited in the order in which training would visit them.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from sharded_eden.errors import UsageError
from sharded_eden.format.commands import fetch_command
from sharded_eden.format.schema import WINDOWS_SUFFIX
from sharded_eden.jobs import usable_processors
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.options import PathLike
from sharded_eden.load.source import named_sequences, named_window_dbs
from sharded_eden.load.tensors import ShardedEdenDataset
from sharded_eden.progress import Progress
from sharded_eden.storage.urls import is_url
from sharded_eden.train.mixture import Mixture
from sharded_eden.train.mixture_file import is_mixture_file, mixture_config
from sharded_eden.train.stream import Stream
from sharded_eden.train.traffic import CopiesRate, StorageRate, TrafficCounter, copies_rate, datasets_of

STAGES = ("locate", "read", "encode", "collate", "transfer")
REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class LoaderRate:
    """The rate of a whole `DataLoader` loop, batches expanded to tensors."""

    workers: int
    start_method: str
    compact: bool
    windows_per_second: float


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What was measured."""

    windows: int
    """Windows of the split."""
    seq_length: int
    batch_size: int
    cold_windows_per_second: float | None
    """With the databases removed from the page cache; None where the system cannot remove them, and at a URL."""
    warm_windows_per_second: float
    """The same windows again, in one process. At a URL they are requested again."""
    mean_bases: float
    """Mean number of bases in a window."""
    stage_microseconds: dict[str, float]
    """Time a window spends in each stage, one process, warm; no `transfer` without a GPU."""
    storage: StorageRate | None = None
    """None for local files."""
    copies: CopiesRate | None = None
    """None without `cache_bytes`."""
    loaders: list[LoaderRate] = field(default_factory=list)
    verdict: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Tokens, padding included, warm, in one process."""
        return self.warm_windows_per_second * self.seq_length

    @property
    def megabytes_per_second(self) -> float:
        """Bases read, in MB, warm, in one process."""
        return self.warm_windows_per_second * self.mean_bases / 1e6

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        rates = {"tokens_per_second": self.tokens_per_second, "megabytes_per_second": self.megabytes_per_second}
        return asdict(self) | rates


def bench(
    sequence_db_dir: PathLike,
    window_db_path: PathLike,
    *,
    batch_size: int = 32,
    max_workers: int | None = None,
    start_methods: Iterable[str] = ("fork",),
    seconds: float = 2.0,
    tokenizer: Any = None,
    progress: Progress | None = None,
    cache_dir: PathLike | None = None,
    cache_bytes: int | None = None,
) -> BenchResult:
    """Measure how fast a split loads.

    Args:
        sequence_db_dir: the folder of per-sample sequence databases, or its URL.
        window_db_path: the window database of a split or its URL, the folder that `precompute` wrote (then its training split),
            or the TOML or YAML file of a mixture. The stages are then those of the source with the largest weight.
        batch_size: windows of a batch.
        max_workers: the largest number of `DataLoader` workers to try; None for the number of processors of this
            process, at most 8.
        start_methods: how workers start: `fork`, `spawn`, `forkserver`.
        seconds: how long each line is measured.
        tokenizer: see `ShardedEdenDataset`.
        progress: called with the measurements done and their total.
        cache_dir: see `ShardedEdenDataset`.
        cache_bytes: see there. The rate at the URL is measured first, then while sequence databases are copied, until all that
            fit are there, and then from the copies; so are all that follow.

    Raises:
        UsageError: a size below 1, an unknown start method, a split without windows, or `cache_bytes` for a folder.
        DatabaseError: a database is missing or damaged.

    Example:
        >>> from sharded_eden import bench
        >>> result = bench("sequence_db_dir", "windows/train_windows.db", max_workers=0, seconds=0.01)
        >>> result.warm_windows_per_second > 0
        True
    """
    methods = list(start_methods)
    known = torch.multiprocessing.get_all_start_methods()
    if batch_size < 1 or not 0 < seconds < math.inf or (max_workers or 0) < 0:
        raise UsageError("batch_size must be at least 1, seconds above 0 and finite, and workers not below 0")
    if unknown := [method for method in methods if method not in known]:
        raise UsageError(f"{unknown[0]!r} is not a start method here: use {', '.join(known)}")
    most = min(8, usable_processors()) if max_workers is None else max_workers
    workers = [0, *itertools.takewhile(lambda n: n < most, (2**k for k in range(10))), *([most] if most else [])]
    sequence_db_dir = named_sequences(sequence_db_dir)
    cache = {"cache_dir": cache_dir, "cache_bytes": cache_bytes}
    opener = (
        _MixtureOpener(sequence_db_dir, window_db_path, tokenizer, cache)
        if is_mixture_file(window_db_path)
        else _Opener(sequence_db_dir, _window_database(window_db_path, sequence_db_dir, cache_dir), tokenizer, cache)
    )
    steps = 2 + 2 * (1 + len(methods) * (len(workers) - 1))
    report: Callable[[int], object] = lambda done: progress(done, steps) if progress else None  # noqa: E731

    with opener(compact=False) as stream:
        files = [
            path for each in datasets_of(stream) for path in (each.window_db_path, *each.sample_db_mapping.values())
        ]
    can_drop = not any(map(is_url, files)) and not [path for path in files if not _drop_from_cache(Path(path))]
    with opener(compact=False, copies=False) as stream:
        dataset = stream.dataset
        cold = _windows_per_second(_batches(stream, batch_size), batch_size, seconds) if can_drop else None
        report(1)
        counter = TrafficCounter(stream)
        warm = statistics.median(
            _windows_per_second(counter.watch(_batches(stream, batch_size)), batch_size, seconds / REPEATS)
            for _ in range(REPEATS)
        )
        storage = counter.rate(batch_size)
        stages, mean_bases = _time_stages(opener.largest(stream), batch_size, seconds)
        report(2)
        result = BenchResult(
            windows=len(dataset),
            seq_length=dataset.seq_length,
            batch_size=batch_size,
            cold_windows_per_second=cold,
            warm_windows_per_second=warm,
            mean_bases=mean_bases,
            stage_microseconds=stages,
            storage=storage,
        )
        is_table = dataset.has_table
    if cache_bytes is not None:
        with opener(compact=False) as stream:
            rate_of: Callable[[Any], float] = lambda batches: _windows_per_second(batches, batch_size, seconds)  # noqa: E731
            result = replace(result, copies=copies_rate(stream, lambda: _batches(stream, batch_size), rate_of))
    for compact in (False, True) if is_table and opener.can_be_compact else (False,):
        with opener(compact=compact) as stream:
            for method, count in [("", 0), *itertools.product(methods, workers[1:])]:
                rate = _loader_rate(stream, batch_size, count, method, seconds)
                result.loaders.append(
                    LoaderRate(workers=count, start_method=method, compact=compact, windows_per_second=rate)
                )
                report(2 + len(result.loaders))
    return replace(result, verdict=_verdict(result, is_table))


def _window_database(path: PathLike, sequence_db_dir: PathLike, cache_dir: PathLike | None) -> Path:
    """Return a window database; of a folder that `precompute` wrote, that of the training split."""
    found = named_window_dbs(path, sequence_db_dir, cache_dir)
    return next((each for each in found if each.name == f"train{WINDOWS_SUFFIX}"), found[0])


class _Opener:
    """Opens the split as training does, with the geometry in its database."""

    def __init__(self, sequence_db_dir: PathLike, window_db: PathLike, tokenizer: Any, cache: dict[str, Any]) -> None:
        self._paths, self._cache = (sequence_db_dir, window_db), cache
        self.can_be_compact = True
        self._tokenizer = tokenizer
        index = WindowIndex(window_db)
        self._geometry = index.geometry
        index.close()

    @contextmanager
    def __call__(self, *, compact: bool, copies: bool = True) -> Iterator[Stream]:
        with ShardedEdenDataset(
            self._tokenizer,
            *self._paths,
            self._geometry.window_size,
            stride=self._geometry.stride,
            rc_aug=True,
            compact=compact,
            **(self._cache if copies else {}),
        ) as dataset:
            yield Stream(dataset)

    @staticmethod
    def largest(stream: Stream) -> Stream:
        """Return the stream whose stages are timed."""
        return stream


class _MixtureOpener:
    """Opens a mixture; the stages are those of the source with the largest weight."""

    def __init__(self, sequence_db_dir: PathLike, mixture: Any, tokenizer: Any, cache: dict[str, Any]) -> None:
        self._folder, self._cache = str(sequence_db_dir), cache
        self._config = mixture_config(mixture)
        self.can_be_compact = not any(source.options for source in self._config.sources.values())
        """Sources with options of their own may weigh letters differently, which compact rows cannot."""
        self._tokenizer = tokenizer
        self._seq_length = self._config.window_size()

    @contextmanager
    def __call__(self, *, compact: bool, copies: bool = True) -> Iterator[Stream]:
        options: dict[str, Any] = {"seq_length": self._seq_length, "rc_aug": True, "compact": compact}
        options |= self._cache if copies else {}
        mixture = self._config.open(tokenizer=self._tokenizer, sequence_db_dir=self._folder, seed=42, **options)
        try:
            yield mixture
        finally:
            mixture.dataset.close()

    @staticmethod
    def largest(stream: Stream) -> Stream:
        """Return the stream whose stages are timed."""
        assert isinstance(stream, Mixture)  # noqa: S101 - it was opened here
        weights = stream.schedule.phases[0].weights
        return Stream(stream.dataset.datasets[weights.index(max(weights))])


def _drop_from_cache(path: Path) -> bool:
    """Ask the system to drop a file's cached pages; False where the system has no such call."""
    if not hasattr(os, "posix_fadvise"):
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _positions(batch_size: int) -> Iterator[list[int]]:
    return (list(range(first, first + batch_size)) for first in itertools.count(0, batch_size))


def _batches(stream: Stream, batch_size: int) -> Iterator[Any]:
    return (stream.collate_fn(stream.__getitems__(positions)) for positions in _positions(batch_size))


def _windows_per_second(batches: Iterable[Any], batch_size: int, seconds: float) -> float:
    """Take batches for this many seconds, at least three of them."""
    count, begun = 0, time.perf_counter()
    for _ in batches:
        count += 1
        if count >= 3 and time.perf_counter() - begun >= seconds:
            break
    return count * batch_size / (time.perf_counter() - begun)


def _time_stages(stream: Stream, batch_size: int, seconds: float) -> tuple[dict[str, float], float]:
    """Return the median microseconds a window of each stage, and the mean number of bases in a window."""
    dataset = stream.dataset
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    bases: list[int] = []
    begun = time.perf_counter()
    for positions in _positions(batch_size):
        windows = stream.windows_at(positions)
        spent, shown = _time_batch(dataset, windows)
        bases += shown
        for stage, one in zip(STAGES, spent, strict=False):
            times[stage].append(one / batch_size * 1e6)
        if len(times["locate"]) >= 3 and time.perf_counter() - begun >= seconds:
            break
    measured = {stage: max(0.0, statistics.median(values)) for stage, values in times.items() if values}
    return measured, statistics.fmean(bases)


def _time_batch(dataset: ShardedEdenDataset, windows: list[tuple[int, int]]) -> tuple[list[float], list[int]]:
    """Return the seconds that each stage takes for one batch, and the bases of each of its windows."""
    located = _seconds(lambda: dataset.locate_many([window_idx for _, window_idx in windows]))
    fetched = _seconds(lambda: deque(dataset.fetch_many(windows), maxlen=0))  # locates, and reads
    made = _seconds(lambda: dataset.__getitems__(windows))  # locates, reads, and encodes
    spent = [located, fetched - located, made - fetched]
    rows = dataset.__getitems__(windows)
    spent.append(_seconds(lambda: dataset.collate_fn(rows)))
    if torch.cuda.is_available():
        spent.append(_seconds(lambda: _to_device(dataset.collate_fn(rows))))
    return spent, [len(window.bases) for window in dataset.fetch_many(windows)]


def _to_device(batch: dict[str, torch.Tensor]) -> None:
    for tensor in batch.values():
        tensor.to("cuda")
    torch.cuda.synchronize()


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _loader_rate(stream: Stream, batch_size: int, workers: int, method: str, seconds: float) -> float:
    """Return the rate of a whole loop, measured after the workers have started."""
    dataset = stream.dataset
    expand = dataset.expander() if dataset.options.compact else None
    loader = DataLoader(
        stream,
        batch_sampler=_Endless(batch_size),
        num_workers=workers,
        collate_fn=dataset.collate_fn,
        multiprocessing_context=method or None,
        pin_memory=torch.cuda.is_available(),
    )
    batches = iter(loader)
    for _ in range(2 * workers):
        next(batches)
    loop = batches if expand is None else (expand(batch) for batch in batches)
    rate = _windows_per_second(loop, batch_size, seconds)
    del loop, batches
    return rate


class _Endless(torch.utils.data.Sampler[list[int]]):
    """Batches of positions, one after the other."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        return _positions(self._batch_size)


def _verdict(result: BenchResult, is_table: bool) -> str:
    """Return what limits the rate, and which setting to change."""
    best = max(result.loaders, key=lambda loader: loader.windows_per_second)
    advice = f"DataLoader(num_workers={best.workers}), compact={best.compact}: {best.windows_per_second:,.0f} windows/s"
    cold, warm = result.cold_windows_per_second, result.warm_windows_per_second
    if not is_table:
        return (
            "The tokenizer limits the rate: it is called once for each window, since it is not one id per letter. A "
            f"per-character tokenizer becomes a table. Best: {advice}."
        )
    if result.storage is not None and result.storage.waiting_share > 0.5:
        return (
            f"The storage limits the rate: one process waits for it {result.storage.waiting_share:.0%} of the time. Workers "
            f"and a larger requests_in_flight make more requests at once. Best: {advice}. Or copy the data: "
            f"{fetch_command('URL')}."
        )
    if cold is not None and cold < warm / 3:
        return (
            f"The disk limits the first pass ({cold / warm:.0%} of the warm rate): use a local disk. Workers read in parallel. "
            f"Once cached, best: {advice}."
        )
    full = max(r.windows_per_second for r in result.loaders if not r.compact)
    if best.compact and best.windows_per_second > 1.2 * full:
        return (
            f"Moving tensors between processes limits the rate: compact=True gives {best.windows_per_second / full:.1f} times "
            f"the rate. Best: {advice}."
        )
    slowest = max(result.stage_microseconds, key=lambda stage: result.stage_microseconds[stage])
    tried = max(loader.workers for loader in result.loaders)
    if best.workers == 0:
        advice = f"no workers are needed: one process is the fastest. Best: {advice}"
    elif best.workers == tried:
        advice = f"more workers than {tried} may help where there are processors for them. Best: {advice}"
    else:
        advice = f"{best.workers} workers are enough. Best: {advice}"
    return f"The processor limits the rate, most of all in `{slowest}`; {advice}."
