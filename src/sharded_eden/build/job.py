"""What one build was asked for, what came of it, and what goes into the books.

Lives in the process that runs the build, and holds a few hundred bytes a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sharded_eden.build.contig_table import update_contig_table
from sharded_eden.build.formats import ReadOptions
from sharded_eden.build.manifest import Manifest, Recorded, update_manifest
from sharded_eden.build.sample import SampleResult
from sharded_eden.build.source import FileState
from sharded_eden.build.staging import Place
from sharded_eden.errors import EdenError, InputError, UsageError
from sharded_eden.format import schema
from sharded_eden.jobs import Ended, Engine, Tally

FAILURES_SHOWN = 20

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(kw_only=True)
class Job:
    """A build on its way."""

    place: Place
    engine: Engine
    options: ReadOptions
    tag: str
    settings: str
    """All that rows depend on beside the inputs, as JSON."""
    sample: str | None
    sample_regex: str | None
    force: bool
    page_size: int | None
    """Bytes a page; None: as each sample's size suggests."""
    tally: Tally

    built: dict[str, SampleResult] = field(default_factory=dict)
    unchanged: set[str] = field(default_factory=set)
    grown: set[str] = field(default_factory=set)
    complete: list[FileState] = field(default_factory=list)
    """Inputs all of whose samples are in place, not yet in the manifest."""
    _failures: list[tuple[int, EdenError]] = field(default_factory=list)

    def settle(self) -> None:
        """Complete what receipts tell of, and enter it into the contig table and the manifest."""
        receipts = self.place.read_receipts()
        if not receipts and not self.complete:
            return
        for _, receipt in receipts:
            self.place.finish(receipt)
        if receipts:
            update_contig_table(self.place.out, receipts, self.place.staging)
        update_manifest(self.place.out, [receipt for _, receipt in receipts], self.complete, self.settings)
        self.complete.clear()
        for path, _ in receipts:
            path.unlink()

    def outcome(self, ended: Ended[Task, Result], number: int) -> Result | None:
        """Return the result of a task. An error that concerns its inputs alone is kept; any other is raised.

        Args:
            ended: what became of the task.
            number: of its first input, by which errors are sorted.
        """
        if ended.error is None:
            return ended.result
        if not isinstance(ended.error, (InputError, UsageError)):
            raise ended.error
        self._failures.append((number, ended.error))
        return None

    def has_failed(self) -> bool:
        """Tell whether an error is kept."""
        return bool(self._failures)

    def failed(self) -> EdenError:
        """Return one error that tells of all that are kept, in the order of the inputs."""
        errors = [error for _, error in sorted(self._failures, key=lambda failure: failure[0])]
        if len(errors) == 1:
            return errors[0]
        shown = [str(error) for error in errors[:FAILURES_SHOWN]]
        more = [f"and {len(errors) - FAILURES_SHOWN} more"] if len(errors) > FAILURES_SHOWN else []
        return type(errors[0])("\n  ".join([f"{len(errors)} inputs or samples were refused:", *shown, *more]))

    def note_built(self, results: Iterable[SampleResult], grown: set[str]) -> None:
        """Take in which samples were built, and which of them were there before."""
        for result in results:
            self.built[result.sample] = result
            if result.sample in grown:
                self.grown.add(result.sample)

    def database(self, sample: str) -> Path:
        """Return where the database of a sample belongs."""
        return schema.sample_database_path(self.place.out, sample)

    def is_whole(self, sample: str, recorded: Recorded | None) -> bool:
        """Tell whether a sample is there as it was recorded.

        Raises:
            UsageError: it is there, but was built with other settings, or is not the file that was built.
        """
        if recorded is None:
            return False
        path = self.database(sample)
        if recorded.settings != self.settings:
            raise UsageError(
                f"{path} was built with other settings ({recorded.settings}, now {self.settings}). --force builds it anew"
            )
        try:
            size_bytes = path.stat().st_size
        except FileNotFoundError:
            return False
        if size_bytes != recorded.bytes_on_disk:
            raise UsageError(
                f"{path} is not the file that was built ({recorded.bytes_on_disk:,} bytes then, {size_bytes:,} now). "
                "--force replaces it"
            )
        return True

    def all_whole(self, samples: Sequence[str], manifest: Manifest) -> bool:
        """Tell whether some samples are there as they were recorded."""
        return all(sample in self.unchanged or self.is_whole(sample, manifest.sample(sample)) for sample in samples)
