"""An input whose records all go to one sample: read, written and published by one task.

Enters: a sample and its files. Leaves: its database, or word that it is there already, or that a record names another sample,
which makes the files inputs of the other kind (`mixed.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from sharded_eden.build.formats import ReadOptions
from sharded_eden.build.manifest import Built, Receipt
from sharded_eden.build.records import Record, read_records
from sharded_eden.build.sample import ContigRows, SampleResult, write_sample
from sharded_eden.build.source import STANDARD_INPUT, FileState, Source, file_state
from sharded_eden.build.staging import Place
from sharded_eden.errors import UsageError
from sharded_eden.format import schema
from sharded_eden.jobs import Say, Ticker


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input file."""

    number: int
    """Its place among all inputs: the order in which records are numbered."""
    path: Path
    called: str
    """What messages and the contig table call it."""
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class DirectTask:
    """All that a process needs to build one sample."""

    place: Place
    sample: str
    inputs: tuple[Input, ...]
    options: ReadOptions
    tag: str
    settings: str
    page_size: int
    is_asked_for: bool
    """The user named the sample: a record that names another is then an error."""
    recorded: tuple[FileState, ...] | None
    """What the sample that is there was built from, where it should not be built again."""
    is_taken: bool
    """A database that no build of ours knows of bears its name."""

    @property
    def size_bytes(self) -> int:
        """The size of all inputs."""
        return sum(each.size_bytes for each in self.inputs)


@dataclass(frozen=True, kw_only=True)
class DirectOutcome:
    """What became of such a task: built, mixed, or neither, where the sample that is there was built from these inputs."""

    built: SampleResult | None = None
    states: tuple[FileState, ...] = ()
    """What the inputs were."""
    is_mixed: bool = False


class _NamesAnotherSample(Exception):
    """A record belongs to another sample than its file."""


def build_direct(task: DirectTask, say: Say) -> DirectOutcome:
    """Build one sample.

    Raises:
        UsageError: an input has changed since the sample was built, or a record names another sample than `--sample`.
        InputError: an input cannot be taken as it is.
    """
    if task.recorded is not None:
        now = _states(task)
        if [state.hash for state in now] == [state.hash for state in task.recorded]:
            return DirectOutcome(states=now)
        check_only_grown(task.sample, task.recorded, now)
    files = _Files(task, Ticker(say, task.sample))
    with task.place.desk() as desk:
        rows = ContigRows(desk, "contigs")
        database = desk / "sample.sqlite"
        try:
            result = write_sample(
                database,
                task.sample,
                task.tag,
                files,
                rows,
                page_size=task.page_size,
                tell=files.tell,
                other=files.other,
            )
        except _NamesAnotherSample:
            return DirectOutcome(is_mixed=True)
        states = tuple(files.states)
        built = Built(result=result, staged=task.place.make_ready(database), inputs=tuple(range(len(states))))
        receipt = Receipt(settings=task.settings, inputs=states, built=(built,))
        task.place.publish(f"0-{key_of(task.sample)}", receipt, rows.table())
    return DirectOutcome(built=result, states=states)


def path_of(each: Input) -> str:
    """Return what the manifest calls an input."""
    return STANDARD_INPUT if each.called == STANDARD_INPUT else str(each.path.resolve())


def key_of(name: str) -> str:
    """Return a file name that stands for a sample."""
    return blake2b(name.encode(), digest_size=16).hexdigest()


def taken(out: Path, sample: str) -> UsageError:
    """Return the error for a sample that is there and was not built here."""
    return UsageError(
        f"{schema.sample_database_path(out, sample)}: sample {sample!r} is there already. --force replaces it"
    )


def check_only_grown(sample: str, recorded: tuple[FileState, ...], now: tuple[FileState, ...]) -> None:
    """Refuse to build a sample again unless all it was built from is still there as it was.

    Raises:
        UsageError: an input has changed, or is none any more.
    """
    present = {state.hash for state in now}
    paths = {state.path: state for state in now}
    for old in recorded:
        if old.hash not in present:
            if old.path in paths:
                reason = (
                    f"{old.path} has changed since sample {sample!r} was built from it ({_sizes(old, paths[old.path])})"
                )
            else:
                reason = f"sample {sample!r} was built from {old.path}, which is none of the inputs now"
            raise UsageError(f"{reason}. --force builds it from what is given now")


def _sizes(old: FileState, new: FileState) -> str:
    if old.size_bytes != new.size_bytes:
        return f"{old.size_bytes:,} bytes then, {new.size_bytes:,} now"
    return f"hash {old.hash[:12]} then, {new.hash[:12]} now"


def _states(task: DirectTask) -> tuple[FileState, ...]:
    """Return what the inputs are now; those that look as they did are not read."""
    known = {state.path: state for state in task.recorded or ()}
    states = []
    for each in task.inputs:
        old = known.get(path_of(each))
        states.append(old if old is not None and old.looks_unchanged() else file_state(each.path, each.called))
    return tuple(states)


class _Files:
    """The files of a task, one after the other, and how far reading has come."""

    def __init__(self, task: DirectTask, ticker: Ticker) -> None:
        self._task, self._ticker = task, ticker
        self.states: list[FileState] = []
        self._before = 0
        self._source: Source | None = None

    def __iter__(self) -> Iterator[tuple[str, Iterator[Record]]]:
        for each in self._task.inputs:
            with Source(each.path, each.called) as self._source:
                yield each.called, self._first_free(read_records(self._source, self._task.options))
                self.states.append(self._source.finish())
            self._before += each.size_bytes

    def _first_free(self, records: Iterator[Record]) -> Iterator[Record]:
        """Refuse a sample that is taken, but only once a record is known to be of it."""
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

    def tell(self, records: int, bases: int) -> None:
        """Say how far it has come."""
        if self._source is not None:
            self._ticker.count(records, bases, self._before + self._source.position(), self._task.sample)

    def other(self, where: str, named: str) -> Exception:
        """Return what is to be done about a record that names another sample."""
        if not self._task.is_asked_for:
            return _NamesAnotherSample()
        return UsageError(
            f"{where}: its ID names sample {named!r}, --sample says {self._task.sample!r}. Leave --sample out, or give "
            "these records other names"
        )
