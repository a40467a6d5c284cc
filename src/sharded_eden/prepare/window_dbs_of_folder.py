"""From a folder of splits to a folder of window databases, several at once.

Enters: `train_split.parquet` and its like, as `split` writes them. Leaves: `train_windows.db` and its like. Costs a process a
split, each with the memory of one `precompute`. A process that loses the one that started it ends at once, so that the
next run finds nobody writing.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from sharded_eden.errors import EdenWarning, InputError, UsageError, warn
from sharded_eden.prepare.window_dbs import PrecomputeResult, precompute_window_database
from sharded_eden.progress import Progress

SPLIT_SUFFIX, WINDOWS_SUFFIX = "_split.parquet", "_windows.db"
LOOK_SECONDS = 0.2
"""How often processes are asked how far they are."""

_told: list[Any] = []
"""In a worker: the one array where it writes how far each split is, (2 * splits,) int64, done and total."""


def splits_of_folder(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Return the split files of a folder by the names of their splits, sorted.

    Raises:
        InputError: there is none.
    """
    files = sorted(path for path in Path(folder).glob(f"*{SPLIT_SUFFIX}") if not path.name.startswith("."))
    if not files:
        raise InputError(
            f"{folder}: holds no split: looked for *{SPLIT_SUFFIX}. Make them: sharded-eden split SEQDB --out {folder}"
        )
    return {path.name.removesuffix(SPLIT_SUFFIX): path for path in files}


def precompute_window_databases(
    splits_folder: str | os.PathLike[str],
    output_folder: str | os.PathLike[str],
    *,
    jobs: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, PrecomputeResult]:
    """Write the window database of every split in a folder.

    Each appears as a whole; those that are done stay where another one fails.

    Args:
        splits_folder: holds `<split>_split.parquet` for each split.
        output_folder: gets `<split>_windows.db` for each.
        jobs: processes that work at once; 1 works in this one.
        progress: called with the contigs done and their total, of all splits that have begun.
        options: of `precompute_window_database`, the same for all.

    Returns:
        What was written, by split.

    Raises:
        InputError: there is no split, or one of them is refused.
        UsageError: `jobs` below 1, an option that cannot be meant, or a process that was killed.

    Warns:
        EdenWarning: as for single splits.
    """
    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, not {jobs}")
    splits, output = splits_of_folder(splits_folder), Path(output_folder)
    tasks = [
        partial(precompute_window_database, split, output / f"{name}{WINDOWS_SUFFIX}", **options)
        for name, split in splits.items()
    ]
    if min(jobs, len(tasks)) == 1:
        results = [task(progress=progress) for task in tasks]
    else:
        results = _in_processes(tasks, min(jobs, len(tasks)), progress)
    return dict(zip(splits, results, strict=True))


def _in_processes(
    tasks: Sequence[Callable[..., PrecomputeResult]], jobs: int, progress: Progress | None
) -> list[PrecomputeResult]:
    context = get_context("spawn")  # a forked child would inherit threads of Polars that no longer run
    told = context.RawArray("q", 2 * len(tasks))
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(told,)) as pool:
        futures = [pool.submit(_run, task, k) for k, task in enumerate(tasks)]
        try:
            _wait(futures, told, progress)
            done = [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise UsageError(
                "a process that wrote a window database was killed; where memory is short, use fewer --jobs. "
                "Databases that have appeared are whole; run the same command again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    for _, messages in done:
        for message in messages:
            warn(message)
    return [result for result, _ in done]


def _wait(futures: list[Future[tuple[PrecomputeResult, list[str]]]], told: Any, progress: Progress | None) -> None:
    """Wait until all are done, or one has failed."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=LOOK_SECONDS)
        if progress is not None:
            progress(sum(told[::2]), sum(told[1::2]))
        for future in done:
            future.result()


def _begin(told: Any) -> None:
    """Prepare a worker."""
    _told.append(told)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(task: Callable[..., PrecomputeResult], k: int) -> tuple[PrecomputeResult, list[str]]:
    """Do one task in a worker; return its result and its warnings."""

    def tell(done: int, total: int) -> None:
        _told[0][2 * k : 2 * k + 2] = [done, total]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EdenWarning)
        result = task(progress=tell)
    return result, [str(each.message) for each in caught if issubclass(each.category, EdenWarning)]
