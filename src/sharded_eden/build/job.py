"""State of one build: its options, results and errors, and what is still to be recorded in the manifest.

Used in the process that runs the build; needs a few hundred bytes a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sharded_eden.build.contig_table import update_contig_table
from sharded_eden.build.formats import ReadOptions
from sharded_eden.build.manifest import Manifest, Receipt, Recorded, update_manifest
from sharded_eden.build.sample import SampleResult
from sharded_eden.build.skipped import update_skipped_table
from sharded_eden.build.source import FileState
from sharded_eden.build.staging import DIRECT, Place
from sharded_eden.errors import EdenError, InputError, UsageError, WriteError, printable, shown
from sharded_eden.format import schema
from sharded_eden.jobs import Ended, Engine
from sharded_eden.progress import Totals

FAILURES_SHOWN = 20

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(kw_only=True)
class Job:
    """A running build."""

    place: Place
    engine: Engine
    options: ReadOptions
    tag: str
    settings: str
    """The options that rows depend on, as JSON."""
    sample: str | None
    sample_regex: str | None
    force: bool
    page_size: int | None
    """Page size in bytes; None: the size of each sample decides."""
    accepted: tuple[str, ...]
    """`settings`, and those of earlier builds that give the same rows: without `--skip-bad` a sample has no bad record."""
    skip_bad: bool
    """Leave bad records out, and list them."""
    tally: Totals

    built: dict[str, SampleResult] = field(default_factory=dict)
    unchanged: set[str] = field(default_factory=set)
    grown: set[str] = field(default_factory=set)
    complete: list[FileState] = field(default_factory=list)
    """Inputs all of whose samples are published, not yet in the manifest."""
    scattered: list[tuple[Path | None, list[str]]] = field(default_factory=list)
    """The bad records and the paths of the inputs of each run that samples are gathered from, not yet in `skipped.parquet`."""
    _failures: list[tuple[int, EdenError]] = field(default_factory=list)

    def settle(self) -> list[EdenError]:
        """Publish the databases of all receipts, and add them to the contig table and the manifest.

        Returns:
            An error for each database that could not be published; it is removed when the build ends.
        """
        found = self.place.read_receipts()
        if not found and not self.complete:
            return []
        receipts: list[tuple[Path, Receipt]] = []
        errors: list[EdenError] = []
        for path, receipt in found:
            in_place, failed = self.place.finish(receipt)
            errors += failed
            if in_place.built:
                receipts.append((path, in_place))
        if receipts:
            update_contig_table(self.place.out, receipts, self.place.staging)
        self._list_skipped(receipts)
        update_manifest(self.place.out, [receipt for _, receipt in receipts], self.complete, self.settings)
        self.complete.clear()
        for path, _ in found:
            path.unlink()
        return errors

    def _list_skipped(self, receipts: list[tuple[Path, Receipt]]) -> None:
        """Add the bad records of some receipts and of all runs to `skipped.parquet`."""
        latest = {built.result.sample: path for path, receipt in receipts for built in receipt.built}
        rows = []
        for path, receipt in receipts:
            samples = [built.result.sample for built in receipt.built if latest[built.result.sample] == path]
            was_read = path.name.startswith(DIRECT)
            rows.append((path, samples, [printable(state.path) for state in receipt.inputs] if was_read else []))
        update_skipped_table(self.place.out, rows, self.scattered)
        self.scattered = []

    def outcome(self, ended: Ended[Task, Result], number: int) -> Result | None:
        """Return the result of a task. An error that concerns its inputs alone is kept; any other is raised.

        Args:
            ended: the task, with its result or its error.
            number: that of its first input; errors are sorted by it.
        """
        if ended.error is None:
            return ended.result
        if not isinstance(ended.error, (InputError, UsageError)) or isinstance(ended.error, WriteError):
            raise ended.error
        self._failures.append((number, ended.error))
        return None

    def note_refused(self, errors: Iterable[tuple[int, InputError]]) -> None:
        """Keep the errors of samples that were not built, each with the number of its first input."""
        self._failures += errors

    def has_failed(self) -> bool:
        """Tell whether an error is kept."""
        return bool(self._failures)

    def failed(self) -> EdenError:
        """Return one error with the messages of all that are kept, in the order of the inputs."""
        errors = [error for _, error in sorted(self._failures, key=lambda failure: failure[0])]
        if len(errors) == 1:
            return errors[0]
        first = [str(error) for error in errors[:FAILURES_SHOWN]]
        more = [f"and {len(errors) - FAILURES_SHOWN} more"] if len(errors) > FAILURES_SHOWN else []
        return type(errors[0])("\n  ".join([f"{len(errors)} inputs or samples were refused:", *first, *more]))

    def note_built(self, results: Iterable[SampleResult], grown: set[str]) -> None:
        """Record which samples were built, and which of them had been built before."""
        for result in results:
            self.built[result.sample] = result
            if result.sample in grown:
                self.grown.add(result.sample)

    def database(self, sample: str) -> Path:
        """Return the path of a sample's database."""
        return schema.sample_database_path(self.place.out, sample)

    def is_whole(self, sample: str, recorded: Recorded | None) -> bool:
        """Return whether a sample's database exists and matches the manifest.

        Raises:
            UsageError: it exists, but was built with other settings, or is not the file that was built.
        """
        if recorded is None:
            return False
        path = self.database(sample)
        if recorded.settings not in self.accepted:
            raise UsageError(
                f"{printable(path)} was built with other settings ({shown(recorded.settings, 300)}, now "
                f"{shown(self.settings, 300)}). --force builds it again"
            )
        try:
            size_bytes = path.stat().st_size
        except FileNotFoundError:
            return False
        if size_bytes != recorded.bytes_on_disk:
            raise UsageError(
                f"{printable(path)} is not the file that was built ({recorded.bytes_on_disk:,} bytes then, {size_bytes:,} "
                "now). --force replaces it"
            )
        return True

    def all_whole(self, samples: Sequence[str], manifest: Manifest) -> bool:
        """Return whether the databases of some samples exist and match the manifest."""
        return all(sample in self.unchanged or self.is_whole(sample, manifest.sample(sample)) for sample in samples)
