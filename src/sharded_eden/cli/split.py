"""`split`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sharded_eden.cli.show import quoted, say_next
from sharded_eden.split import write_splits


def split(
    seqdb: Annotated[Path, typer.Argument(metavar="SEQDB", help="The folder that build wrote.")],
    out: Annotated[
        Path, typer.Option(help="Folder for train_split.parquet, val_split.parquet and test_split.parquet.")
    ],
    by: Annotated[
        Literal["sample", "contig"],
        typer.Option(help="Keep the contigs of a sample together, so that none leaks, or divide them."),
    ] = "sample",
    val: Annotated[float, typer.Option(help="Share of the samples (or contigs) to validate on; 0 for none.")] = 0.05,
    test: Annotated[float, typer.Option(help="Share of the samples (or contigs) to test on; 0 for none.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Another seed gives another division.")] = 42,
    val_samples: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Validate on just the samples named in FILE, one a line.")
    ] = None,
    test_samples: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Test on just the samples named in FILE, one a line.")
    ] = None,
) -> None:
    """Divide contigs into train, val and test.

    A hash of each name decides, so that samples added later move no other.
    """
    result = write_splits(
        seqdb, out, by=by, val=val, test=test, seed=seed, val_samples=val_samples, test_samples=test_samples
    )
    width = max(len(str(part.path)) for part in result.parts.values())
    print(f"{'split':<{width}}  {'samples':>9}  {'contigs':>12}  {'bases':>18}")
    for part in result.parts.values():
        print(f"{part.path!s:<{width}}  {part.samples:>9,}  {part.contigs:>12,}  {part.bases:>18,}")
    say_next(*(f"sharded-eden precompute {quoted(part.path)} {name}_windows.db" for name, part in result.parts.items()))
