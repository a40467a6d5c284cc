"""The command `verify`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import sharded_eden
from sharded_eden.cli.bench import SequenceDbs
from sharded_eden.cli.command import Output
from sharded_eden.cli.help import MORE, SIMILAR
from sharded_eden.cli.progress import progress_bar
from sharded_eden.errors import printable
from sharded_eden.format.commands import fetch_command
from sharded_eden.similar.groups import THRESHOLD
from sharded_eden.storage.urls import is_url

if TYPE_CHECKING:
    from sharded_eden.checks.result import VerifyResult


def verify(
    sequence_dbs: SequenceDbs,
    windows_dbs: Annotated[
        list[str] | None,
        typer.Argument(metavar="WINDOWS.db", help="The window databases of the splits, or their URLs."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Check every window and every base; not at a URL.")] = False,
    by: Annotated[
        Literal["sample", "contig"],
        typer.Option(help="What the splits divide. With 'contig' a sample may be in two of them."),
    ] = "sample",
    jobs: Annotated[
        int | None, typer.Option(help="Tasks at a time; unless given, 1 (ray: all of the cluster).")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            rich_help_panel=MORE,
            help="Where tasks run; ray needs a file system that all nodes share, --scratch on it too.",
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=MORE, help="The Ray cluster: auto for the one this machine belongs to, or HOST:PORT."
        ),
    ] = None,
    windows_read: Annotated[
        int,
        typer.Option(rich_help_panel=MORE, help="Random windows of each split that are read as training reads them."),
    ] = 512,
    seed: Annotated[int, typer.Option(rich_help_panel=MORE, help="Another seed looks at other places.")] = 42,
    scratch: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=MORE,
            help="Folder for temporary files: with --full 60 bytes a contig of several splits, 5 a packed window.",
        ),
    ] = None,
    near_duplicates: Annotated[
        bool,
        typer.Option(
            "--near-duplicates",
            rich_help_panel=SIMILAR,
            help="Compare the contigs of the splits: is one similar to another?",
        ),
    ] = False,
    threshold: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=SIMILAR,
            help="With --near-duplicates: the share of the k-mers of one contig that the other holds.",
        ),
    ] = THRESHOLD,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="PAIRS.parquet", rich_help_panel=SIMILAR, help="With --near-duplicates: a table of all pairs."
        ),
    ] = None,
) -> Output:
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
    return Output(lines=_lines(result, is_url(sequence_dbs)), data=result.as_dict, status=0 if result.is_clean else 1)


def _lines(result: VerifyResult, is_remote: bool) -> Iterator[str]:
    yield f"samples  {result.samples:>15,}"
    databases = "window database" if result.window_databases == 1 else "window databases"
    yield f"windows  {result.windows:>15,}  in {result.window_databases} {databases}"
    yield f"read     {result.windows_read:>15,}  of them, as training reads them"
    if result.addresses_compared:
        yield f"addresses{result.addresses_compared:>15,}  compared with what SQLite reads"
    if result.full:
        yield f"contigs  {result.contigs:>15,}  read whole"
        yield f"bases    {result.bases:>15,}"
    if result.near_duplicates is not None:
        yield f"similar  {result.near_duplicates:>15,}  pairs of contigs in different splits"
        yield f"short    {result.not_compared:>15,}  contigs were not compared with other splits"
    for finding in result.findings:
        yield f"\n{finding.severity} ({finding.check}) in {printable(finding.file)}"
        yield f"  {printable(finding.what)}\n  fix: {finding.fix}"
    looked = "everything was checked" if result.full else "a quick look; --full checks everything"
    if is_remote:
        looked = f"a quick look; copies made by {fetch_command('URL')} can be checked with --full"
    count = len(result.findings)
    yield f"\n{'clean' if result.is_clean else f'{count} finding' + 's' * (count > 1)} ({looked})"
