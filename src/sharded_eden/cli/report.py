"""The command `report`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import sharded_eden
from sharded_eden.cli.command import Output
from sharded_eden.cli.progress import progress_bar
from sharded_eden.errors import printable


def report(
    out: Annotated[Path, typer.Argument(metavar="OUT.html", help="The HTML file to write.")],
    sequence_dbs: Annotated[Path, typer.Argument(metavar="SEQDB", help="The folder of sequence databases.")],
    windows_dbs: Annotated[
        list[Path] | None, typer.Argument(metavar="WINDOWS.db", help="Window databases of the splits, or their folder.")
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Access logs of a training run (log_windows=True, log_dir).")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Sequence databases that are read at a time.")] = 1,
) -> Output:
    """Write one HTML file: lengths, GC, samples, useful tokens, coverage; with --logs, what was read and in which order."""
    with progress_bar("counting") as progress:
        result = sharded_eden.write_report(
            out, sequence_dbs, *(windows_dbs or []), logs=logs, jobs=jobs, progress=progress
        )
    said = [
        f"{printable(split)}: {'fault: ' * (each.level == 'fault')}{each.text}"
        for split, found in result.verdicts.items()
        for each in found
    ]
    return Output(lines=[*said, printable(result.path)], data=lambda: asdict(result))
