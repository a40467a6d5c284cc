"""The command `index`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from sharded_eden.cli.command import Output
from sharded_eden.cli.help import MORE
from sharded_eden.cli.progress import progress_bar, rate, size
from sharded_eden.errors import printable
from sharded_eden.format.kinds import window_databases
from sharded_eden.windows.index import IndexResult, index_window_database
from sharded_eden.windows.remote_index import add_remote


def index(
    seqdb: Annotated[
        str,
        typer.Argument(
            metavar="SEQDB",
            help="The folder that build wrote, or its URL: s3://, gs://, az:// or file://. Databases at a URL are copied "
            "beside WINDOWS.db one by one, and removed. With --at, name only window databases.",
        ),
    ],
    windows_dbs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="WINDOWS.db", help="Window databases, or folders of them as precompute writes them."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Only record in existing indexes the URL to which the sequence databases were uploaded: s3://, gs://, az://, "
            "http(s):// or file://. Sizes are compared, ETags recorded; no sequence is read.",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Sequence databases that are read at a time; unless given, 1 (ray: all of the cluster)."),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(rich_help_panel=MORE, help="Where they are read; ray needs a file system that all nodes share."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=MORE, help="The Ray cluster: auto for the one this machine belongs to, or HOST:PORT."
        ),
    ] = None,
) -> Output:
    """Write where the bytes of each window lie, so that training reads a window in one request.

    WINDOWS.db.index is written beside each window database. Windows without an address are read through SQLite, as they are
    without an index.
    """
    started = time.monotonic()
    if at is not None:
        added = [add_remote(path, at) for path in _each([Path(seqdb), *(windows_dbs or [])])]
        return Output(
            lines=[
                f"{printable(each.path)}: {each.objects:,} objects at {each.url}, {size(each.size_bytes)}"
                for each in added
            ],
            data=lambda: {"indexes": [asdict(each) for each in added], "seconds": time.monotonic() - started},
        )
    if not windows_dbs:
        raise typer.BadParameter("name a window database after SEQDB", param_hint="WINDOWS.db")
    results: list[IndexResult] = []
    lines: list[str] = []
    for path in _each(windows_dbs):
        begun = time.monotonic()
        with progress_bar(f"reading for {path.name}") as progress:
            result = index_window_database(
                seqdb,
                path,
                jobs=1 if jobs is None and engine == "local" else jobs,
                engine=engine,
                address=address,
                progress=progress,
            )
        results.append(result)
        lines += _lines(result, time.monotonic() - begun)
    seconds = time.monotonic() - started
    return Output(lines=lines, data=lambda: {"indexes": [asdict(each) for each in results], "seconds": seconds})


def _each(given: list[Path]) -> list[Path]:
    return list(dict.fromkeys(path for one in given for path in window_databases(one)))


def _lines(result: IndexResult, seconds: float) -> Iterator[str]:
    yield f"windows  {result.windows:>15,}  ({result.addressed_windows:,} have an address)"
    yield f"contigs  {result.contigs:>15,}  ({rate(result.contigs, seconds)} contigs/s)"
    for reason, contigs in result.without_address.items():
        yield f"         {contigs:>15,}  have no address: {reason}"
    yield f"read     {size(result.bytes_read):>15}  of sequence databases"
    yield f"on disk  {size(result.path.stat().st_size):>15}  {printable(result.path)}"
