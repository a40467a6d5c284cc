"""The command `fetch`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sharded_eden.cli.command import Output
from sharded_eden.cli.progress import progress_bar, size
from sharded_eden.errors import printable
from sharded_eden.format.commands import index_command
from sharded_eden.windows.fetch import fetch_sequence_databases


def fetch(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The sequence databases: s3://, gs://, az://, http(s)://, file://.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The local folder that they are copied to.")],
    windows: Annotated[
        list[Path] | None,
        typer.Option(metavar="WINDOWS.db", help="Copy only the samples of this window database; needs its index."),
    ] = None,
    max_bandwidth: Annotated[
        float | None, typer.Option(metavar="MB/S", help="The most megabytes per second; unless given, no limit.")
    ] = None,
) -> Output:
    """Copy sequence databases from object storage to a local folder.

    Files appear when they are whole. Run again after it was stopped: files with the right size, and the digest in the index
    of --windows (without one: the modification time of the object), are kept.
    """
    with progress_bar("copying") as progress:
        done = fetch_sequence_databases(
            url, folder, window_dbs=windows or (), max_bandwidth=max_bandwidth, progress=progress
        )
    return Output(
        lines=[
            f"copied {done.copied_files:,} of {done.files:,} sequence databases, {size(done.copied_bytes)}, "
            f"to {printable(folder)}"
        ],
        data=lambda: asdict(done) | {"folder": folder},
        next=[index_command(folder, path) for path in windows or ()],
    )
