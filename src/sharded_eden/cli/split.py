"""The command `split`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sharded_eden.cli.command import Output
from sharded_eden.cli.help import MORE, SIMILAR
from sharded_eden.cli.progress import progress_bar
from sharded_eden.errors import printable
from sharded_eden.format.commands import precompute_command
from sharded_eden.similar.groups import LARGEST_GROUP, THRESHOLD
from sharded_eden.similar.sketch import MIN_BASES
from sharded_eden.split import SplitResult, write_splits


def split(
    seqdb: Annotated[Path, typer.Argument(metavar="SEQDB", help="The folder that build wrote.")],
    out: Annotated[
        Path, typer.Option(help="Folder for train_split.parquet, val_split.parquet and test_split.parquet.")
    ],
    by: Annotated[
        Literal["sample", "contig"],
        typer.Option(help="Keep the contigs of a sample together, so that none leaks, or divide them."),
    ] = "sample",
    val: Annotated[float, typer.Option(metavar="SHARE", help="Share of the bases to validate on; 0 for none.")] = 0.05,
    test: Annotated[float, typer.Option(metavar="SHARE", help="Share of the bases to test on; 0 for none.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Another seed gives another division.")] = 42,
    val_samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel=MORE, help="Validate on just the samples named in FILE, one a line."
        ),
    ] = None,
    test_samples: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=MORE, help="Test on just the samples named in FILE, one a line."),
    ] = None,
    group_similar: Annotated[
        bool,
        typer.Option(
            "--group-similar",
            rich_help_panel=SIMILAR,
            help="Keep similar contigs of 1,000 bases and more in the same split.",
        ),
    ] = False,
    threshold: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=SIMILAR,
            help="With --group-similar: the share of the k-mers of one contig that the other holds.",
        ),
    ] = THRESHOLD,
    largest_group: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=SIMILAR,
            help="With --group-similar: the largest share of all bases that a group may have.",
        ),
    ] = LARGEST_GROUP,
    jobs: Annotated[
        int, typer.Option(rich_help_panel=SIMILAR, help="With --group-similar: databases that are compared at a time.")
    ] = 1,
    scratch: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=SIMILAR, help="With --group-similar: folder for temporary files, 600 MB for a gigabase."
        ),
    ] = None,
) -> Output:
    """Divide contigs into train, val and test.

    A hash of the names gives the order in which samples go to val and test, until their shares of bases are met. Samples that
    a split in the output folder already has keep their split; only new ones are assigned.
    """
    with progress_bar("comparing") as progress:
        result = write_splits(
            seqdb,
            out,
            by=by,
            val=val,
            test=test,
            seed=seed,
            val_samples=val_samples,
            test_samples=test_samples,
            group_similar=group_similar,
            threshold=threshold,
            largest_group=largest_group,
            jobs=jobs,
            scratch=scratch,
            progress=progress,
        )
    return Output(
        lines=_lines(result, by),
        data=lambda: _data(result),
        next=[
            precompute_command(part.path.with_name(f"{name}_windows.db"), split=part.path)
            for name, part in result.parts.items()
        ],
    )


def _data(result: SplitResult) -> dict[str, Any]:
    similar = None if result.similar is None else asdict(replace(result.similar, group_of={}))
    if similar is not None:
        similar.pop("group_of")  # it has an entry for each contig or sample
    parts = {name: asdict(part) for name, part in result.parts.items()}
    return {"splits": parts, "kept": result.kept, "similar": similar}


def _lines(result: SplitResult, by: str) -> Iterator[str]:
    parts = result.parts.values()
    paths = [printable(part.path) for part in parts]
    width = max(map(len, paths))
    yield f"{'split':<{width}}  {'samples':>17}  {'contigs':>20}  {'bases':>26}"
    totals = [sum(numbers) for numbers in zip(*((p.samples, p.contigs, p.bases) for p in parts), strict=True)]
    if by == "contig":
        totals[0] = 0  # a sample may be in several splits: shares of samples do not add up
    for path, part in zip(paths, parts, strict=True):
        cells = [
            f"{number:>{w},} {f'{number / total:7.1%}' if total else '':7}"
            for number, total, w in zip((part.samples, part.contigs, part.bases), totals, (9, 12, 18), strict=True)
        ]
        yield (f"{path:<{width}}  {'  '.join(cells)}".rstrip())
    if result.kept:
        yield f"{result.kept:,} {by}s were in these splits before and stayed there"
    if (similar := result.similar) is not None:
        yield (
            f"{similar.groups:,} groups of similar {by}s ({similar.pairs:,} pairs of contigs); the largest has "
            f"{similar.largest:,} {by}s and {similar.largest_share:.1%} of the bases"
            if similar.groups
            else f"no {by}s are similar"
        )
        if similar.not_compared:
            yield (
                f"{similar.not_compared:,} contigs were not compared: they have fewer than {MIN_BASES:,} bases, or are mostly N"
            )
