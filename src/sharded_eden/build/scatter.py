"""Scatter and gather: records of several samples are written to runs, then collected sample by sample.

    input 1 ─┐ scatter: one task a run               gather: one task for a range of samples
    input 2 ─┴▶ run 0: records, indexed by sample ─┬─▶ S1, S2, S3
    input 3 ──▶ run 1 ─────────────────────────────┴─▶ S4, S5

A run is an SQLite file on scratch that holds the records of some inputs, in their order. Each base is written twice, which
needs disk space; each task needs the memory of one record.
"""

from __future__ import annotations

import heapq
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import apsw

from sharded_eden.build.contig_rows import ContigRows, polars_path
from sharded_eden.build.direct import Input, key_of, path_of
from sharded_eden.build.formats import ReadOptions
from sharded_eden.build.manifest import Built, Receipt
from sharded_eden.build.records import Record, read_records
from sharded_eden.build.sample import LARGE_PAGE, SampleResult, page_size_for, write_sample
from sharded_eden.build.skipped import BadRecord, SkippedRows, with_skipped
from sharded_eden.build.source import FileState, Source, describe
from sharded_eden.build.staging import GATHERED, Place
from sharded_eden.errors import InputError, UsageError, printable, shown
from sharded_eden.format import schema
from sharded_eden.format.publish import create_database, writing
from sharded_eden.format.sqlite import open_read_only
from sharded_eden.jobs import Say
from sharded_eden.progress import Tick, Ticker

MOST_RUNS = 96
"""The largest number of runs: a gathering task opens all of them, and some systems allow a process only 256 files."""

GATHER_BASES = 256_000_000
GATHER_SAMPLES = 500
"""The largest numbers of bases and samples of one gathering task; a single sample may have more bases."""

_CREATE_RUN = """
CREATE TABLE records (
    sample TEXT NOT NULL, input INTEGER NOT NULL, ordinal INTEGER NOT NULL, bases INTEGER NOT NULL,
    name TEXT NOT NULL, description TEXT NOT NULL, sequence TEXT NOT NULL
)"""
_INDEX_RUN = "CREATE INDEX by_sample ON records(sample, input, ordinal, bases)"
_SHARES = "SELECT sample, input, count(*), sum(bases) FROM records GROUP BY sample, input ORDER BY sample, input"
_RECORDS = (
    "SELECT name, description, sequence, ordinal, sample FROM records WHERE sample = ? AND input = ? ORDER BY ordinal"
)


@dataclass(frozen=True, kw_only=True)
class ScatterTask:
    """The inputs of one run."""

    place: Place
    folder: Path
    """The folder of runs, visible to all processes that gather."""
    inputs: tuple[Input, ...]
    defaults: tuple[str | None, ...]
    """The default sample of each input, for records that name none; None if there is none."""
    options: ReadOptions
    sample_regex: str | None
    skip_bad: bool

    @property
    def size_bytes(self) -> int:
        """The size of all inputs."""
        return sum(each.size_bytes for each in self.inputs)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as written."""

    path: Path
    states: dict[int, FileState]
    """The state of each input, by its number."""
    unnamed: frozenset[int]
    """The inputs with records that name no sample."""
    records: int
    bases: int
    skipped: Path | None
    """The rows of its bad records, None where there are none."""


def scatter(task: ScatterTask, say: Say) -> Run:
    """Write the records of some inputs to a run.

    Raises:
        InputError: an input is invalid, or a record's name does not match `--sample-regex`; if bad records are left out, all
            records of an input are bad.
        UsageError: a record names a sample whose name is not allowed.
    """
    states: dict[int, FileState] = {}
    unnamed: set[int] = set()
    ticker = Ticker(say, task.inputs[0].number)
    pattern = re.compile(task.sample_regex) if task.sample_regex is not None else None
    path = task.folder / f"{uuid4().hex}.run"
    checked: set[str] = set()
    skipped: SkippedRows | None = None

    def rows() -> Iterator[tuple[str, int, int, int, str, str, str]]:
        before = 0
        for each, default in zip(task.inputs, task.defaults, strict=True):
            with Source(each.path, each.called) as source:
                for record, named in _with_samples(source, each, task.options, pattern, skipped):
                    if named is None:
                        unnamed.add(each.number)
                    sample = default if named is None else named
                    if sample is None:
                        raise UsageError(
                            f"{describe(each.called, record.ordinal, record.name)}: names no sample, nor does the name of "
                            f"its {each.sample_from}. Give one: --sample NAME, or --sample-regex"
                        )
                    if sample not in checked:
                        schema.check_folder_name(sample, describe(each.called, record.ordinal, record.name))
                        checked.add(sample)
                    bases = len(record.sequence)
                    yield sample, each.number, record.ordinal, bases, record.name, record.description, record.sequence
                    ticker.count(1, bases, (before + source.position()) // 2, sample)
                states[each.number] = source.finish()
            before += each.size_bytes

    with task.place.task_folder() as task_folder:
        if task.skip_bad:
            skipped = SkippedRows(task_folder, {each.called: printable(path_of(each)) for each in task.inputs})
        unfinished = task_folder / "run"
        with writing(unfinished), closing(create_database(unfinished, page_size=LARGE_PAGE)) as database:
            database.execute(f"BEGIN; {_CREATE_RUN}")
            database.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", rows())
            database.execute(_INDEX_RUN)
            database.execute("COMMIT")
        with writing(path):
            shutil.move(unfinished, path)
        listed = path.with_suffix(".skipped.parquet") if skipped else None
        if skipped and listed:
            with writing(listed):
                skipped.table().sink_parquet(polars_path(listed))
    return Run(
        path=path,
        states=states,
        unnamed=frozenset(unnamed),
        records=ticker.records,
        bases=ticker.bases,
        skipped=listed,
    )


def _with_samples(
    source: Source, each: Input, options: ReadOptions, pattern: re.Pattern[str] | None, skipped: SkippedRows | None
) -> Iterator[tuple[Record, str | None]]:
    """Yield the records of an input, each with the sample that it names, None where it names none.

    Raises:
        InputError: the input is invalid, or a record is bad; where `skipped` takes bad records, all of them are.
    """
    first: BadRecord | None = None
    good = bad = 0

    def skip(called: str, ordinal: int, error: BadRecord) -> None:
        nonlocal first, bad
        if skipped is None:
            raise error
        first, bad = first or error, bad + 1
        skipped.add(called, ordinal, error)

    for record in read_records(source, options, skip=None if skipped is None else skip):
        try:
            sample = _sample_of(record, each, pattern)
        except BadRecord as error:
            skip(each.called, record.ordinal, error)
            continue
        good += 1
        yield record, sample
    if not good:
        raise InputError(f"{each.called}: all of its {bad:,} records are bad. The first: {first}")


def _sample_of(record: Record, file: Input, pattern: re.Pattern[str] | None) -> str | None:
    """Return the sample that a record names, None where it names none."""
    by_id = schema.extract_sample_id(record.name) if schema.has_sequence_id_form(record.name) else None
    if pattern is None and not record.sample:
        return by_id
    where = describe(file.called, record.ordinal, record.name)
    if pattern is None:
        option, sample = "--sample-field", record.sample
    else:
        match = pattern.search(record.name)
        if match is None or match["sample"] is None:
            raise BadRecord(
                f"{where}: --sample-regex {shown(pattern.pattern)} finds no sample in its name", "sample", record.name
            )
        option, sample = "--sample-regex", match["sample"]
    if by_id is not None and by_id != sample:
        raise UsageError(f"{where}: its ID names sample {shown(by_id)}, {option} gives {shown(sample)}")
    schema.check_sample_id(sample, f"{where}, by {option}")
    return sample


def scatter_tasks(
    place: Place,
    folder: Path,
    inputs: Sequence[tuple[Input, str | None]],
    options: ReadOptions,
    sample_regex: str | None,
    *,
    skip_bad: bool,
) -> Iterator[ScatterTask]:
    """Yield tasks that together scatter some inputs, each with its default sample, in groups of about the same size."""
    whole = sum(each.size_bytes for each, _ in inputs) + len(inputs)
    before = 0
    groups: dict[int, list[tuple[Input, str | None]]] = {}
    for each, default in inputs:
        groups.setdefault(before * min(len(inputs), MOST_RUNS) // whole, []).append((each, default))
        before += each.size_bytes + 1
    for group in groups.values():
        files, defaults = zip(*group, strict=True)
        yield ScatterTask(
            place=place,
            folder=folder,
            inputs=files,
            defaults=defaults,
            options=options,
            sample_regex=sample_regex,
            skip_bad=skip_bad,
        )


class Share(NamedTuple):
    """The records of one sample in all runs."""

    sample: str
    inputs: tuple[tuple[int, Path], ...]
    """Each input's number, in order, and the run that holds its records."""
    contigs: int
    bases: int


def shares(runs: Sequence[Run]) -> Iterator[Share]:
    """Yield the records of each sample, sorted by sample."""
    with ExitStack() as stack:
        cursors = [_shares_of(stack.enter_context(closing(open_read_only(run.path))), run.path) for run in runs]
        for sample, found in groupby(heapq.merge(*cursors), key=lambda row: row[0]):
            rows = list(found)
            yield Share(
                sample,
                tuple((number, path) for _, number, _, _, path in rows),
                sum(row[2] for row in rows),
                sum(row[3] for row in rows),
            )


def _shares_of(run: apsw.Connection, path: Path) -> Iterator[tuple[str, int, int, int, Path]]:
    for sample, number, contigs, bases in run.execute(_SHARES):
        yield str(sample), int(number), int(contigs), int(bases), path


@dataclass(frozen=True, kw_only=True)
class GatherTask:
    """Samples that one task builds from the runs."""

    place: Place
    shares: tuple[Share, ...]
    inputs: dict[int, tuple[str, FileState]]
    """The name in messages and the state of each input, by its number."""
    tag: str
    settings: str
    page_size: int | None
    """Page size in bytes; None: the size of each sample decides."""
    skip_bad: bool


def gather_tasks(
    wanted: Iterator[Share],
    place: Place,
    inputs: dict[int, tuple[str, FileState]],
    tag: str,
    settings: str,
    page_size: int | None,
    *,
    skip_bad: bool,
) -> Iterator[GatherTask]:
    """Yield tasks that together build some samples."""
    some: list[Share] = []

    def task() -> GatherTask:
        used = {number for share in some for number, _ in share.inputs}
        return GatherTask(
            place=place,
            shares=tuple(some),
            inputs={n: inputs[n] for n in sorted(used)},
            tag=tag,
            settings=settings,
            page_size=page_size,
            skip_bad=skip_bad,
        )

    for share in wanted:
        if some and (len(some) == GATHER_SAMPLES or sum(s.bases for s in some) + share.bases > GATHER_BASES):
            yield task()
            some = []
        some.append(share)
    if some:
        yield task()


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What a gathering task has built."""

    results: list[SampleResult]
    errors: list[tuple[int, InputError]]
    """The number of the first input, and the error, of each sample that was refused."""


def gather(task: GatherTask, say: Say) -> Gathered:
    """Build some samples from the runs. One whose records share a name or an ID is left out; its error is returned."""
    numbers = list(task.inputs)
    results = []
    errors = []
    with task.place.task_folder() as task_folder, ExitStack() as stack:
        rows = ContigRows(task_folder, "contigs")
        skipped = None
        if task.skip_bad:
            skipped = SkippedRows(
                task_folder, {called: printable(state.path) for called, state in task.inputs.values()}
            )
        opened: dict[Path, apsw.Connection] = {}
        built = []
        for place_in_task, share in enumerate(task.shares):
            for _, path in share.inputs:
                if path not in opened:
                    opened[path] = stack.enter_context(closing(open_read_only(path)))
            database = task_folder / f"{place_in_task}.sqlite"
            say(Tick(task.shares[0].sample, 0, 0, 0, share.sample))
            page_size = task.page_size or page_size_for(share.bases)
            if skipped is not None:
                skipped.sample = share.sample
            before = len(rows)
            try:
                result = write_sample(
                    database,
                    share.sample,
                    task.tag,
                    _files(task, share, opened),
                    rows,
                    page_size=page_size,
                    skip=None if skipped is None else skipped.add,
                )
            except InputError as error:
                rows.cut(before)  # rows of `skipped` count only for the samples that the receipt names
                errors.append((share.inputs[0][0], error))
                continue
            results.append(result)
            inputs = tuple(numbers.index(number) for number, _ in share.inputs)
            built.append(Built(result=result, staged=task.place.make_ready(database), inputs=inputs))
        if built:
            states = tuple(state for _, state in task.inputs.values())
            receipt = Receipt(settings=task.settings, inputs=states, built=tuple(built))
            task.place.publish(
                f"{GATHERED}{key_of(task.shares[0].sample)}", receipt, with_skipped(rows.table(), skipped)
            )
    return Gathered(results=results, errors=errors)


def _files(task: GatherTask, share: Share, runs: dict[Path, apsw.Connection]) -> Iterator[tuple[str, Iterator[Record]]]:
    for number, path in share.inputs:
        called, _ = task.inputs[number]
        yield called, map(Record._make, runs[path].execute(_RECORDS, (share.sample, number)))
