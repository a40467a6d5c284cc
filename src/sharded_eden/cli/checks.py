"""`bench`, `verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

import sharded_eden
from sharded_eden.cli.show import progress_bar
from sharded_eden.errors import printable
from sharded_eden.similar.groups import THRESHOLD


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
    with progress_bar("measuring") as progress:
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


def verify(
    sequence_dbs: Annotated[Path, typer.Argument(metavar="SEQDB", help="The folder of sequence databases.")],
    windows_dbs: Annotated[
        list[Path] | None, typer.Argument(metavar="WINDOWS.db", help="The window databases of the splits.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Check every window and every base.")] = False,
    by: Annotated[
        Literal["sample", "contig"],
        typer.Option(help="What the splits divide. With 'contig' a sample may be in two of them."),
    ] = "sample",
    jobs: Annotated[
        int | None, typer.Option(help="Tasks at a time; unless given, 1 (ray: all of the cluster).")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Where tasks run; ray needs a file system that all nodes share, --scratch on it too."),
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster: auto for the one this machine belongs to, or HOST:PORT.")
    ] = None,
    windows_read: Annotated[
        int, typer.Option(metavar="N", help="Random windows of each split that are read as training reads them.")
    ] = 512,
    seed: Annotated[int, typer.Option(help="Another seed looks at other places.")] = 42,
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Folder for temporary files: with --full 60 bytes a contig of several splits, 5 a packed window."
        ),
    ] = None,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates", help="Compare the contigs of the splits: is one similar to another?")
    ] = False,
    threshold: Annotated[
        float, typer.Option(help="With --near-duplicates: the share of the k-mers of one contig that the other holds.")
    ] = THRESHOLD,
    pairs: Annotated[
        Path | None, typer.Option(metavar="PAIRS.parquet", help="With --near-duplicates: a table of all pairs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Check what was prepared before it is trained on: exit status 0 where all is well, 1 where something is found."""
    with progress_bar("verifying") as progress:
        result = sharded_eden.verify(
            sequence_dbs,
            windows_dbs or [],
            full=full,
            by=by,
            jobs=1 if jobs is None and engine == "local" else jobs,
            engine=engine,
            address=address,
            windows_read=windows_read,
            seed=seed,
            scratch=scratch,
            near_duplicates=near_duplicates,
            threshold=threshold,
            pairs=pairs,
            progress=progress,
        )
    if as_json:
        print(json.dumps(result.as_dict(), indent=2))
    else:
        print(f"samples  {result.samples:>15,}")
        databases = "window database" if result.window_databases == 1 else "window databases"
        print(f"windows  {result.windows:>15,}  in {result.window_databases} {databases}")
        print(f"read     {result.windows_read:>15,}  of them, as training reads them")
        if result.addresses_compared:
            print(f"addresses{result.addresses_compared:>14,}  compared with what SQLite reads")
        if full:
            print(f"contigs  {result.contigs:>15,}  read whole")
            print(f"bases    {result.bases:>15,}")
        if result.near_duplicates is not None:
            print(f"similar  {result.near_duplicates:>15,}  pairs of contigs in different splits")
            print(f"short    {result.not_compared:>15,}  contigs were not compared with other splits")
        for finding in result.findings:
            print(f"\n{finding.severity} ({finding.check}) in {printable(finding.file)}")
            print(f"  {printable(finding.what)}\n  fix: {finding.fix}")
        looked = "everything was checked" if full else "a quick look; --full checks everything"
        count = len(result.findings)
        print(f"\n{'clean' if result.is_clean else f'{count} finding' + 's' * (count > 1)} ({looked})")
    if not result.is_clean:
        raise typer.Exit(1)
