"""The command line: parse, call one function, render.

Results go to stdout; progress, warnings and errors to stderr. Exit status: 0, 1 after an error, 2 after a wrong command
line, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TextIO

import apsw
import polars as pl
import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

import sharded_eden
from sharded_eden import __version__
from sharded_eden.errors import EdenError, EdenWarning
from sharded_eden.prepare.sequence_dbs import build_sequence_dbs
from sharded_eden.prepare.splits import write_splits
from sharded_eden.prepare.window_dbs import precompute_window_database
from sharded_eden.progress import Progress

INTERRUPTED = 130
"""The exit status after Ctrl-C."""

app = typer.Typer(
    name="sharded-eden",
    help="Prepare DNA for genomic language models: FASTA to SQLite sequence databases (build), "
    "splits (split) and window databases (precompute).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


def main(argv: Sequence[str] | None = None, prog_name: str = "sharded-eden") -> int:
    """Run a command line and return its exit status.

    Args:
        argv: the arguments, without the program's name; those of this process unless given.
        prog_name: what help texts call the program.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", EdenWarning)
        warnings.showwarning = _show_warning
        try:
            typer.main.get_command(app).main(args=argv, prog_name=prog_name)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
            if status == INTERRUPTED:
                _say("interrupted; nothing half-written is left")
            return status
        except (EdenError, OSError, apsw.Error, pl.exceptions.PolarsError) as error:
            _say(f"error: {error}")
            return 1
    return 0


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _say(f"warning: {message}")


@contextmanager
def _progress_bar(what: str) -> Iterator[Progress | None]:
    """Show a progress bar on stderr while the block runs; hand out None where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _next(*commands: str) -> None:
    for command in commands:
        print(f"Next: {command}")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sharded-eden {__version__}")
        raise typer.Exit


@app.callback()
def _sharded_eden(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def build(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="FASTA files, plain or compressed (gzip, bgzip, xz, zstd, bzip2); folders that hold such; quoted patterns.",
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
    force: Annotated[bool, typer.Option("--force", help="Replace samples that OUT holds already.")] = False,
) -> None:
    """Turn FASTA files into sequence databases.

    Each sample gets one SQLite database. A record named like BCR__ECT-SAMPLE1__CT1-1 keeps that ID and goes to SAMPLE1.
    Any other goes to a sample named after its file and gets such an ID; OUT/contigs.parquet lists which.
    """
    started = time.monotonic()
    with _progress_bar("reading") as progress:
        result = build_sequence_dbs(inputs, out, tag=tag, sample=sample, force=force, progress=progress)
    seconds = time.monotonic() - started
    print(f"samples  {result.samples:>15,}")
    print(f"contigs  {result.contigs:>15,}")
    print(f"bases    {result.bases:>15,}  ({_rate(result.bases, seconds)} bases/s)")
    print(f"on disk  {_size(result.bytes_on_disk):>15}  in {out}")
    print(f"table    {result.contigs_parquet}")
    _next(f"sharded-eden split {_quoted(out)} --out splits")


@app.command()
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
    _next(*(f"sharded-eden precompute {_quoted(part.path)} {name}_windows.db" for name, part in result.parts.items()))


@app.command()
def precompute(
    split_file: Annotated[
        Path, typer.Argument(metavar="SPLIT.parquet", help="A table of contig_id and length, as split writes it.")
    ],
    windows_db: Annotated[Path, typer.Argument(metavar="WINDOWS.db", help="The window database to write.")],
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
) -> None:
    """Turn a split into a window database."""
    started = time.monotonic()
    with _progress_bar("contigs") as progress:
        result = precompute_window_database(
            split_file,
            windows_db,
            window_size=window_size,
            stride=stride,
            window_min_length_threshold=window_min_length_threshold,
            keep_tail=keep_tail,
            special_tokens=special_tokens,
            progress=progress,
        )
    seconds = time.monotonic() - started
    unseen = result.unseen_bases / result.bases if result.bases else 0.0
    print(f"windows  {result.windows:>15,}  ({_rate(result.windows, seconds)} windows/s)")
    print(f"contigs  {result.sequences:>15,}  ({result.contigs_left_out:,} left out)")
    print(f"bases    {result.bases:>15,}  ({unseen:.1%} in no window)")
    print(f"on disk  {_size(windows_db.stat().st_size):>15}  {windows_db}")
    _next(
        f"ShardedEdenDataModule(train_window_db_path={str(windows_db)!r}, seq_length={window_size}, stride={stride}, ...)"
    )


@app.command()
def bench(
    sequence_dbs: Annotated[Path, typer.Argument(metavar="SEQDB", help="The folder of sequence databases.")],
    windows_db: Annotated[Path, typer.Argument(metavar="WINDOWS.db", help="The window database of a split.")],
    batch_size: Annotated[int, typer.Option(help="Windows of a batch.")] = 32,
    max_workers: Annotated[
        int | None,
        typer.Option(help="The most DataLoader workers to try; unless given, one for each processor, 8 at most."),
    ] = None,
    start_method: Annotated[
        list[str] | None, typer.Option(help="How workers start: fork, spawn or forkserver. May be given several times.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long each line is measured.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Measure how fast your data loads from your disk, where the time goes, and what to change."""
    with _progress_bar("measuring") as progress:
        result = sharded_eden.bench(
            sequence_dbs,
            windows_db,
            batch_size=batch_size,
            max_workers=max_workers,
            start_methods=start_method or ["fork"],
            seconds=seconds,
            progress=progress,
        )
    if as_json:
        print(json.dumps(result.as_dict(), indent=2))
        return
    cold = result.cold_windows_per_second
    print(f"{result.windows:,} windows of {result.seq_length:,} tokens, batches of {result.batch_size}, one process")
    print(f"cold     {'unknown' if cold is None else f'{cold:,.0f}':>12} windows/s")
    print(
        f"warm     {result.warm_windows_per_second:>12,.0f} windows/s   {result.tokens_per_second / 1e6:,.0f} million "
        f"tokens/s   {result.megabytes_per_second:,.0f} MB of bases/s"
    )
    for stage, microseconds in result.stage_microseconds.items():
        print(f"  {stage:9s}{microseconds:>10,.1f} us a window")
    print("whole loop   workers   start       compact      windows/s")
    for loader in result.loaders:
        print(
            f"{loader.workers:>20}   {loader.start_method or '-':10s}  {'yes' if loader.compact else 'no':7s}"
            f"{loader.windows_per_second:>15,.0f}"
        )
    print(result.verdict)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _rate(amount: int, seconds: float) -> str:
    return f"{amount / max(seconds, 1e-9):,.0f}"


def _size(size_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
