"""The command `precompute`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sharded_eden.cli.command import Output
from sharded_eden.cli.help import MORE
from sharded_eden.cli.pack import data_module, data_of_packs, line_of_packs, split_name
from sharded_eden.cli.progress import progress_bar, rate, size
from sharded_eden.errors import printable
from sharded_eden.format.geometry import default_stride
from sharded_eden.windows.folder import is_folder_of_splits, precompute_window_databases
from sharded_eden.windows.precompute import PrecomputeResult, precompute_window_database


def precompute(
    split_file: Annotated[
        Path,
        typer.Argument(
            metavar="SPLIT.parquet",
            help="A table of contig_id and length, as split writes it; a folder of splits, or of the parts of one.",
        ),
    ],
    windows_db: Annotated[
        Path,
        typer.Argument(metavar="WINDOWS.db", help="The window database to write, or the folder of them."),
    ],
    window_size: Annotated[int, typer.Option(help="Tokens of a training row: the dataset's seq_length.")] = 8192,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Bases from the start of one window to the start of the next. [default: the window size less 200; four fifths "
            "of it below 1,024]",
            show_default=False,
        ),
    ] = None,
    window_min_length_threshold: Annotated[
        int, typer.Option(metavar="BASES", rich_help_panel=MORE, help="Leave out windows with fewer bases than this.")
    ] = 0,
    keep_tail: Annotated[
        bool, typer.Option("--keep-tail", help="Add windows until the last base of every contig is shown.")
    ] = False,
    special_tokens: Annotated[
        int,
        typer.Option(
            rich_help_panel=MORE,
            help="Tokens of a row that are no bases (BOS, SEP, EOS), which take room from the window.",
        ),
    ] = 3,
    max_ambiguous: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=MORE,
            help="Leave out windows with a larger share of letters other than A, C, G, T.",
        ),
    ] = None,
    sequences: Annotated[
        Path | None,
        typer.Option(
            metavar="SEQDB",
            help="The folder that build wrote, for the index and for --max-ambiguous; for the index alone, unless given, the "
            "one that the split names.",
        ),
    ] = None,
    pack: Annotated[bool, typer.Option("--pack", help="Add packs: rows filled with several whole windows.")] = False,
    pack_seed: Annotated[
        int, typer.Option(rich_help_panel=MORE, help="Another seed mixes other windows in a pack.")
    ] = 42,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace a window database of another geometry, of other contigs or with other packs. Checkpoints are tied to "
            "the windows that they were trained on.",
        ),
    ] = False,
    pattern: Annotated[
        bool,
        typer.Option(
            "--pattern",
            rich_help_panel=MORE,
            help="SPLIT.parquet is a pattern such as 'parts/*.parquet'; the files are parts of one split.",
        ),
    ] = False,
    jobs: Annotated[int, typer.Option(help="Splits of a folder that are worked on at once.")] = 1,
) -> Output:
    """Turn a split into a window database, or a folder of splits into one of window databases."""
    started = time.monotonic()
    stride = default_stride(window_size, special_tokens) if stride is None else stride
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
        "overwrite": force,
    }
    with progress_bar("contigs") as progress:
        if not pattern and is_folder_of_splits(split_file):
            results = precompute_window_databases(
                split_file, windows_db, jobs=jobs, progress=progress, note=progress.note, **options
            )
        else:
            result = precompute_window_database(
                split_file, windows_db, is_pattern=pattern, progress=progress, note=progress.note, **options
            )
            results = {split_name(split_file, windows_db): result}
    seconds = time.monotonic() - started
    lines = [line for result in results.values() for line in _window_lines(result, max_ambiguous, stride)]
    speed = rate(sum(result.windows for result in results.values()), seconds)
    paths = {name: result.path for name, result in results.items()}
    return Output(
        lines=[*lines, f"{speed} windows/s"],
        data=lambda: {
            "window_databases": {name: _data(result) for name, result in results.items()},
            "window_size": window_size,
            "stride": stride,
            "seconds": seconds,
        },
        next=[data_module(paths, f"seq_length={window_size}, stride={stride}", packed=pack)],
    )


def _data(result: PrecomputeResult) -> dict[str, Any]:
    return asdict(result) | {"packs": None if result.packs is None else data_of_packs(result.packs)}


def _window_lines(result: PrecomputeResult, max_ambiguous: float | None, stride: int) -> Iterator[str]:
    unseen = result.unseen_bases / result.bases if result.bases else 0.0
    yield f"windows  {result.windows:>15,}"
    if max_ambiguous is not None:
        yield f"         {result.ambiguous_windows:>15,}  left out, too many ambiguous letters"
    yield f"contigs  {result.sequences:>15,}  ({result.contigs_left_out:,} left out)"
    yield f"bases    {result.bases:>15,}  ({unseen:.1%} in no window)"
    times = result.shown_bases / result.bases if result.bases else 0.0
    yield f"shown    {times:>15.2f}  times in an epoch, on average over all bases (stride {stride:,})"
    if result.packs is not None:
        yield line_of_packs(result.packs)
    yield f"on disk  {size(result.path.stat().st_size):>15}  {printable(result.path)}"
    if result.index is not None:
        yield f"index    {result.index.addressed_windows:>15,}  windows can be read in one request"
        for reason, contigs in result.index.without_address.items():
            yield f"         {contigs:>15,}  contigs without an address: {reason}"
    if result.no_index:
        yield result.no_index
