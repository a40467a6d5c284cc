"""The steps of one build: which tasks are needed, which samples exist already, and what each task returned.

Input: numbered inputs. Output: published samples, and an up-to-date manifest and contig table.
"""

from __future__ import annotations

from collections.abc import Sequence

from sharded_eden.build.direct import DirectTask, Input, build_direct, path_of
from sharded_eden.build.job import Job
from sharded_eden.build.manifest import Manifest
from sharded_eden.build.pool import build_pooled
from sharded_eden.build.records import COMPRESSED_ENDINGS
from sharded_eden.build.sample import page_size_for
from sharded_eden.errors import EdenError, warn
from sharded_eden.jobs import run_tasks

BASES_PER_COMPRESSED_BYTE = 4
"""The approximate number of bases per byte of a compressed input; an uncompressed input has 1."""


def build(job: Job, inputs: Sequence[Input]) -> None:
    """Build what is missing or has changed.

    Raises:
        EdenError: as documented in `build_sequence_dbs`. Samples finished before the error are published and recorded.
    """
    for error in job.settle():
        warn(f"a database that an earlier run had finished is dropped, and built again if it is still wanted: {error}")
    try:
        with Manifest(job.place.out) as manifest:
            tasks, pooled = _plan(job, inputs, manifest)
        pooled += _run_direct(job, tasks)
        if pooled:
            _raise_first(job.settle())  # the samples just built, too, may have records among these inputs
            build_pooled(job, sorted(pooled, key=lambda each: each.number), inputs)
    except BaseException:
        job.settle()
        raise
    _raise_first(job.settle())
    if job.has_failed():
        raise job.failed()


def _raise_first(errors: list[EdenError]) -> None:
    for error in errors:
        raise error


def _plan(job: Job, inputs: Sequence[Input], manifest: Manifest) -> tuple[list[DirectTask], list[Input]]:
    """Return a task for each sample to which all records of some inputs may belong, and the other inputs."""
    of_sample: dict[str, list[Input]] = {}
    pooled: list[Input] = []
    for each in inputs:
        sample = _sample_of(job, each)
        if sample is None or job.sample_regex is not None or job.options.sample_field is not None:
            pooled.append(each)
        else:
            of_sample.setdefault(sample, []).append(each)
    given = {path_of(each) for each in inputs}
    tasks = []
    for sample, files in of_sample.items():
        if len(files) > 1 and job.sample is None:
            pooled += files  # valid only if their records name their samples
            continue
        recorded = None if job.force else manifest.sample(sample)
        paths = [path_of(each) for each in files]
        if not job.force:
            states = [manifest.complete(path_of(each), job.accepted) for each in files]
            samples = {name for state in states if state is not None for name in manifest.samples_of(state)}
            known = recorded is not None and [state.path for state in recorded.inputs] == paths
            if all(states) and samples == {sample} and known and job.is_whole(sample, recorded):
                job.unchanged.add(sample)
                job.tally.end(sample, sum(each.size_bytes for each in files), 0, 0)
                continue
            others = {state.path for state in recorded.inputs}.difference(paths) if recorded is not None else set()
            shared = others and (others <= given or (recorded is not None and len(recorded.inputs) > len(files)))
            if job.sample is None and (shared or (all(states) and samples != {sample})):
                pooled += files  # the manifest lists records of other samples, or other inputs with records of this one
                continue
        tasks.append(
            DirectTask(
                place=job.place,
                sample=sample,
                inputs=tuple(files),
                options=job.options,
                tag=job.tag,
                settings=job.settings,
                page_size=job.page_size or page_size_for(sum(map(_about_bases, files))),
                skip_bad=job.skip_bad,
                is_asked_for=job.sample is not None,
                recorded=recorded.inputs if job.is_whole(sample, recorded) and recorded else None,
                is_taken=recorded is None and not job.force and job.database(sample).exists(),
            )
        )
    return tasks, pooled


def _sample_of(job: Job, each: Input) -> str | None:
    """Return the sample that the name of an input's file or folder gives, None where it gives none."""
    if job.sample is not None:
        return job.sample
    return each.default_sample


def _run_direct(job: Job, tasks: Sequence[DirectTask]) -> list[Input]:
    """Build samples, and return the inputs that turned out to hold records of other samples."""
    pooled: list[Input] = []
    for ended in run_tasks(build_direct, tasks, job.engine, heard=job.tally.hear):
        task = ended.task
        outcome = job.outcome(ended, task.inputs[0].number)
        if outcome is None or outcome.is_mixed:
            job.tally.end(task.sample, 0, 0, 0)
            pooled += task.inputs if outcome is not None else ()
            continue
        job.complete += outcome.states
        result = outcome.built
        if result is None:
            job.unchanged.add(task.sample)
        else:
            job.note_built([result], {task.sample} if task.recorded is not None else set())
        job.tally.end(task.sample, task.size_bytes, result.contigs if result else 0, result.bases if result else 0)
    return pooled


def _about_bases(file: Input) -> int:
    is_compressed = file.path.suffix.lower() in COMPRESSED_ENDINGS
    return file.size_bytes * (BASES_PER_COMPRESSED_BYTE if is_compressed else 1)
