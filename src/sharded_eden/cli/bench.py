"""The command `bench`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

import sharded_eden
from sharded_eden.cli.command import Output
from sharded_eden.cli.help import MORE
from sharded_eden.cli.progress import progress_bar

if TYPE_CHECKING:
    from sharded_eden.throughput import BenchResult

SequenceDbs = Annotated[
    str,
    typer.Argument(
        metavar="SEQDB", help="The folder of sequence databases, or its URL: s3://, gs://, az://, http(s)://, file://."
    ),
]

BAR = 30
"""The letters of the longest bar."""


def bench(
    sequence_dbs: SequenceDbs,
    windows_db: Annotated[
        str, typer.Argument(metavar="WINDOWS.db", help="The window database of a split, or its URL.")
    ],
    batch_size: Annotated[int, typer.Option(help="Windows of a batch.")] = 32,
    max_workers: Annotated[
        int | None,
        typer.Option(help="The most DataLoader workers to try; unless given, one for each processor, 8 at most."),
    ] = None,
    start_method: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=MORE, help="How workers start: fork, spawn or forkserver. May be given several times."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long each line is measured.")] = 2.0,
    cache_bytes: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=MORE,
            help="At a URL: copy sequence databases to --cache-dir, at most so many bytes, as training with cache_bytes "
            "does, and measure while they are copied and from the copies.",
        ),
    ] = None,
    cache_dir: Annotated[
        str | None,
        typer.Option(rich_help_panel=MORE, help="The folder of copies; unless given, ~/.cache/sharded-eden."),
    ] = None,
) -> Output:
    """Measure how fast your data loads from your disk or storage, where the time goes, and what to change."""
    with progress_bar("measuring") as progress:
        result = sharded_eden.bench(
            sequence_dbs,
            windows_db,
            batch_size=batch_size,
            max_workers=max_workers,
            start_methods=start_method or ["fork"],
            seconds=seconds,
            progress=progress,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
        )
    return Output(lines=_lines(result), data=result.as_dict)


def _lines(result: BenchResult) -> Iterator[str]:
    cold = result.cold_windows_per_second
    yield f"{result.windows:,} windows of {result.seq_length:,} tokens, batches of {result.batch_size}"
    yield f"{result.mean_bases:,.0f} bases in a window, on average"
    yield ""
    yield "one process, without a DataLoader"
    storage = result.storage
    rates = {"cold": cold, "warm": result.warm_windows_per_second}
    if storage is not None:
        rates = {"storage": result.warm_windows_per_second}
    copies = result.copies
    if copies is not None:
        if copies.copying_windows_per_second is not None:
            rates["while copying"] = copies.copying_windows_per_second
        rates["copies"] = copies.windows_per_second
    for name, value in rates.items():
        shown = "unknown" if value is None else f"{value:,.0f}"
        yield f"  {name:18}{shown:>12} windows/s  {bar(value or 0.0, rates.values())}".rstrip()
    if storage is not None:
        yield f"  {storage.waiting_share:.0%} of the time is spent waiting for data from the storage"
        yield f"  a window costs {storage.requests_per_window:.2f} requests and {storage.bytes_per_window:,.0f} bytes"
    if copies is not None:
        copied = f"{copies.copied:,} of {copies.databases:,} sequence databases"
        yield f"  {copied} are read from copies, after {copies.seconds:,.0f} s"
    tokens, megabytes = result.tokens_per_second / 1e6, result.megabytes_per_second
    yield f"  {'warm' if storage is None else 'storage'} is {tokens:,.1f} million tokens/s, {megabytes:,.1f} MB of bases/s"
    yield ""
    total = sum(result.stage_microseconds.values())
    yield f"where the time of a {'warm ' if storage is None else ''}window goes ({total:,.1f} us)"
    for stage, microseconds in result.stage_microseconds.items():
        yield f"  {stage:18}{microseconds:>12,.1f} us         {bar(microseconds, result.stage_microseconds.values())}".rstrip()
    yield ""
    yield "DataLoader, the whole loop"
    yield "  workers   start       compact   windows/s"
    for loader in result.loaders:
        drawn = bar(loader.windows_per_second, (each.windows_per_second for each in result.loaders))
        yield (
            f"  {loader.workers:>7}   {loader.start_method or '-':10s}  {'yes' if loader.compact else 'no':7s}"
            f"{loader.windows_per_second:>12,.0f}  {drawn}"
        ).rstrip()
    yield ""
    yield result.verdict


def bar(value: float, values: Iterable[float | None]) -> str:
    """Return a bar whose length is the share of the largest value."""
    most = max((each or 0.0 for each in values), default=0.0)
    return "#" * round(BAR * value / most) if most else ""
