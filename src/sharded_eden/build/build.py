"""From input files to one SQLite sequence database per sample, and the table of all contigs beside them.

Enter: files, folders, patterns. Leave, in the output folder: `<sample>/glm_dataset_<sample>.sqlite`, `contigs.parquet` and
`manifest.sqlite`.

    files ──┬─ all records of one sample ──▶ direct.py: one task a sample ────────┬──▶ staging.py ──▶ OUT/<sample>/
            └─ records name their samples ─▶ mixed.py: scatter, gather ───────────┘

Each sample appears as a whole when it is finished, and stays, whatever becomes of the others: a run that was stopped is
completed by the same command. What is there, built from the same inputs, is not built again. IDs and rows depend on
the inputs and their order alone, not on how many tasks run at once, where, or in which order they end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import apsw

from sharded_eden.build import records
from sharded_eden.build.contig_table import check_contig_table
from sharded_eden.build.direct import Input
from sharded_eden.build.formats import ReadOptions
from sharded_eden.build.job import Job
from sharded_eden.build.plan import build
from sharded_eden.build.source import BLOCK_BYTES, STANDARD_INPUT
from sharded_eden.build.staging import Place, workplace
from sharded_eden.errors import InputError, UsageError
from sharded_eden.format import schema
from sharded_eden.format.sqlite import create_database, publishing
from sharded_eden.jobs import Engine, EngineName, Note, Progress, Tally


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What one build added."""

    samples: int
    contigs: int
    bases: int
    bytes_on_disk: int
    """The size of the sequence databases written, in bytes."""
    unchanged: int
    """Samples that were there already, built from the same inputs."""
    grown: tuple[str, ...]
    """Samples that were there and were built again, because inputs were added that hold records of them."""
    contigs_parquet: Path


def create_sample_database(
    sample_id: str, sequences: Iterable[tuple[str, str]], output_dir: str | os.PathLike[str]
) -> Path:
    """Write the sequence database of one sample.

    Args:
        sample_id: the sample; its database becomes `output_dir/<sample_id>/glm_dataset_<sample_id>.sqlite`.
        sequences: (contig ID, sequence) pairs, read once.
        output_dir: the folder of all sequence databases.

    Returns:
        The path of the database.

    Raises:
        UsageError: the sample has a database already, or a name that sequence IDs cannot carry.
        InputError: an ID is empty, appears twice or names another sample; a sequence is empty or holds other
            characters than IUPAC nucleotide letters.
    """
    schema.check_sample_id(sample_id, "sample_id")
    path = schema.sample_database_path(output_dir, sample_id)
    if path.exists():
        raise UsageError(f"{path} exists already. Remove it first, or give the sample another name")
    folder_is_new = not path.parent.exists()
    try:
        with publishing(path) as unfinished, closing(create_database(unfinished)) as database:
            database.execute(schema.CREATE_SEQUENCES)
            database.execute("BEGIN")
            for ordinal, (contig_id, sequence) in enumerate(sequences, start=1):
                where = f"sample {sample_id}: sequence {ordinal} ({contig_id})"
                records.check_name(contig_id, where)
                records.check_residues(sequence, where)
                if schema.has_sequence_id_form(contig_id) and schema.extract_sample_id(contig_id) != sample_id:
                    raise InputError(f"{where}: its ID names sample {schema.extract_sample_id(contig_id)!r}")
                try:
                    database.execute("INSERT INTO sequences VALUES (?, ?)", (contig_id, sequence))
                except apsw.ConstraintError as error:
                    first = database.execute("SELECT rowid FROM sequences WHERE contig_id = ?", (contig_id,)).get
                    raise InputError(f"{where}: sequence {first} has the same ID") from error
            database.execute("COMMIT")
    except BaseException:
        if folder_is_new:
            with suppress(OSError):
                path.parent.rmdir()
        raise
    return path


def build_sequence_dbs(
    inputs: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    tag: str = "BCR",
    sample: str | None = None,
    sample_regex: str | None = None,
    format: str | None = None,
    text_field: str | None = None,
    id_field: str | None = None,
    force: bool = False,
    page_size: int | None = None,
    jobs: int | None = 1,
    engine: EngineName = "local",
    address: str | None = None,
    scratch: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> BuildResult:
    """Write the sequence databases of all samples found in input files, and `contigs.parquet` beside them.

    A record whose name has the form of a sequence ID (`BCR__ECT-SAMPLE1__CT1-1`) keeps it and goes to the sample that it
    names. Any other goes to the sample of its file and gets an ID of that form, numbered within the sample in input order.

    Args:
        inputs: FASTA, JSON lines, GenBank, Parquet or Arrow files, folders or glob patterns; `-` for standard input.
        out_dir: where the databases go. It may hold other samples, which are kept.
        tag: what the IDs given begin with, before the first `__`.
        sample: the sample of all records; without it, the name of each file stands for one.
        sample_regex: a pattern with a group `(?P<sample>...)`, searched for in the name of each record.
        format: `fasta`, `jsonl`, `parquet`, `arrow` or `genbank`; told by each file's ending unless given.
        text_field: the field of JSON lines, or the column, that holds the sequence.
        id_field: the one that holds the record's name; "" for none.
        force: build everything anew, also what is there.
        page_size: of the databases, in bytes, a power of two in [512, 65536]; by each sample's size unless given.
        jobs: how many tasks at a time; more than 1 start processes, so that a script needs `if __name__ == "__main__"`.
            None: as many as there are processors, 8 at most, where there is work for them.
        engine: `local`, or `ray` for a Ray cluster with a shared file system.
        address: of the Ray cluster.
        scratch: a folder on a local disk in which databases are built before they are copied; the output folder unless
            given.
        progress: called with bytes of input read and their total.
        note: called with records, bases, rate and the present sample, in words.

    Raises:
        UsageError: a sample was built from other inputs or with other settings, two files stand for the same sample, a
            record names another sample than `sample`, a name cannot be used, or the folder cannot be written to.
        InputError: an input cannot be taken as it is, or two records of a sample share a name or an ID. The other samples
            are built all the same; the message tells of all that are not.
        MissingExtra: a format or an engine needs a package that is not installed.
    """
    _check_request(tag, sample, sample_regex)
    if page_size is not None and page_size not in PAGE_SIZES:
        raise UsageError(f"--page-size {page_size} is none of {', '.join(map(str, PAGE_SIZES))}")
    options = ReadOptions(format=format, text_field=text_field, id_field=id_field)
    out = Path(out_dir)
    files = records.find_inputs(inputs, format=format, out=out)
    total = sum(file.stat().st_size for file in files if str(file) != STANDARD_INPUT)
    if jobs is None and engine == "local":
        jobs = min(8, _processors()) if total >= WORTH_PROCESSES_BYTES else 1
    where = Engine(engine, jobs, address)
    settings = json.dumps({"tag": tag, "sample_regex": sample_regex, **asdict(options)}, sort_keys=True)
    with workplace(out, Path(scratch) if scratch is not None else None) as place:
        check_contig_table(out)
        numbered = [_input(number, file, place) for number, file in enumerate(files)]
        tally = Tally(progress, note, sum(each.size_bytes for each in numbered))
        job = Job(
            place=place,
            engine=where,
            options=options,
            tag=tag,
            settings=settings,
            sample=sample,
            sample_regex=sample_regex,
            force=force,
            page_size=page_size,
            tally=tally,
        )
        build(job, numbered)
        tally.finish()
    return BuildResult(
        samples=len(job.built),
        contigs=sum(result.contigs for result in job.built.values()),
        bases=sum(result.bases for result in job.built.values()),
        bytes_on_disk=sum(result.bytes_on_disk for result in job.built.values()),
        unchanged=len(job.unchanged),
        grown=tuple(sorted(job.grown)),
        contigs_parquet=out / schema.CONTIGS_FILE,
    )


WORTH_PROCESSES_BYTES = 32 << 20
"""Inputs smaller than this in all are read by one process: starting others would take longer."""


PAGE_SIZES = tuple(1 << power for power in range(9, 17))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_request(tag: str, sample: str | None, sample_regex: str | None) -> None:
    schema.check_tag(tag)
    if sample is not None:
        schema.check_sample_id(sample, "--sample")
    if sample_regex is None:
        return
    if sample is not None:
        raise UsageError("--sample and --sample-regex exclude each other")
    try:
        groups = re.compile(sample_regex).groupindex
    except re.error as error:
        raise UsageError(f"--sample-regex {sample_regex!r} is no pattern ({error})") from error
    if "sample" not in groups:
        raise UsageError(f"--sample-regex {sample_regex!r} has no group (?P<sample>...)")


def _input(number: int, file: Path, place: Place) -> Input:
    """Return an input; standard input is written to the staging folder, so that any process can read it."""
    if str(file) != STANDARD_INPUT:
        return Input(number=number, path=file, called=str(file), size_bytes=file.stat().st_size)
    spooled = place.staging / "standard-input"
    with spooled.open("wb") as target:
        shutil.copyfileobj(sys.stdin.buffer, target, BLOCK_BYTES)
    return Input(number=number, path=spooled, called=STANDARD_INPUT, size_bytes=spooled.stat().st_size)
