"""`bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import sharded_eden
from sharded_eden.cli.show import progress_bar


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
