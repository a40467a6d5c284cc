"""The command `build`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from sharded_eden.build.build import BuildResult, build_sequence_dbs
from sharded_eden.build.skipped import skipped_table
from sharded_eden.cli.command import Output
from sharded_eden.cli.help import MORE
from sharded_eden.cli.progress import progress_bar, rate, size
from sharded_eden.errors import printable
from sharded_eden.format import schema
from sharded_eden.format.commands import split_command

SKIPPED_SHOWN = 10
"""Bad records that are shown; the table lists all."""


def build(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="FASTA, JSON lines, GenBank, Parquet or Arrow files, or Megatron's NAME.bin with NAME.idx beside it; the "
            "first three plain or compressed (gzip, bgzip, xz, zstd, bzip2). Folders of such files, linked folders included "
            "(Parquet, Arrow and NAME.bin only with --format); quoted patterns; - for standard input.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the databases: OUT/<sample>/glm_dataset_<sample>.sqlite.")],
    tag: Annotated[
        str, typer.Option(help="The beginning of new IDs; in lower case it is also their control tag.")
    ] = "BCR",
    sample: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Put all records into this one sample, not into one for each file."),
    ] = None,
    sample_from: Annotated[
        Literal["file", "folder"],
        typer.Option(
            help="Name the sample of each file after the file, or after the folder that holds it, as for downloads whose files "
            "are all called genomic.fna."
        ),
    ] = "file",
    sample_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Put each record into the sample that this field of JSON lines, or column of Parquet or Arrow, names; "
            "meta.sample is the field sample of the JSON object meta.",
        ),
    ] = None,
    sample_regex: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            rich_help_panel=MORE,
            help="Put each record into the sample that the group (?P<sample>...) of this pattern finds in its name: the "
            "FASTA header up to its first white space, the --id-field of JSON lines and tables, the GenBank version.",
        ),
    ] = None,
    input_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="fasta, jsonl, genbank, parquet, arrow or indexed (Megatron's NAME.bin and NAME.idx); unless given, by the "
            "ending of each file, and fasta for other endings.",
        ),
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=MORE,
            help="Field or column of the sequence; unless given, text, sequence, seq or nt_sequence.",
        ),
    ] = None,
    id_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=MORE,
            help="Field or column of the record's name; unless given, record, id, name, contig_id or accession, where there "
            "is one; '' for none.",
        ),
    ] = None,
    phylo_tags: Annotated[
        Literal["refuse", "strip", "keep"],
        typer.Option(
            rich_help_panel=MORE,
            help="Lineage tags inside sequences (|d__Bacteria;p__...|), as in OpenGenome2: an error, removed, or removed and "
            "kept in the column phylo_tag of OUT/contigs.parquet.",
        ),
    ] = "refuse",
    stitch_marks: Annotated[
        Literal["refuse", "keep"],
        typer.Option(
            rich_help_panel=MORE,
            help="@ and # inside sequences, as in the stitched transcripts of OpenGenome2: an error, or kept, as tokens that "
            "never count in the loss.",
        ),
    ] = "refuse",
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Leave out records that are invalid by themselves (letters, names, fields, duplicates), show the first ones, "
            "and list all in OUT/skipped.parquet. The exit status is 0. Damaged files are still errors.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Build everything again, also samples that are there.")
    ] = False,
    page_size: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES",
            rich_help_panel=MORE,
            help="Page size of the databases; unless given, 65536 for samples of about 8 million bases and more, 4096 for "
            "smaller ones.",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Tasks at a time; unless given, one for each processor, 8 at most (ray: all of the cluster)."
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(rich_help_panel=MORE, help="Where tasks run; ray needs a file system that all nodes share."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=MORE, help="The Ray cluster: auto for the one this machine belongs to, or HOST:PORT."
        ),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=MORE,
            help="Build databases in this folder, on a local disk, and copy the finished ones to OUT.",
        ),
    ] = None,
) -> Output:
    """Turn sequence files into sequence databases.

    Each sample gets one SQLite database. A record named like BCR__ECT-SAMPLE1__CT1-1 keeps that ID and goes to SAMPLE1.
    Any other goes to a sample named after its file and gets such an ID; OUT/contigs.parquet lists which.

    Run it again to complete a build that was stopped, or to add inputs: samples that are there, built
    from the same inputs, are kept.
    """
    started = time.monotonic()
    with progress_bar("reading") as progress:
        result = build_sequence_dbs(
            inputs,
            out,
            tag=tag,
            sample=sample,
            sample_from=sample_from,
            sample_field=sample_field,
            sample_regex=sample_regex,
            format=input_format,
            text_field=text_field,
            id_field=id_field,
            phylo_tags=phylo_tags,
            stitch_marks=stitch_marks,
            skip_bad=skip_bad,
            force=force,
            page_size=page_size,
            jobs=jobs,
            engine=engine,
            address=address,
            scratch=scratch,
            progress=progress,
            note=progress.note,
        )
    seconds = time.monotonic() - started
    samples = schema.discover_sample_databases(out)
    return Output(
        lines=_lines(result, out, seconds),
        data=lambda: asdict(result) | {"seconds": seconds},
        next=[split_command(out, "splits", by_contig=len(samples) < 3)],
    )


def _lines(result: BuildResult, out: Path, seconds: float) -> Iterator[str]:
    if result.samples:
        yield f"samples  {result.samples:>15,}"
        yield f"contigs  {result.contigs:>15,}"
        yield f"bases    {result.bases:>15,}  ({rate(result.bases, seconds)} bases/s)"
        each = result.bytes_on_disk / max(1, result.bases)
        over = size(max(0, result.bytes_on_disk - result.bases))
        yield f"on disk  {size(result.bytes_on_disk):>15}  in {out} ({each:.3f} bytes a base: {over} more than the bases)"
        yield f"table    {result.contigs_parquet}"
    else:
        yield "nothing to do"
    if result.unchanged:
        yield f"{result.unchanged:,} samples were there already, built from the same inputs"
    if result.grown:
        yield f"{len(result.grown):,} samples have gained records and were built again: earlier splits lack them"
    if result.skipped_parquet is not None:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in result.skipped.items())
        yield f"skipped  {sum(result.skipped.values()):>15,}  records ({reasons}), listed in {result.skipped_parquet}"
        for problem in skipped_table(out)["problem"].head(SKIPPED_SHOWN):
            yield f"  {printable(problem, 300)}"
