"""`build`, `split`, `precompute`, `pack`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sharded_eden.build.build import build_sequence_dbs
from sharded_eden.cli.show import progress_bar, quoted, rate, say_next, size
from sharded_eden.split import write_splits
from sharded_eden.windows.folder import precompute_window_databases
from sharded_eden.windows.pack import PackResult, pack_window_database
from sharded_eden.windows.precompute import PrecomputeResult, precompute_window_database


def build(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="FASTA, JSON lines, GenBank, Parquet or Arrow files, the first three plain or compressed (gzip, bgzip, xz, "
            "zstd, bzip2); folders that hold such (Parquet and Arrow there only with --format); quoted patterns; - for "
            "standard input.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the databases: OUT/<sample>/glm_dataset_<sample>.sqlite.")],
    tag: Annotated[
        str, typer.Option(help="What the IDs given begin with; lower-cased, it is also their control tag.")
    ] = "BCR",
    sample: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Put all records into this one sample, not into one for each file."),
    ] = None,
    sample_regex: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Put each record into the sample that the group (?P<sample>...) of this pattern finds in its name: the "
            "FASTA header up to its first white space, the --id-field of JSON lines and tables, the GenBank version.",
        ),
    ] = None,
    input_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="fasta, jsonl, genbank, parquet or arrow; told by each file's ending unless given, fasta where that says "
            "nothing.",
        ),
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Field or column of the sequence; unless given, text, sequence, seq or nt_sequence."
        ),
    ] = None,
    id_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Field or column of the record's name; unless given, record, id, name, contig_id or accession, where there "
            "is one; '' for none.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build everything anew, also what is there.")] = False,
    page_size: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES",
            help="Page size of the databases; unless given, 65536 for samples of about 64 million bases and more, 4096 for "
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
        Literal["local", "ray"], typer.Option(help="Where tasks run; ray needs a file system that all nodes share.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster: auto for the one this machine belongs to, or HOST:PORT.")
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Build databases in this folder, on a local disk, and copy them to OUT when they are whole.",
        ),
    ] = None,
) -> None:
    """Turn sequence files into sequence databases.

    Each sample gets one SQLite database. A record named like BCR__ECT-SAMPLE1__CT1-1 keeps that ID and goes to SAMPLE1.
    Any other goes to a sample named after its file and gets such an ID; OUT/contigs.parquet lists which.

    Run it again to complete what was stopped, or to add inputs: what is there, built from the same inputs, is left alone.
    """
    started = time.monotonic()
    with progress_bar("reading") as progress:
        result = build_sequence_dbs(
            inputs,
            out,
            tag=tag,
            sample=sample,
            sample_regex=sample_regex,
            format=input_format,
            text_field=text_field,
            id_field=id_field,
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
    if result.samples:
        print(f"samples  {result.samples:>15,}")
        print(f"contigs  {result.contigs:>15,}")
        print(f"bases    {result.bases:>15,}  ({rate(result.bases, seconds)} bases/s)")
        each = result.bytes_on_disk / max(1, result.bases)
        over = size(max(0, result.bytes_on_disk - result.bases))
        print(f"on disk  {size(result.bytes_on_disk):>15}  in {out} ({each:.3f} bytes a base: {over} beside the bases)")
        print(f"table    {result.contigs_parquet}")
    else:
        print("nothing to do")
    if result.unchanged:
        print(f"{result.unchanged:,} samples were there already, built from the same inputs")
    if result.grown:
        print(f"{len(result.grown):,} samples have gained records and were built again: splits made before lack them")
    say_next(f"sharded-eden split {quoted(out)} --out splits")


def split(
    seqdb: Annotated[Path, typer.Argument(metavar="SEQDB", help="The folder that build wrote.")],
    out: Annotated[
        Path, typer.Option(help="Folder for train_split.parquet, val_split.parquet and test_split.parquet.")
    ],
    by: Annotated[
        Literal["sample", "contig"],
        typer.Option(help="Keep the contigs of a sample together, so that none leaks, or divide them."),
    ] = "sample",
    val: Annotated[float, typer.Option(help="Share of the samples (or contigs) to validate on; 0 for none.")] = 0.05,
    test: Annotated[float, typer.Option(help="Share of the samples (or contigs) to test on; 0 for none.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Another seed gives another division.")] = 42,
    val_samples: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Validate on just the samples named in FILE, one a line.")
    ] = None,
    test_samples: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Test on just the samples named in FILE, one a line.")
    ] = None,
) -> None:
    """Divide contigs into train, val and test.

    A hash of each name decides, so that samples added later move no other.
    """
    result = write_splits(
        seqdb, out, by=by, val=val, test=test, seed=seed, val_samples=val_samples, test_samples=test_samples
    )
    width = max(len(str(part.path)) for part in result.parts.values())
    print(f"{'split':<{width}}  {'samples':>9}  {'contigs':>12}  {'bases':>18}")
    for part in result.parts.values():
        print(f"{part.path!s:<{width}}  {part.samples:>9,}  {part.contigs:>12,}  {part.bases:>18,}")
    say_next(*(f"sharded-eden precompute {quoted(part.path)} {name}_windows.db" for name, part in result.parts.items()))


def precompute(
    split_file: Annotated[
        Path,
        typer.Argument(
            metavar="SPLIT.parquet", help="A table of contig_id and length, as split writes it; or the folder of them."
        ),
    ],
    windows_db: Annotated[
        Path,
        typer.Argument(metavar="WINDOWS.db", help="The window database to write, or the folder of them."),
    ],
    window_size: Annotated[int, typer.Option(help="Tokens of a training row: the dataset's seq_length.")] = 8192,
    stride: Annotated[int, typer.Option(help="Bases from the start of one window to the start of the next.")] = 7992,
    window_min_length_threshold: Annotated[
        int, typer.Option(metavar="BASES", help="Leave out windows with fewer bases than this.")
    ] = 0,
    keep_tail: Annotated[
        bool, typer.Option("--keep-tail", help="Add windows until the last base of every contig is shown.")
    ] = False,
    special_tokens: Annotated[
        int, typer.Option(help="Tokens of a row that are no bases (BOS, SEP, EOS), which take room from the window.")
    ] = 3,
    max_ambiguous: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Leave out windows with a larger share of letters other than A, C, G, T."),
    ] = None,
    sequences: Annotated[
        Path | None, typer.Option(metavar="SEQDB", help="The folder that build wrote, read for --max-ambiguous.")
    ] = None,
    pack: Annotated[bool, typer.Option("--pack", help="Add packs: rows filled with several whole windows.")] = False,
    pack_seed: Annotated[int, typer.Option(help="Another seed mixes other windows in a pack.")] = 42,
    jobs: Annotated[int, typer.Option(help="Splits of a folder that are worked on at once.")] = 1,
) -> None:
    """Turn a split into a window database, or a folder of splits into one of window databases."""
    started = time.monotonic()
    options: dict[str, Any] = {
        "window_size": window_size,
        "stride": stride,
        "window_min_length_threshold": window_min_length_threshold,
        "keep_tail": keep_tail,
        "special_tokens": special_tokens,
        "max_ambiguous": max_ambiguous,
        "sequences": sequences,
        "pack": pack,
        "pack_seed": pack_seed,
    }
    with progress_bar("contigs") as progress:
        if split_file.is_dir():
            results = precompute_window_databases(split_file, windows_db, jobs=jobs, progress=progress, **options)
        else:
            results = {"train": precompute_window_database(split_file, windows_db, progress=progress, **options)}
    seconds = time.monotonic() - started
    for result in results.values():
        _print_windows(result, max_ambiguous)
    print(f"{rate(sum(result.windows for result in results.values()), seconds)} windows/s")
    paths = ", ".join(f"{name}_window_db_path={str(result.path)!r}" for name, result in results.items())
    packed = ", packed=True" if pack else ""
    say_next(f"ShardedEdenDataModule({paths}, seq_length={window_size}, stride={stride}{packed}, ...)")


def _print_windows(result: PrecomputeResult, max_ambiguous: float | None) -> None:
    unseen = result.unseen_bases / result.bases if result.bases else 0.0
    print(f"windows  {result.windows:>15,}")
    if max_ambiguous is not None:
        print(f"         {result.ambiguous_windows:>15,}  left out, too many ambiguous letters")
    print(f"contigs  {result.sequences:>15,}  ({result.contigs_left_out:,} left out)")
    print(f"bases    {result.bases:>15,}  ({unseen:.1%} in no window)")
    if result.packs is not None:
        _print_packs(result.packs)
    print(f"on disk  {size(result.path.stat().st_size):>15}  {result.path}")


def pack(
    windows_db: Annotated[Path, typer.Argument(metavar="WINDOWS.db", help="A window database; packs are added to it.")],
    seed: Annotated[int, typer.Option(help="Another seed mixes other windows in a pack.")] = 42,
    lengths: Annotated[
        Path | None,
        typer.Option(metavar="SPLIT.parquet", help="The split, where the database lacks the table contig_lengths."),
    ] = None,
    sequences: Annotated[
        Path | None, typer.Option(metavar="SEQDB", help="The folder that build wrote, for the same purpose.")
    ] = None,
) -> None:
    """Fill rows with several whole windows each, so that short contigs waste nothing."""
    started = time.monotonic()
    with progress_bar("windows") as progress:
        result = pack_window_database(windows_db, seed=seed, lengths=lengths, sequences=sequences, progress=progress)
    print(f"windows  {result.windows:>15,}  ({rate(result.windows, time.monotonic() - started)} windows/s)")
    _print_packs(result)
    print(f"on disk  {size(windows_db.stat().st_size):>15}  {windows_db}")
    say_next(
        f"ShardedEdenDataModule(train_window_db_path={str(windows_db)!r}, seq_length={result.window_size}, packed=True, ...)"
    )


def _print_packs(result: PackResult) -> None:
    print(
        f"packs    {result.packs:>15,}  ({result.useful:.2%} of their tokens useful; padded {result.useful_padded:.2%})"
    )
