"""The command `stats`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from sharded_eden.cli.command import Output
from sharded_eden.cli.help import MORE
from sharded_eden.cli.progress import progress_bar
from sharded_eden.describe.group import Group
from sharded_eden.describe.part import Part, StatsResult
from sharded_eden.describe.stats import stats as count
from sharded_eden.errors import printable

GROUPS_SHOWN = 40
"""Groups of one part that are printed; `--json` has all."""


def stats(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="SEQDB, window databases or split files, or folders of the last two."),
    ],
    by: Annotated[Literal["sample", "tag"] | None, typer.Option(help="Count each sample, or each tag, too.")] = None,
    sample: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Count the letters of this share of the contigs. Shares of letters are then estimates; lengths and windows "
            "stay exact.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(rich_help_panel=MORE, help="With --sample: another seed chooses other contigs.")
    ] = 42,
    jobs: Annotated[int, typer.Option(help="Sequence databases that are read at a time.")] = 1,
) -> Output:
    """Count contigs, bases, letters and windows, and the bases that no window shows."""
    with progress_bar("counting") as progress:
        result = count(*paths, by=by, sample=sample, seed=seed, jobs=jobs, progress=progress)
    return Output(lines=lines_of(result), data=result.as_dict)


def lines_of(result: StatsResult) -> list[str]:
    """Return what the terminal shows."""
    parts = result.parts
    rows = [["", *(printable(part.path.name or str(part.path), 24) for part in parts)]]
    for name, value in _MEASURES:
        row = [value(part) for part in parts]
        if any(row):
            rows.append([name, *row])
    lines = _aligned(rows)
    for part in parts:
        lines += _notes(part)
    if result.by is not None:
        for part in parts:
            lines += ["", f"{printable(part.path.name or str(part.path))}, by {result.by}", *_table_of_groups(part)]
    if not result.is_exact:
        lines += [
            "",
            f"The shares of letters are estimates from {result.sampled:.3g} of the contigs. All else is exact.",
        ]
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _length(key: str) -> Callable[[Part], str]:
    def value(part: Part) -> str:
        summary = part.total.lengths.as_dict()
        return _number(summary["quantiles"][key] if key in summary["quantiles"] else summary[key])

    return value


def _letters(key: str) -> Callable[[Part], str]:
    return lambda part: "" if part.total.letters is None else _share(part.total.letters.as_dict()[key])


def _windows(key: str, write: Callable[[float | None], str]) -> Callable[[Part], str]:
    return lambda part: "" if part.total.windows is None else write(part.total.windows.as_dict()[key])


def _if_packed(part: Part) -> str:
    found = part.if_packed
    return "" if found is None else _share(found.share) if found.is_exact else f"about {found.share:.2%}"


_MEASURES: tuple[tuple[str, Callable[[Part], str]], ...] = (
    ("sequence databases", lambda part: _number(part.samples)),
    ("contigs", _length("contigs")),
    ("bases", _length("bases")),
    ("N50", _length("n50")),
    ("L50", _length("l50")),
    ("shortest", _length("shortest")),
    ("5% quantile of lengths", _length("0.05")),
    ("25% quantile", _length("0.25")),
    ("median", _length("0.5")),
    ("75% quantile", _length("0.75")),
    ("95% quantile", _length("0.95")),
    ("longest", _length("longest")),
    ("GC", _letters("gc_share")),
    ("not A, C, G or T", _letters("ambiguous_share")),
    ("lower case (repeats)", _letters("soft_masked_share")),
    ("windows", _windows("windows", _number)),
    ("windows per contig", _windows("windows_per_contig", _number)),
    ("bases that they show", _windows("bases_shown", _number)),
    ("bases in no window", _windows("bases_not_shown", _number)),
    ("each base is shown", _windows("times_shown", lambda value: "" if value is None else f"{value:.3f} times")),
    ("overlap of neighbours", lambda part: _number(part.overlap)),
    ("useful tokens, padded", _windows("useful_share_padded", _share)),
    ("useful tokens, packed", lambda part: _share(part.useful_packed)),
    ("useful tokens, if packed", _if_packed),
)


def _notes(part: Part) -> list[str]:
    """Return what cannot be a row: which option shows the bases in no window."""
    lines = []
    windows = part.total.windows
    if windows is not None and windows.unseen:
        lines += ["", f"{printable(part.path.name)}: bases in no window, and the option of precompute that shows them"]
        options = part.options()
        lines += _aligned([[f"  {options[reason]}", f"{bases:,}"] for reason, bases in windows.unseen.items()])
    if part.split is not None and part.split.packs is None:
        lines += ["", f"{printable(part.path.name)}: has no packs; pack would fill rows with several windows"]
    if part.unassigned_contigs:
        lines += [
            "",
            f"{part.unassigned_contigs:,} contigs of {part.unassigned_bases:,} bases have no window here; "
            f"{part.too_short_bases:,} of these bases are in contigs that are too short for one",
        ]
    return lines


def _table_of_groups(part: Part) -> list[str]:
    def row(name: str, group: Group) -> list[str]:
        letters, windows = group.letters, group.windows
        return [
            printable(name, 40),
            _number(group.lengths.contigs),
            _number(group.lengths.bases),
            _number(group.lengths.n50),
            "" if letters is None else _share(letters.gc),
            "" if windows is None else _number(windows.windows),
            "" if windows is None else _share(windows.useful_padded),
        ]

    head = ["", "contigs", "bases", "N50", "GC", "windows", "useful tokens"]
    largest = sorted(part.groups.items(), key=lambda item: (-item[1].lengths.bases, item[0]))
    rows = [head, *(row(name, group) for name, group in largest[:GROUPS_SHOWN])]
    used = [k for k in range(len(rows[0])) if k == 0 or any(each[k] for each in rows[1:])]
    lines = _aligned([[each[k] for k in used] for each in rows])
    if len(largest) > GROUPS_SHOWN:
        lines.append(f"... and {len(largest) - GROUPS_SHOWN:,} more with fewer bases; --json has all")
    return lines
