"""`stats`: what is in sequence databases, splits and window databases.

    sequence databases ──one task each, with the windows of their contigs──▶ counts, merged
    window databases without sequences, split files ──read in order──▶ counts of lengths and windows

Input: paths. Output: counts. Memory grows with the distinct lengths, and with the groups if there are any; not with contigs,
windows or bases.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import polars as pl

from sharded_eden.checks.window_ranges import copy_with_index
from sharded_eden.describe.group import By, Groups
from sharded_eden.describe.packing import share_if_packed
from sharded_eden.describe.part import Part, StatsResult
from sharded_eden.describe.sample import SampleCounts, SampleTask, count_sample
from sharded_eden.describe.window_table import OpenSplit, Split
from sharded_eden.errors import DatabaseError, EdenError, InputError, MissingDatabase, UsageError, printable, shown
from sharded_eden.format.commands import precompute_command, split_command, stats_command, verify_command
from sharded_eden.format.geometry import MOST, integer
from sharded_eden.format.kinds import kinds_of, named, refuse_url
from sharded_eden.format.parquet import parquet_errors, parquet_source
from sharded_eden.format.schema import CONTIG_ID, LENGTH, SPLIT_SUFFIX, WINDOWS_SUFFIX, discover_sample_databases
from sharded_eden.format.sqlite import open_read_only
from sharded_eden.format.window_db import has_id_index
from sharded_eden.jobs import Engine, run_tasks
from sharded_eden.progress import Meter, Progress

ROWS_PER_BATCH = 1 << 16


def stats(
    *paths: str | os.PathLike[str],
    by: By | None = None,
    sample: float | None = None,
    seed: int = 42,
    letters: bool = True,
    jobs: int = 1,
    progress: Progress | None = None,
) -> StatsResult:
    """Count what is in sequence databases, window databases and split files.

    Args:
        paths: a folder of sequence databases, window databases, split files, or folders of the last two. With the sequence
            databases, the letters of each split are counted, and contigs that have no window are known.
        by: count each sample, or each tag, too.
        sample: count the letters of this share of the contigs only, chosen by their IDs; in (0, 1]. Shares of letters are then
            estimates; lengths and windows stay exact.
        seed: another seed chooses other contigs.
        letters: False reads no bases: composition is None.
        jobs: sequence databases that are read at the same time.
        progress: called with the bytes of sequence databases that are done and their total.

    Raises:
        UsageError: a path is of another kind, or is given twice; or an option is invalid.
        DatabaseError: a database is damaged, or windows and sequences do not belong together.
        InputError: a Parquet file is no split.

    Example:
        >>> from sharded_eden import stats
        >>> result = stats("sequence_db_dir", "windows/train_windows.db")
        >>> result.parts[0].total.lengths.n50
        20000
    """
    if by is not None and by not in get_args(By):
        raise UsageError(f"by must be 'sample' or 'tag', not {shown(by)}")
    if sample is not None and not 0 < sample <= 1:
        raise UsageError(f"sample must be a share above 0, and 1 at most, not {shown(sample)}")
    seed = integer(seed, "seed")
    if not -(2**63) <= seed < 2**63:
        raise UsageError(f"seed must fit into 64 bits, not {shown(seed)}")
    engine = Engine("local", jobs)
    folders, windows, splits = _sorted_by_kind(paths)
    share = 1.0 if sample is None else sample
    with tempfile.TemporaryDirectory(prefix="sharded-eden-stats-") as scratch:
        opened = [_with_index(Split.of(path), Path(scratch) / f"windows{k}") for k, path in enumerate(windows)]
        parts = (
            _with_sequences(folders[0], opened, windows, by, share, seed, letters, engine, progress)
            if folders
            else [_windows_alone(split, path, by) for split, path in zip(opened, windows, strict=True)]
        )
    parts += [_split_file(path, by) for path in splits]
    return StatsResult(parts=parts, by=by, sampled=sample if sample is not None and sample < 1 and folders else None)


def _sorted_by_kind(paths: Sequence[str | os.PathLike[str]]) -> tuple[list[Path], list[Path], list[Path]]:
    """Return folders of sequence databases, window databases and split files."""
    folders: list[Path] = []
    windows: list[Path] = []
    splits: list[Path] = []
    for given in paths:
        refuse_url(given, "PATH")
        path = Path(given)
        kinds = kinds_of(path)
        if "a folder of sequence databases" in kinds:
            folders.append(path)
        elif "a folder of window databases" in kinds:
            windows += named(path, WINDOWS_SUFFIX)
        elif "a folder of split files" in kinds:
            splits += named(path, SPLIT_SUFFIX)
        elif "a window database" in kinds:
            windows.append(path)
        elif "a Parquet file" in kinds:
            splits.append(path)
        else:
            if not kinds and path.is_dir():
                with suppress(MissingDatabase):
                    discover_sample_databases(path)  # raises what cannot be read
            found = f"is {kinds[0]}" if kinds else "is no such file or folder" if not path.exists() else "is neither"
            raise UsageError(
                f"{printable(path)} {found}; expected a folder of sequence databases, a window database, or a split file"
            )
    if not paths:
        raise UsageError(f"nothing to count: {stats_command()}")
    if len(folders) > 1:
        raise UsageError(
            f"{printable(folders[0])} and {printable(folders[1])} are both sequence databases: give one folder"
        )
    for several in (windows, splits):
        real = [os.path.realpath(path) for path in several]
        for k, each in enumerate(real):
            if each in real[:k]:
                raise UsageError(f"{printable(several[k])} is given twice")
    return folders, windows, splits


def _with_index(split: Split, copy: Path) -> Split:
    """Return a window database that has an index on its IDs: itself, or a temporary copy."""
    with closing(open_read_only(split.path)) as database:
        if has_id_index(database):
            return split
        copy_with_index(split.path, copy, str(database.pragma("encoding")), split.has_lengths)
    return replace(split, path=copy)


def _with_sequences(
    folder: Path,
    splits: Sequence[Split],
    names: Sequence[Path],
    by: By | None,
    share: float,
    seed: int,
    letters: bool,
    engine: Engine,
    progress: Progress | None,
) -> list[Part]:
    paths = discover_sample_databases(folder)
    tasks = [
        SampleTask(
            sample=sample,
            path=path,
            by=by,
            splits=tuple(splits),
            share=share,
            seed=seed,
            letters=letters,
            check_samples=bool(splits) and len(paths) > 1,
        )
        for sample, path in paths.items()
    ]
    contigs = Groups(by)
    of_splits = [Groups(by, split.geometry) for split in splits]
    counts = [0, 0, 0]
    for counted in _run(tasks, engine, progress):
        contigs.merge(counted.contigs)
        for groups, more in zip(of_splits, counted.splits, strict=True):
            groups.merge(more)
        counts[0] += counted.unassigned_contigs
        counts[1] += counted.unassigned_bases
        counts[2] += counted.too_short_bases
    whole = Part(
        path=folder, kind="sequence databases", total=contigs.total, groups=contigs.by_name, samples=len(paths)
    )
    if splits:
        whole.unassigned_contigs, whole.unassigned_bases, whole.too_short_bases = counts
    parts = [whole]
    for split, groups, name in zip(splits, of_splits, names, strict=True):
        found = groups.total.all_windows.windows
        if found != split.windows:
            raise DatabaseError(
                f"{printable(name)}: {split.windows - found:,} of its {split.windows:,} windows are of contigs that are not in "
                f"{printable(folder)}. Check it: {verify_command(folder, name, full=True)}"
            )
        parts.append(_part(replace(split, path=name), groups))
    return parts


def _part(split: Split, groups: Groups) -> Part:
    part = Part(path=split.path, kind="window database", total=groups.total, groups=groups.by_name, split=split)
    if split.packs is None:
        part.if_packed = share_if_packed(groups.total.all_windows.rows, split.geometry)
        return part
    useful = groups.total.all_windows.useful_tokens
    if split.pack_row_tokens is None and split.pack_useful_tokens not in {None, useful}:
        again = precompute_command(split.path, geometry=split.geometry, pack=True, force=True)
        raise DatabaseError(
            f"{printable(split.path)}: its packs hold {split.pack_useful_tokens:,} useful tokens, its windows {useful:,}. "
            f"Make it again: {again}"
        )
    return part


def _run(tasks: Sequence[SampleTask], engine: Engine, progress: Progress | None) -> Iterable[SampleCounts]:
    """Run all tasks; results come in any order, and are merged at once."""
    sizes = [task.path.stat().st_size for task in tasks]
    meter, done = Meter(progress, sum(sizes)), 0
    within: dict[int, int] = {}

    def heard(message: tuple[int, float]) -> None:
        number, part = message
        if number in within:
            within[number] = int(part * sizes[number])
            meter.reach(done + sum(within.values()))

    within.update(dict.fromkeys(range(len(tasks)), 0))
    for ended in run_tasks(_numbered, list(enumerate(tasks)), engine, heard=heard):
        if ended.result is None:
            raise ended.error or EdenError("a task of stats gave no result")
        number = ended.task[0]
        within.pop(number)
        done += sizes[number]
        meter.reach(done)
        yield ended.result
    meter.finish()


def _numbered(task: tuple[int, SampleTask], say: Any) -> SampleCounts:
    number, work = task
    return count_sample(work, lambda share: say((number, share)))


def _windows_alone(split: Split, name: Path, by: By | None) -> Part:
    if not split.has_lengths:
        raise UsageError(
            f"{printable(name)} has no table contig_lengths, so the lengths of its contigs are unknown. Give the sequence "
            f"databases, too: {stats_command('SEQDB', name)}"
        )
    groups = Groups(by, split.geometry)
    with ExitStack() as stack:
        for ids, lengths, found in OpenSplit(split, stack).all_windows():
            for group, where in groups.of(ids):
                group.lengths.add(lengths[where])
                found.add_to(group.all_windows, lengths, where)
    found_windows = groups.total.all_windows.windows
    if found_windows != split.windows:
        raise DatabaseError(
            f"{printable(name)}: its metadata say {split.windows:,} windows, its index on sequence_id has "
            f"{found_windows:,}. Check it: {verify_command('SEQDB', name, full=True)}"
        )
    return _part(replace(split, path=name), groups)


def _split_file(path: Path, by: By | None) -> Part:
    groups = Groups(by)
    hint = f"Expected a split with contig_id and length: {split_command()}"
    with parquet_source(path, hint) as source, parquet_errors(path, hint):
        table = pl.scan_parquet(source, glob=False).select(CONTIG_ID, LENGTH)
        if not table.collect_schema()[LENGTH].is_integer():
            raise InputError(f"{printable(path)}: its column length does not hold integers. {hint}")
        columns = (pl.col(CONTIG_ID).cast(pl.String), pl.col(LENGTH).cast(pl.Int64))
        for batch in table.select(columns).collect_batches(chunk_size=ROWS_PER_BATCH):
            if batch.null_count().sum_horizontal().item():
                raise InputError(f"{printable(path)}: a row has no contig_id or no length. {hint}")
            ids, lengths = batch[CONTIG_ID].to_list(), batch[LENGTH].to_numpy()
            wrong = (lengths < 0) | (lengths > MOST)
            if wrong.any():
                k = int(wrong.argmax())
                raise InputError(f"{printable(path)}: contig {shown(ids[k])} has {lengths[k]} bases. {hint}")
            for group, where in groups.of(ids):
                group.lengths.add(lengths[where])
    return Part(path=path, kind="split file", total=groups.total, groups=groups.by_name)
