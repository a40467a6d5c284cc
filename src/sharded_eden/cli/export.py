"""The command `export`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from sharded_eden.cli.command import Output
from sharded_eden.cli.progress import progress_bar, rate, size
from sharded_eden.errors import printable


def export(
    windows_db: Annotated[Path, typer.Argument(metavar="WINDOWS.db", help="The window database of a split.")],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="What to write: the prefix of OUT.bin and OUT.idx, or the Parquet file."),
    ],
    sequences: Annotated[
        Path, typer.Option("--sequences", metavar="SEQDB", help="The folder of sequence databases.", show_default=False)
    ],
    to: Annotated[
        Literal["indexed", "parquet"],
        typer.Option(
            help="indexed: the dataset of Megatron, uint8 tokens. parquet: one row for each window.", show_default=False
        ),
    ],
    order: Annotated[
        Literal["contig", "stream"],
        typer.Option(help="contig: as in the window database. stream: as training with this seed visits the windows."),
    ] = "contig",
    epochs: Annotated[int, typer.Option(help="Passes over the windows.")] = 1,
    seed: Annotated[int, typer.Option(help="The seed of the job: decides order and strands.")] = 42,
    rc_aug: Annotated[bool, typer.Option("--rc-aug", help="Half of the windows are reverse complements.")] = False,
) -> Output:
    """Write the windows of a split as files that other programs read."""
    from sharded_eden.export import export_windows

    started = time.monotonic()
    with progress_bar("exporting") as progress:
        done = export_windows(
            windows_db, sequences, out, to, order=order, epochs=epochs, seed=seed, rc_aug=rc_aug, progress=progress
        )
    seconds = time.monotonic() - started
    return Output(
        lines=[
            f"windows  {done.windows:>15,}  ({rate(done.windows, seconds)} windows/s)",
            f"{'tokens ' if to == 'indexed' else 'bases  '}  {done.tokens:>15,}",
            *(f"on disk  {size(path.stat().st_size):>15}  {printable(path)}" for path in done.paths),
            f"hash     {done.digest}",
        ],
        data=lambda: done._asdict() | {"seconds": seconds},
    )
