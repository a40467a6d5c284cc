"""One task for one sample: its input files are read, and its database is written and published.

Input: a sample and its files. Output: its database; or the result that the database exists already; or that a record names
another sample: the files are then scattered (`pool.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from sharded_eden.build.contig_rows import ContigRows
from sharded_eden.build.formats import ReadOptions
from sharded_eden.build.manifest import Built, Receipt
from sharded_eden.build.records import Record, default_sample_id, read_records
from sharded_eden.build.sample import SampleResult, write_sample
from sharded_eden.build.skipped import Skip, SkippedRows, with_skipped
from sharded_eden.build.source import STANDARD_INPUT, FileState, Source, file_state
from sharded_eden.build.staging import DIRECT, Place
from sharded_eden.errors import UsageError, printable, shown
from sharded_eden.format import schema
from sharded_eden.jobs import Say
from sharded_eden.progress import Ticker


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input file."""

    number: int
    """Its position among all inputs; records are numbered in this order."""
    path: Path
    called: str
    """Its name in messages and in the contig table."""
    size_bytes: int
    sample_from: str
    """Which name gives the default sample, one of `SAMPLE_FROM`."""

    @property
    def default_sample(self) -> str | None:
        """The sample of its records that name none, from the name of its file or folder; None if that gives none."""
        if self.called == STANDARD_INPUT:
            return None
        try:
            return default_sample_id(self.path, self.sample_from)
        except UsageError:
            return None


@dataclass(frozen=True, kw_only=True)
class DirectTask:
    """A task that builds one sample."""

    place: Place
    sample: str
    inputs: tuple[Input, ...]
    options: ReadOptions
    tag: str
    settings: str
    page_size: int
    skip_bad: bool
    is_asked_for: bool
    """The user named the sample: a record that names another is then an error."""
    recorded: tuple[FileState, ...] | None
    """The inputs of the existing sample; None if it is to be built again."""
    is_taken: bool
    """The sample has a database that the manifest does not list."""

    @property
    def size_bytes(self) -> int:
        """The size of all inputs."""
        return sum(each.size_bytes for each in self.inputs)


@dataclass(frozen=True, kw_only=True)
class DirectOutcome:
    """The result of such a task: built, or mixed, or neither if the existing sample was built from these inputs."""

    built: SampleResult | None = None
    states: tuple[FileState, ...] = ()
    """The states of the inputs."""
    is_mixed: bool = False


class _NamesAnotherSample(Exception):
    """A record belongs to another sample than its file."""


def build_direct(task: DirectTask, say: Say) -> DirectOutcome:
    """Build one sample.

    Raises:
        UsageError: an input has changed since the sample was built, a new one comes before it, or a record names another
            sample than `--sample`.
        InputError: an input is invalid.
    """
    if task.recorded is not None:
        now = _states(task)
        if [state.hash for state in now] == [state.hash for state in task.recorded]:
            return DirectOutcome(states=now)
        check_only_grown(task.sample, task.recorded, now)
        check_same_order(task.sample, task.recorded, now)
    with task.place.task_folder() as task_folder:
        skipped = None
        if task.skip_bad:
            skipped = SkippedRows(task_folder, {each.called: printable(path_of(each)) for each in task.inputs})
            skipped.sample = task.sample
        skip = skipped.add if skipped is not None else None
        files = _Files(task, Ticker(say, task.sample), skip)
        rows = ContigRows(task_folder, "contigs")
        database = task_folder / "sample.sqlite"
        try:
            result = write_sample(
                database,
                task.sample,
                task.tag,
                files,
                rows,
                page_size=task.page_size,
                report=files.report,
                other=files.other,
                skip=skip,
            )
        except _NamesAnotherSample:
            return DirectOutcome(is_mixed=True)
        states = tuple(files.states)
        built = Built(result=result, staged=task.place.make_ready(database), inputs=tuple(range(len(states))))
        receipt = Receipt(settings=task.settings, inputs=states, built=(built,))
        task.place.publish(f"{DIRECT}{key_of(task.sample)}", receipt, with_skipped(rows.table(), skipped))
    return DirectOutcome(built=result, states=states)


def path_of(each: Input) -> str:
    """Return the name of an input in the manifest."""
    return STANDARD_INPUT if each.called == STANDARD_INPUT else str(each.path.resolve())


def key_of(name: str) -> str:
    """Return a file name of fixed length for a sample."""
    return blake2b(name.encode(), digest_size=16).hexdigest()


def taken(out: Path, sample: str) -> UsageError:
    """Return the error for an existing sample that is not in the manifest."""
    return UsageError(
        f"{printable(schema.sample_database_path(out, sample))}: sample {sample!r} is there already. --force replaces it"
    )


def check_only_grown(sample: str, recorded: tuple[FileState, ...], now: tuple[FileState, ...]) -> None:
    """Raise an error for a sample some of whose inputs have changed or are no longer given.

    Raises:
        UsageError: an input has changed, or is no longer given.
    """
    present = {state.hash for state in now}
    paths = {state.path: state for state in now}
    for old in recorded:
        if old.hash not in present:
            if old.path in paths:
                difference = _sizes(old, paths[old.path])
                reason = f"{printable(old.path)} has changed since sample {sample!r} was built from it ({difference})"
            else:
                reason = f"sample {sample!r} was built from {printable(old.path)}, which is not one of the inputs now"
            raise UsageError(f"{reason}. --force builds it from what is given now")


def check_same_order(sample: str, recorded: tuple[FileState, ...], now: tuple[FileState, ...]) -> None:
    """Raise an error for a sample that has gained an input before one of its old ones.

    Contigs are numbered in the order of the inputs. Another order would give each contig an ID that named another one before,
    perhaps one of another split.

    Args:
        sample: its name.
        recorded: the inputs that it was built from, all of which are in `now`.
        now: those with records of it now, in the order of the inputs.

    Raises:
        UsageError: an input comes before one of the old ones, or these have another order.
    """
    for old, new in zip(recorded, now, strict=False):
        if old.hash != new.hash:
            raise UsageError(
                f"sample {sample!r} was built from {printable(old.path)}, and {printable(new.path)} comes before it now, so "
                "that its contigs would get other IDs. Name the inputs that it was built from first, then the new ones; or "
                "--force builds it again: splits and window databases must then be made again in other folders"
            )


def _sizes(old: FileState, new: FileState) -> str:
    if old.size_bytes != new.size_bytes:
        return f"{old.size_bytes:,} bytes then, {new.size_bytes:,} now"
    return f"hash {old.hash[:12]} then, {new.hash[:12]} now"


def _states(task: DirectTask) -> tuple[FileState, ...]:
    """Return the current states of the inputs; inputs with the same size and modification time are not read."""
    known = {state.path: state for state in task.recorded or ()}
    states = []
    for each in task.inputs:
        old = known.get(path_of(each))
        states.append(old if old is not None and old.looks_unchanged() else file_state(each.path, each.called))
    return tuple(states)


class _Files:
    """The files of a task, one after another, and the number of bytes read."""

    def __init__(self, task: DirectTask, ticker: Ticker, skip: Skip | None) -> None:
        self._task, self._ticker, self._skip = task, ticker, skip
        self.states: list[FileState] = []
        self._before = 0
        self._source: Source | None = None

    def __iter__(self) -> Iterator[tuple[str, Iterator[Record]]]:
        for each in self._task.inputs:
            with Source(each.path, each.called) as self._source:
                yield each.called, self._first_free(read_records(self._source, self._task.options, skip=self._skip))
                self.states.append(self._source.finish())
            self._before += each.size_bytes

    def _first_free(self, records: Iterator[Record]) -> Iterator[Record]:
        """Raise an error for an existing sample, but only after one of its records was read."""
        if not self._task.is_taken:
            return records
        return self._refused(records)

    def _refused(self, records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            if (
                not schema.has_sequence_id_form(record.name)
                or schema.extract_sample_id(record.name) == self._task.sample
            ):
                raise taken(self._task.place.out, self._task.sample)
            yield record

    def report(self, records: int, bases: int) -> None:
        """Report the progress."""
        if self._source is not None:
            self._ticker.count(records, bases, self._before + self._source.position(), self._task.sample)

    def other(self, where: str, named: str) -> Exception:
        """Return the error to raise for a record that names another sample."""
        if not self._task.is_asked_for:
            return _NamesAnotherSample()
        return UsageError(
            f"{where}: its ID names sample {shown(named)}, --sample says {shown(self._task.sample)}. Leave --sample out, or "
            "give these records other names"
        )
