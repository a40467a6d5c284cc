"""`pack`, and what `precompute --pack` prints, too."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sharded_eden.cli.command import Output
from sharded_eden.cli.help import MORE
from sharded_eden.cli.progress import progress_bar, rate, size
from sharded_eden.errors import UsageError, printable
from sharded_eden.format.kinds import window_databases
from sharded_eden.format.schema import SPLITS
from sharded_eden.format.window_db import window_geometry
from sharded_eden.windows.pack import PackResult, pack_window_database

BY_TOKENS = "Packs by tokens"


def pack(
    windows_db: Annotated[
        Path,
        typer.Argument(metavar="WINDOWS.db", help="A window database, to which packs are added; or a folder."),
    ],
    seed: Annotated[int, typer.Option(help="Another seed mixes other windows in a pack.")] = 42,
    lengths: Annotated[
        Path | None,
        typer.Option(
            metavar="SPLIT.parquet",
            rich_help_panel=MORE,
            help="The split, where the database lacks the table contig_lengths.",
        ),
    ] = None,
    sequences: Annotated[
        Path | None,
        typer.Option(
            metavar="SEQDB",
            rich_help_panel=MORE,
            help="The folder that build wrote, for the same purpose, and for --tokenizer.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="tokenizer.json",
            rich_help_panel=BY_TOKENS,
            help="Pack by the tokens that this tokenizer makes of each window, for k-mers and BPE.",
        ),
    ] = None,
    seq_length: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=BY_TOKENS,
            help="With --tokenizer: tokens of a row. [default: the window size]",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace its packs by others. Checkpoints are tied to the packs that they were trained on."
        ),
    ] = False,
) -> Output:
    """Fill rows with several whole windows each, so that short contigs waste nothing."""
    paths = window_databases(windows_db)
    if tokenizer is None and seq_length is not None:
        raise UsageError("--seq-length is for packs by token counts: give --tokenizer tokenizer.json")
    started = time.monotonic()
    lines: list[str] = []
    data: list[dict[str, Any]] = []
    for path in paths:
        begun = time.monotonic()
        with progress_bar(f"packing {path.name}") as progress:
            options: dict[str, Any] = {"seed": seed, "overwrite": force, "progress": progress}
            if tokenizer is None:
                result = pack_window_database(path, lengths=lengths, sequences=sequences, **options)
            else:
                result = _pack_by_tokens(path, sequences, tokenizer, seq_length, options)
        lines += [
            f"windows  {result.windows:>15,}  ({rate(result.windows, time.monotonic() - begun)} windows/s)",
            line_of_packs(result),
            f"on disk  {size(path.stat().st_size):>15}  {printable(path)}",
        ]
        data.append({"path": path} | data_of_packs(result))
    seconds = time.monotonic() - started
    rows = f"seq_length={result.window_size}"
    rows += "" if tokenizer is None else f", window_size={window_geometry(paths[-1]).window_size}, tokenizer=..."
    return Output(
        lines=lines,
        data=lambda: {"window_databases": data, "seconds": seconds},
        next=[data_module({split_name(path): path for path in paths}, rows, packed=True)],
    )


def _pack_by_tokens(
    path: Path, sequences: Path | None, tokenizer: Path, seq_length: int | None, options: dict[str, Any]
) -> PackResult:
    from sharded_eden.token_packs import pack_by_tokens, tokenizer_of_file  # they import the loader

    if sequences is None:
        raise UsageError("--tokenizer must read the bases (--sequences SEQDB)")
    tokens = window_geometry(path).window_size if seq_length is None else seq_length
    return pack_by_tokens(path, sequences, tokenizer=tokenizer_of_file(tokenizer), seq_length=tokens, **options)


def line_of_packs(result: PackResult) -> str:
    """Return what a command prints about packs."""
    shares = f"{result.useful:.2%} of tokens are useful; without packing, {result.useful_padded:.2%}"
    return f"packs    {result.packs:>15,}  ({shares})"


def data_of_packs(result: PackResult) -> dict[str, Any]:
    """Return what `--json` prints about packs."""
    shares = {"useful_share_packed": result.useful, "useful_share_padded": result.useful_padded}
    return asdict(result) | shares


def data_module(paths: Mapping[str, Path], options: str, *, packed: bool) -> str:
    """Return how to open these window databases; only train, val and test have an argument."""
    words = [f"{name}_window_db_path={str(path)!r}" for name, path in paths.items() if name in SPLITS]
    return f"ShardedEdenDataModule({', '.join([*words, options])}{', packed=True' if packed else ''}, ...)"


def split_name(*paths: Path) -> str:
    """Return the split that the names of these paths give: the first one that names a split, else `train`."""
    for path in paths:
        for name, prefix in {"train": "train", "val": "val", "dev": "val", "test": "test"}.items():
            if path.name.lower().startswith(name):
                return prefix
    return "train"
