"""From a folder of splits to a folder of window databases, several at once.

Input: `train_split.parquet`, `val_split.parquet` and `test_split.parquet`, which `split` writes. Output: `train_windows.db`,
`val_windows.db` and `test_windows.db`. Each process works on one split and needs the memory of one `precompute`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharded_eden.errors import EdenWarning, InputError, printable, warn
from sharded_eden.format.commands import split_command
from sharded_eden.format.kinds import expect, named, refuse_url
from sharded_eden.format.schema import SPLIT_SUFFIX, WINDOWS_SUFFIX
from sharded_eden.jobs import Engine, Say, run_tasks
from sharded_eden.progress import Progress
from sharded_eden.windows.precompute import CONTIGS, PACKING, PrecomputeResult, precompute_window_database
from sharded_eden.windows.split_files import parts_in


@dataclass(frozen=True)
class _Task:
    """One window database to write."""

    name: str
    split: Path
    output: Path
    options: dict[str, Any]


def splits_of_folder(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Return the split files of a folder by the names of their splits, sorted.

    Raises:
        InputError: there is none.
    """
    files = named(folder, SPLIT_SUFFIX)
    if not files:
        raise InputError(
            f"{printable(folder)}: holds no split: looked for *{SPLIT_SUFFIX}. Make them: {split_command(out=folder)}"
        )
    stem = Path(SPLIT_SUFFIX).stem
    for path in parts_in(Path(folder)):
        if path.stem.lower().endswith(stem) and path not in files:
            raise InputError(
                f"{printable(path)}: may be a split, but its name does not end in {SPLIT_SUFFIX}. Rename it, or remove it "
                "from this folder"
            )
    return {path.name.removesuffix(SPLIT_SUFFIX): path for path in files}


def is_folder_of_splits(path: Path) -> bool:
    """Return whether a path is a folder of splits, and not of the parts of one split.

    It is one unless it holds Parquet files of other names alone.
    """
    return path.is_dir() and bool(named(path, SPLIT_SUFFIX) or not parts_in(path))


def precompute_window_databases(
    splits_folder: str | os.PathLike[str],
    output_folder: str | os.PathLike[str],
    *,
    jobs: int = 1,
    progress: Progress | None = None,
    note: Callable[[str], object] | None = None,
    **options: Any,
) -> dict[str, PrecomputeResult]:
    """Write the window database of every split in a folder.

    Each is published when it is complete. Where one fails, the others are finished first.

    Args:
        splits_folder: holds `<split>_split.parquet` for each split.
        output_folder: gets `<split>_windows.db` for each.
        jobs: number of processes; 1 uses this process.
        progress: called with the work done on all splits together, in thousandths of a split, and 1,000 for each split.
        note: called with a split and its current step: `val: packing`.
        options: of `precompute_window_database`, the same for all.

    Returns:
        What was written, by split.

    Raises:
        InputError: there is no split, or one of them is refused.
        UsageError: `jobs` below 1, or an option that is invalid.
        EdenError: a process was killed.

    Warns:
        EdenWarning: as for single splits.
    """
    output = Path(output_folder)
    expect(Path(splits_folder), "SPLIT.parquet", "a folder of split files")
    refuse_url(output, "WINDOWS.db")
    tasks = [
        _Task(name, split, output / f"{name}{WINDOWS_SUFFIX}", options)
        for name, split in splits_of_folder(splits_folder).items()
    ]
    steps = [CONTIGS, PACKING] if options.get("pack") else [CONTIGS]
    done_of = {task.name: 0 for task in tasks}  # in thousandths

    def hear(message: tuple[str, str, int, int]) -> None:
        name, step, done, total = message
        if note is not None:
            note(f"{name}: {step}")
        done_of[name] = int(1000 * (steps.index(step) + done / max(1, total)) / len(steps))
        if progress is not None:
            progress(sum(done_of.values()), 1000 * len(tasks))

    results: dict[str, PrecomputeResult] = {}
    errors: dict[str, BaseException] = {}
    for ended in run_tasks(_run, tasks, Engine(jobs=min(jobs, len(tasks))), heard=hear):
        if ended.result is None:
            errors[ended.task.name] = ended.error or RuntimeError(f"{ended.task.split}: no result")
            continue
        results[ended.task.name], messages = ended.result
        for message in messages:
            warn(message)
    if errors:
        raise errors[min(errors)]
    return {task.name: results[task.name] for task in tasks}


def _run(task: _Task, say: Say) -> tuple[PrecomputeResult, list[str]]:
    """Write one window database; return its totals and its warnings."""
    step = CONTIGS

    def begin(name: str) -> None:
        nonlocal step
        step = name

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EdenWarning)
        result = precompute_window_database(
            task.split,
            task.output,
            note=begin,
            progress=lambda done, total: say((task.name, step, done, total)),
            **task.options,
        )
    return result, [str(each.message) for each in caught if issubclass(each.category, EdenWarning)]
