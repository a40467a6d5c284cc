"""Inputs with records of several samples, or of one sample in several inputs: which to scatter, and which samples to gather.

Input: input files, and their entries in the manifest. A sample is gathered from all inputs with records of it, including inputs
that were built before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sharded_eden.build import scatter
from sharded_eden.build.direct import Input, check_only_grown, check_same_order, path_of, taken
from sharded_eden.build.job import Job
from sharded_eden.build.manifest import Manifest
from sharded_eden.build.scatter import Run, Share
from sharded_eden.build.source import FileState
from sharded_eden.errors import UsageError, printable
from sharded_eden.jobs import run_tasks


def build_pooled(job: Job, files: Sequence[Input], inputs: Sequence[Input]) -> None:
    """Build the samples of some inputs.

    Args:
        job: the build.
        files: the inputs, in order.
        inputs: all inputs of the build.

    Raises:
        UsageError: a sample was built from other inputs, or two inputs have the same sample name.
    """
    with Manifest(job.place.out) as manifest:
        pool = _Pool(job, manifest, inputs)
        todo = [each for each in files if not pool.is_done(each)]
        while todo and not job.has_failed():
            pool.scatter(todo)
            todo = pool.needed_too()
        if job.has_failed():
            return  # a sample without the records of a refused input would be incomplete
        pool.gather()
    if not job.has_failed():
        job.complete += pool.states.values()


class _Pool:
    """The runs of one build, and the samples to gather from them."""

    def __init__(self, job: Job, manifest: Manifest, inputs: Sequence[Input]) -> None:
        self._job, self._manifest = job, manifest
        self._inputs = {each.number: each for each in inputs}
        self._number_of = {path_of(each): each.number for each in inputs}
        self._runs: list[Run] = []
        self.states: dict[int, FileState] = {}
        """The state of each scattered input, by its number."""
        self._grown: set[str] = set()
        self._folder = job.place.staging / "runs" if job.engine.name == "ray" else job.place.scratch_of_run / "runs"

    def is_done(self, each: Input) -> bool:
        """Return whether all samples of an input exist and were built from its current state."""
        job, state = self._job, self._manifest.complete(path_of(each), self._job.accepted)
        if job.force or state is None:
            return False
        samples = list(self._manifest.samples_of(state))
        if not samples or not job.all_whole(samples, self._manifest):
            return False
        job.unchanged.update(samples)
        job.tally.end(each.number, each.size_bytes, 0, 0)
        return True

    def scatter(self, files: Sequence[Input]) -> None:
        """Write the records of some inputs to runs."""
        job = self._job
        self._folder.mkdir(parents=True, exist_ok=True)
        with_defaults = [(each, self._default_of(each)) for each in files]
        tasks = scatter.scatter_tasks(
            job.place, self._folder, with_defaults, job.options, job.sample_regex, skip_bad=job.skip_bad
        )
        for ended in run_tasks(scatter.scatter, tasks, job.engine, heard=job.tally.hear):
            first = ended.task.inputs[0].number
            run = job.outcome(ended, first)
            if run is not None:
                self._runs.append(run)
                self.states.update(run.states)
                job.tally.end(first, ended.task.size_bytes // 2, run.records, run.bases)
        if not job.has_failed():
            self._check_defaults()

    def _default_of(self, each: Input) -> str | None:
        if self._job.sample is not None:
            return self._job.sample
        return each.default_sample

    def _check_defaults(self) -> None:
        """Raise an error for two files that stand for the same sample and whose records name none."""
        if self._job.sample is not None:
            return
        first_of: dict[str | None, Input] = {}
        for number in sorted(number for run in self._runs for number in run.unnamed):
            each = self._inputs[number]
            sample = self._default_of(each)
            first = first_of.setdefault(sample, each)
            if first is not each:
                cure = "Leave one of them out" if each.sample_from == "folder" else "Rename one of them"
                raise UsageError(
                    f"{first.called} and {each.called} both stand for sample {sample!r}, by the name of the "
                    f"{each.sample_from}. {cure}, or pool them: --sample NAME"
                )

    def needed_too(self) -> list[Input]:
        """Return the inputs that hold records of samples to be built, and are not scattered yet."""
        numbers: set[int] = set()
        for share in scatter.shares(self._runs):
            _, missing = self._look_at(share)
            numbers |= missing
        return [self._inputs[number] for number in sorted(numbers)]

    def _look_at(self, share: Share) -> tuple[bool, set[int]]:
        """Return whether a sample is to be built, and which inputs must be scattered for that.

        Raises:
            UsageError: it exists, and was built from inputs that have changed, are not given, or come after a new one.
        """
        job, sample = self._job, share.sample
        was_built_now = sample in job.built
        recorded = self._manifest.sample(sample) if was_built_now or not job.force else None
        if recorded is None:
            if self._job.database(sample).exists() and not job.force:
                raise taken(job.place.out, sample)
            return True, set()
        present = {number: self.states.get(number) for number, _ in share.inputs}
        for old in recorded.inputs:
            number = self._number_of.get(old.path)
            if number is not None:
                present.setdefault(number, self.states.get(number))
        known = {number: state for number, state in present.items() if state is not None}
        missing = present.keys() - known.keys()
        unread = {self._number_of.get(old.path): old for old in recorded.inputs}
        now = tuple(known[number] if number in known else unread[number] for number in sorted(present))
        check_only_grown(sample, recorded.inputs, now)
        if job.sample_regex is not None or job.options.sample_field is not None:
            # Without them, a build that was stopped before it read an earlier input must be able to add that input.
            check_same_order(sample, recorded.inputs, now)
        if len(present) == len(recorded.inputs) and job.is_whole(sample, recorded):
            return False, set()
        if not was_built_now:
            self._grown.add(sample)
        return True, set(missing)

    def _wanted(self) -> Iterator[Share]:
        for share in scatter.shares(self._runs):
            is_wanted, _ = self._look_at(share)
            if is_wanted:
                yield share
            else:
                self._job.unchanged.add(share.sample)

    def gather(self) -> None:
        """Build the samples that are to be built."""
        job = self._job
        job.scattered = [(run.skipped, [printable(state.path) for state in run.states.values()]) for run in self._runs]
        inputs = {number: (self._inputs[number].called, state) for number, state in self.states.items()}
        bases = max(1, sum(run.bases for run in self._runs))
        rest = sum(self._inputs[number].size_bytes for number in self.states) / 2
        tasks = scatter.gather_tasks(
            self._wanted(), job.place, inputs, job.tag, job.settings, job.page_size, skip_bad=job.skip_bad
        )
        for ended in run_tasks(scatter.gather, tasks, job.engine, heard=job.tally.hear):
            done = int(rest * sum(share.bases for share in ended.task.shares) / bases)
            job.tally.end(ended.task.shares[0].sample, done, 0, 0)
            gathered = job.outcome(ended, min(ended.task.inputs))
            if gathered is not None:
                job.note_built(gathered.results, self._grown)
                job.note_refused(gathered.errors)
