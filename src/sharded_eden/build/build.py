"""From input files to one SQLite sequence database per sample, and the table of all contigs.

Input: files, folders, patterns. Output, in the output folder: `<sample>/glm_dataset_<sample>.sqlite`, `contigs.parquet` and
`manifest.sqlite`.

    files ──┬─ all records of one sample ──▶ direct.py: one task a sample ────────┬──▶ staging.py ──▶ OUT/<sample>/
            └─ records name their samples ─▶ pool.py, scatter.py: scatter, gather ┘

Each sample appears as a whole when it is finished, independently of the others; the same command completes a run that was
stopped. Existing samples that were built from the same inputs are not built again. IDs and rows depend on the inputs and their
order alone, not on the number of tasks, where they run, or in which order they end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import apsw

from sharded_eden.build import records
from sharded_eden.build.contig_table import check_contig_table
from sharded_eden.build.direct import Input
from sharded_eden.build.formats import ReadOptions
from sharded_eden.build.job import Job
from sharded_eden.build.plan import build
from sharded_eden.build.sample import LARGE_PAGE, page_size_for
from sharded_eden.build.skipped import skipped_table
from sharded_eden.build.source import BLOCK_BYTES, MAX_CONTIG_BASES, STANDARD_INPUT
from sharded_eden.build.staging import Place, workplace
from sharded_eden.errors import InputError, UsageError, printable, shown
from sharded_eden.format import schema
from sharded_eden.format.publish import create_database, publishing, real_folder, writing
from sharded_eden.jobs import Engine, EngineName, usable_processors
from sharded_eden.progress import Note, Progress, Totals


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """The result of one build."""

    samples: int
    contigs: int
    bases: int
    bytes_on_disk: int
    """The size of the sequence databases written."""
    unchanged: int
    """Existing samples that were built from the same inputs."""
    grown: tuple[str, ...]
    """Existing samples that were built again because new inputs have records of them."""
    contigs_parquet: Path
    skipped: dict[str, int]
    """The number of records that `skipped.parquet` in the output folder lists, by reason: those of earlier builds too."""
    skipped_parquet: Path | None
    """The table of these records; None where there are none."""


def create_sample_database(
    sample_id: str,
    sequences: Iterable[tuple[str, str]],
    output_dir: str | os.PathLike[str],
    *,
    stitch_marks: str = "refuse",
) -> Path:
    """Write the sequence database of one sample.

    Args:
        sample_id: the sample; its database becomes `output_dir/<sample_id>/glm_dataset_<sample_id>.sqlite`.
        sequences: (contig ID, sequence) pairs, read once.
        output_dir: the folder of all sequence databases.
        stitch_marks: as in `build_sequence_dbs`.

    Returns:
        The path of the database.

    Raises:
        UsageError: the sample has a database already, or its name is not allowed in sequence IDs.
        InputError: an ID is empty, appears twice or names another sample; a sequence is empty or holds a character that is not
            allowed in sequences; an item is not a pair of strings.
        WriteError: the database cannot be written, or a link has the name of the sample's folder.

    Example:
        >>> from sharded_eden import create_sample_database
        >>> create_sample_database("S1", [("BCR__ECT-S1__CT1-1", "ACGT")], "more_sequences").name
        'glm_dataset_S1.sqlite'
    """
    _check_text(sample_id=sample_id)
    keeps_stitch_marks = ReadOptions(stitch_marks=stitch_marks).keeps_stitch_marks
    schema.check_sample_id(sample_id, "sample_id")
    path = schema.sample_database_path(check_folder(output_dir, "output_dir"), sample_id)
    if os.path.lexists(path):
        raise UsageError(f"{printable(path)} exists already. Remove it first, or give the sample another name")
    folder_is_new = not path.parent.exists()
    with writing(path):
        path.parent.parent.mkdir(parents=True, exist_ok=True)
    real_folder(path.parent)
    try:
        pairs, bases = _pairs(sequences, sample_id), 0
        first = []  # as many as the page size depends on
        for pair in pairs:
            first.append(pair)
            bases += len(pair[1])
            if page_size_for(bases) == LARGE_PAGE:
                break
        with (
            publishing(path) as unfinished,
            closing(create_database(unfinished, page_size=page_size_for(bases))) as database,
        ):
            database.execute(schema.CREATE_SEQUENCES)
            database.execute("BEGIN")
            for ordinal, (contig_id, sequence) in enumerate(chain(first, pairs), start=1):
                where = f"sample {sample_id}: sequence {ordinal} ({printable(contig_id, 80)})"
                records.check_name(contig_id, where)
                records.check_residues(sequence, where, stitch_marks=keeps_stitch_marks)
                if len(sequence) > MAX_CONTIG_BASES:
                    raise InputError(
                        f"{where}: {len(sequence):,} bases are more than SQLite holds in one value ({MAX_CONTIG_BASES:,})"
                    )
                if schema.has_sequence_id_form(contig_id) and schema.extract_sample_id(contig_id) != sample_id:
                    raise InputError(f"{where}: its ID names sample {shown(schema.extract_sample_id(contig_id))}")
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


def _is_pair(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _pairs(sequences: Iterable[tuple[str, str]], sample_id: str) -> Iterator[tuple[str, str]]:
    """Yield the pairs of `sequences`.

    Raises:
        InputError: one of them is not a pair of two strings.
    """
    try:
        pairs = iter(sequences)
    except TypeError as error:
        raise UsageError(f"sequences must be (contig ID, sequence) pairs, not {type(sequences).__name__}") from error
    for ordinal, pair in enumerate(pairs, start=1):
        if _is_pair(pair):
            yield pair[0], pair[1]
        else:
            raise InputError(
                f"sample {sample_id}: sequence {ordinal}: is not a pair of texts, (contig ID, sequence), but {shown(pair)}"
            )


def build_sequence_dbs(
    inputs: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    tag: str = "BCR",
    sample: str | None = None,
    sample_from: str = "file",
    sample_field: str | None = None,
    sample_regex: str | None = None,
    format: str | None = None,
    text_field: str | None = None,
    id_field: str | None = None,
    phylo_tags: str = "refuse",
    stitch_marks: str = "refuse",
    skip_bad: bool = False,
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
        inputs: files (FASTA, JSON lines, GenBank, Parquet, Arrow, Megatron's `NAME.bin`), folders or glob patterns; `-` for
            standard input.
        out_dir: the folder for the databases. Other samples in it are kept.
        tag: the part before the first `__` of the IDs that records get.
        sample: the sample of all records; None: the sample of each file is named after the file.
        sample_from: `file`; or `folder`: the sample of each file is named after the folder that holds it.
        sample_field: the JSON field or column with the sample of each record, a text; `meta.sample` is the field `sample` of
            the JSON object `meta`. Of `sample`, `sample_from="folder"`, this and `sample_regex`, only one may be given.
        sample_regex: a pattern with a group `(?P<sample>...)`, searched for in the name of each record.
        format: `fasta`, `jsonl`, `parquet`, `arrow`, `genbank` or `indexed` (Megatron); None: the ending of each file decides.
        text_field: the JSON field or column with the sequence.
        id_field: the JSON field or column with the record's name; "" for none.
        phylo_tags: lineage tags inside sequences, such as `|d__Bacteria;p__Bacillota|`, are an error (`refuse`), are removed
            (`strip`), or are removed and kept in the column `phylo_tag` of `contigs.parquet` (`keep`).
        stitch_marks: `@` and `#` inside sequences, as in stitched transcripts, are an error (`refuse`), or are kept (`keep`):
            they never count in the loss.
        skip_bad: leave out records that are invalid by themselves, and list them in `skipped.parquet` in the output folder. A
            damaged file, or one all of whose records are bad, is still an error.
        force: build everything again, including existing samples.
        page_size: of the databases, in bytes, a power of two in [512, 65536]; None: the size of each sample decides.
        jobs: number of tasks that run at the same time; more than 1 start processes, and a script then needs
            `if __name__ == "__main__"`. None: one for each processor that this process may use, at most 8, and 1
            for small inputs.
        engine: `local`, or `ray` for a Ray cluster with a shared file system.
        address: of the Ray cluster.
        scratch: a folder on a local disk in which databases are built before they are copied; the output folder unless
            given.
        progress: called with bytes of input read and their total.
        note: called with a text: records, bases, rate and the current sample.

    Returns:
        The numbers of samples, contigs and bases that were added.

    Raises:
        UsageError: a sample was built from other inputs or with other settings, a new input comes before those it was built
            from, two files have the same sample name, a record names another sample than `sample`, a name is not allowed, or
            another build is writing to the folder.
        InputError: an input is invalid, or two records of a sample share a name or an ID. The other
            samples are built; the message lists those that are not.
        WriteError: a file cannot be written: no permission, a full disk, a link in its place.
        MissingExtra: a format or an engine needs a package that is not installed.

    Example:
        >>> from sharded_eden import build_sequence_dbs
        >>> build_sequence_dbs(["genomes"], "new_sequences").samples
        4
    """
    _check_text(
        tag=tag,
        sample=sample,
        sample_from=sample_from,
        sample_field=sample_field,
        sample_regex=sample_regex,
        format=format,
        text_field=text_field,
        id_field=id_field,
    )
    _check_number("jobs", jobs)
    _check_request(tag, sample, sample_from, sample_field, sample_regex)
    if page_size is not None and page_size not in PAGE_SIZES:
        raise UsageError(f"--page-size {shown(page_size)} is not one of {', '.join(map(str, PAGE_SIZES))}")
    options = ReadOptions(
        format=format,
        text_field=text_field,
        id_field=id_field,
        phylo_tags=phylo_tags,
        stitch_marks=stitch_marks,
        sample_field=sample_field,
    )
    out = check_folder(out_dir, "--out")
    scratch = check_folder(scratch, "--scratch") if scratch is not None else None
    if isinstance(inputs, (str, bytes, os.PathLike)):
        inputs = [inputs]
    if not isinstance(inputs, Iterable):
        raise UsageError(f"inputs must be a list of paths, not {shown(inputs)}")
    files = records.find_inputs(inputs, format=format, out=out)
    total = sum(file.stat().st_size for file in files if str(file) != STANDARD_INPUT)
    if jobs is None and engine == "local":
        jobs = min(8, usable_processors()) if total >= WORTH_PROCESSES_BYTES else 1
    where = Engine(engine, jobs, address)
    by_folder = {"sample_from": sample_from} if sample_from != "file" else {}  # not in manifests of earlier versions
    strict = {"tag": tag, "sample_regex": sample_regex, **by_folder, **options.as_settings}
    accepted = tuple(
        json.dumps(each, sort_keys=True) for each in ([{**strict, "skip_bad": True}] if skip_bad else []) + [strict]
    )
    with workplace(out, scratch) as place:
        check_contig_table(out)
        numbered = [_input(number, file, place, sample_from) for number, file in enumerate(files)]
        tally = Totals(progress, note, sum(each.size_bytes for each in numbered))
        job = Job(
            place=place,
            engine=where,
            options=options,
            tag=tag,
            settings=accepted[0],
            accepted=accepted,
            skip_bad=bool(skip_bad),
            sample=sample,
            sample_regex=sample_regex,
            force=force,
            page_size=page_size,
            tally=tally,
        )
        build(job, numbered)
        tally.finish()
    skipped = skipped_table(out)
    return BuildResult(
        samples=len(job.built),
        contigs=sum(result.contigs for result in job.built.values()),
        bases=sum(result.bases for result in job.built.values()),
        bytes_on_disk=sum(result.bytes_on_disk for result in job.built.values()),
        unchanged=len(job.unchanged),
        grown=tuple(sorted(job.grown)),
        contigs_parquet=out / schema.CONTIGS_FILE,
        skipped=dict(skipped.group_by("reason").len().sort("reason").rows()),
        skipped_parquet=out / schema.SKIPPED_FILE if skipped.height else None,
    )


WORTH_PROCESSES_BYTES = 32 << 20
"""Inputs smaller than this in total are read by one process: starting more would take longer."""


PAGE_SIZES = tuple(1 << power for power in range(9, 17))


def check_folder(given: object, what: str) -> Path:
    """Return the path of a folder to write to.

    Raises:
        UsageError: it is a URL, not a path, or not UTF-8.
    """
    path = records.check_path(given, what)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what} {printable(path)}: this name is not UTF-8, and the table of contigs needs one that is"
        ) from error
    return path


def _check_number(name: str, value: object) -> None:
    if value is not None and not isinstance(value, int):
        raise UsageError(f"{name} must be an integer or None, not {shown(value)}")


def _check_text(**options: object) -> None:
    for name, value in options.items():
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{name} must be text, not {shown(value)}")


def _check_request(
    tag: str, sample: str | None, sample_from: str, sample_field: str | None, sample_regex: str | None
) -> None:
    schema.check_tag(tag)
    if sample is not None:
        schema.check_sample_id(sample, "--sample")
    if sample_from not in records.SAMPLE_FROM:
        raise UsageError(f"--sample-from {shown(sample_from)} is not one of {', '.join(records.SAMPLE_FROM)}")
    if sample_field == "":
        raise UsageError("--sample-field must name a field")
    given = {
        "--sample": sample is not None,
        "--sample-from folder": sample_from == "folder",
        "--sample-field": sample_field is not None,
        "--sample-regex": sample_regex is not None,
    }
    if len(named := [option for option, is_given in given.items() if is_given]) > 1:
        raise UsageError(f"{named[0]} and {named[1]} exclude each other")
    if sample_regex is None:
        return
    try:
        groups = re.compile(sample_regex).groupindex
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--sample-regex {shown(sample_regex)} is not a pattern ({error})") from error
    if "sample" not in groups:
        raise UsageError(f"--sample-regex {shown(sample_regex)} has no group (?P<sample>...)")


def _input(number: int, file: Path, place: Place, sample_from: str) -> Input:
    """Return an input; standard input is written to the staging folder, so that any process can read it."""
    if str(file) != STANDARD_INPUT:
        size_bytes = file.stat().st_size
        return Input(number=number, path=file, called=printable(file), size_bytes=size_bytes, sample_from=sample_from)
    spooled = place.staging / "standard-input"
    with writing(spooled), spooled.open("xb") as target:
        shutil.copyfileobj(sys.stdin.buffer, target, BLOCK_BYTES)
    size_bytes = spooled.stat().st_size
    return Input(number=number, path=spooled, called=STANDARD_INPUT, size_bytes=size_bytes, sample_from=sample_from)
