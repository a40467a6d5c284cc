"""Figures of the data: lengths, GC, letters, samples, tags, useful tokens and coverage.

Input: the counts of `stats`. Output: figures. At most 25 samples and 25 tags are drawn; the rest is one bar.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharded_eden.describe.group import Group
from sharded_eden.describe.part import Part
from sharded_eden.format.schema import SPLITS, WINDOWS_SUFFIX
from sharded_eden.report.coverage import Coverage
from sharded_eden.report.figure import Figure, graph_objects, label, labels, number, percent, plot_of

MOST_BARS = 25
LENGTH_BINS = 40
REST = "all others"
SHOWN = 5e-4
"""Bins with a smaller share of the bases do not widen the axis."""
ALIKE = 0.02
"""Shares of GC that differ by less are called alike."""


def names_of(parts: Sequence[Part]) -> dict[Path, str]:
    """Return the name of each split: `train_windows.db` -> `train`; `human/train` where another one has the same name."""
    names = {part.path: _name_of(part.path) for part in parts if part.split is not None}
    for longer in (_with_folder, _whole):
        count = Counter(names.values())
        names = {path: longer(path) if count[name] > 1 else name for path, name in names.items()}
    return names


def _name_of(path: Path) -> str:
    return path.name.removesuffix(WINDOWS_SUFFIX) or str(path)


def _with_folder(path: Path) -> str:
    return f"{path.absolute().parent.name}/{_name_of(path)}"


def _whole(path: Path) -> str:
    return str(path.absolute())


def last_of(name: str) -> str:
    """Return the name of a split without its folder: `human/train` -> `train`."""
    return name.rpartition("/")[2]


def compared(parts: Sequence[Part]) -> list[tuple[str, Group]]:
    """Return what is compared: the splits, or all contigs where there are none."""
    names = names_of(parts)
    splits = [(names[part.path], part.total) for part in parts if part.split is not None]
    return splits or [("all contigs", parts[0].total)]


def in_order(splits: Sequence[str]) -> list[str]:
    """Return names of splits in the usual order: train, val, test, then the others."""
    return sorted(splits, key=lambda name: ((*SPLITS, last_of(name)).index(last_of(name)), name))


def lengths(parts: Sequence[Part]) -> Figure:
    """Return the distribution of contig lengths."""
    groups = [(name, group.lengths) for name, group in compared(parts) if group.lengths.contigs]
    longest = max((int(each.values[-1]) for _, each in groups), default=1)
    shortest = min((max(1, int(each.values[0])) for _, each in groups), default=1)
    edges = np.unique(np.geomspace(shortest, longest + 1, LENGTH_BINS + 1).round().astype(np.int64))
    edges[-1] = longest + 1
    traces: list[Any] = []
    rows: list[list[Any]] = []
    for name, each in groups:
        place = np.clip(np.searchsorted(edges, each.values, side="right") - 1, 0, max(0, len(edges) - 2))
        bases = np.bincount(place, weights=each.values * each.counts, minlength=max(1, len(edges) - 1))
        share = bases / max(1, each.bases)
        traces.append(
            graph_objects().Scatter(
                x=np.repeat(edges, 2)[1:-1], y=np.repeat(share, 2) * 100, mode="lines", name=label(name)
            )
        )
        rows.append(
            [name, each.contigs, each.bases, int(each.values[0]), each.quantile(0.5), int(each.values[-1]), each.n50]
        )
    text = "; ".join(f"{row[0]}: N50 {row[6]:,}, from {row[3]:,} to {row[5]:,} bases" for row in rows)
    return Figure(
        title="Lengths of contigs",
        text=f"Share of the bases in contigs of each length. {text}.",
        columns=["", "contigs", "bases", "shortest", "median", "longest", "N50"],
        rows=rows,
        plot=plot_of(traces, x="bases of a contig", y="% of bases", xaxis_type="log"),
    )


def gc(parts: Sequence[Part]) -> Figure:
    """Return the distribution of the GC share over contigs."""
    traces: list[Any] = []
    rows: list[list[Any]] = []
    for name, group in compared(parts):
        letters = group.letters
        if letters is None or letters.gc is None:
            continue
        share = letters.gc_bases / letters.gc_bases.sum()
        used = np.flatnonzero(share > SHOWN)
        low, high = max(0, int(used[0]) - 1), min(100, int(used[-1]) + 1)
        traces.append(
            graph_objects().Scatter(
                x=np.arange(low, high + 1),
                y=share[low : high + 1] * 100,
                mode="lines",
                line_shape="hvh",
                name=label(name),
            )
        )
        rows.append([name, percent(letters.gc), int(letters.gc_contigs.sum()), letters.gc])
    shares = [row[3] for row in rows]
    alike = ""
    if len(shares) > 1:
        apart = max(shares) - min(shares)
        alike = f" The splits are {'alike' if apart < ALIKE else 'not alike'}: they differ by {apart * 100:.1f} points."
    text = ", ".join(f"{row[0]} {row[1]}" for row in rows)
    return Figure(
        title="GC of contigs",
        text=f"Share of the bases in contigs of each GC. In all: {text}.{alike}",
        columns=["", "GC", "contigs with A, C, G or T"],
        rows=[row[:3] for row in rows],
        plot=plot_of(traces, x="GC of a contig, %", y="% of bases"),
    )


def letters(parts: Sequence[Part]) -> Figure | None:
    """Return the shares of ambiguous and of soft-masked letters; None where there are none of both."""
    groups = [(name, group.letters) for name, group in compared(parts) if group.letters is not None]
    if not any(each.ambiguous or each.soft_masked for _, each in groups):
        return None
    names = labels(name for name, _ in groups)
    shares = {
        "not A, C, G or T": [each.ambiguous / max(1, each.bases) for _, each in groups],
        "lower case (repeats)": [each.soft_masked / max(1, each.bases) for _, each in groups],
    }
    traces = [graph_objects().Bar(x=names, y=[100 * v for v in values], name=name) for name, values in shares.items()]
    rows = [
        [name, each.bases, each.ambiguous, percent(each.ambiguous / max(1, each.bases)), each.soft_masked,
         percent(each.soft_masked / max(1, each.bases))]
        for name, each in groups
    ]  # fmt: skip
    text = "; ".join(f"{row[0]}: {row[3]} ambiguous, {row[5]} lower case" for row in rows)
    return Figure(
        title="Ambiguous and repeated letters",
        text=f"Letters other than A, C, G and T, and lower-case letters, which mark repeats. {text}.",
        columns=["", "letters", "ambiguous", "share", "lower case", "share"],
        rows=rows,
        plot=plot_of(traces, x="", y="% of letters", barmode="group", yaxis_rangemode="tozero"),
    )


def useful_tokens(parts: Sequence[Part]) -> Figure | None:
    """Return the share of useful tokens, padded and packed."""
    splits = [part for part in parts if part.split is not None and part.total.windows is not None]
    if not splits:
        return None
    names = list(names_of(parts).values())
    padded = [part.total.all_windows.useful_padded for part in splits]
    packed = [part.useful_packed for part in splits]
    bars = [graph_objects().Bar(x=labels(names), y=[100 * (v or 0) for v in padded], name="padded")]
    if any(share is not None for share in packed):
        bars.append(graph_objects().Bar(x=labels(names), y=[100 * (v or 0) for v in packed], name="packed"))
    rows = []
    for name, part, one, other in zip(names, splits, padded, packed, strict=True):
        counts = part.total.all_windows
        rows.append(
            [name, counts.windows, percent(one), percent(other), counts.bases_shown, counts.bases - counts.bases_shown]
        )
    text = "; ".join(
        f"{name}: {percent(one)} in padded rows" + (f", {percent(other)} in packed ones" if other is not None else "")
        for name, one, other in zip(names, padded, packed, strict=True)
    )
    return Figure(
        title="Useful tokens",
        text=f"Share of the tokens that are not padding. {text}.",
        columns=["split", "windows", "padded", "packed", "bases shown", "bases in no window"],
        rows=rows,
        plot=plot_of(bars, x="", y="% of tokens", barmode="group", yaxis_range=[0, 100]),
    )


def by_group(parts: Sequence[Part], what: str) -> Figure | None:
    """Return the windows (or, without splits, the bases) of each sample or tag; None where there is only one.

    Args:
        parts: the counts, by sample or by tag.
        what: `sample` or `tag`.
    """
    names = names_of(parts)
    columns: list[tuple[str, Mapping[str, Group]]] = [
        (names[part.path], part.groups) for part in parts if part.split is not None
    ]
    unit = "windows" if columns else "bases"
    columns = columns or [("all contigs", parts[0].groups)]

    def amount(group: Group | None) -> int:
        if group is None:
            return 0
        return group.lengths.bases if unit == "bases" else group.all_windows.windows

    totals: dict[str, int] = {}
    for _, groups in columns:
        for name, group in groups.items():
            totals[name] = totals.get(name, 0) + amount(group)
    if len(totals) < 2:
        return None
    order = sorted(totals, key=lambda name: (-totals[name], name))
    shown, rest = order[:MOST_BARS], order[MOST_BARS:]
    table: dict[str, list[int]] = {name: [amount(groups.get(name)) for _, groups in columns] for name in shown}
    if rest:
        table[REST] = [sum(amount(groups.get(name)) for name in rest) for _, groups in columns]
    whole = parts[0].groups
    bars = labels(table)
    traces = [
        graph_objects().Bar(y=bars, x=[values[k] for values in table.values()], name=label(split), orientation="h")
        for k, (split, _) in enumerate(columns)
    ]
    bases = {name: whole[name].lengths.bases if name in whole else None for name in shown}
    total = sum(totals.values())
    first = order[0]
    share = percent(totals[first] / total if total else 0)
    count = f"{len(order):,} {what}{'s' * (len(order) != 1)}"
    text = f"{count}; {first} has the most {unit}: {number(totals[first])} ({share})."
    return Figure(
        title=f"{unit.capitalize()} of each {what}",
        text=text + (f" The {len(rest):,} smallest are one bar." if rest else ""),
        columns=[what, *(f"{unit}, {split}" for split, _ in columns), "bases of all contigs"],
        rows=[[name, *values, bases.get(name)] for name, values in table.items()],
        plot=plot_of(traces, x=unit, y="", barmode="stack", yaxis_autorange="reversed", yaxis_type="category"),
        height=140 + 22 * max(4, len(table)),
    )


def coverage(split: str, contigs: Sequence[Coverage]) -> Figure | None:
    """Return the coverage along the longest contigs of a split."""
    if not contigs:
        return None
    traces: list[Any] = []
    rows: list[list[Any]] = []
    for each in contigs:
        middles = (np.arange(len(each.mean)) + 0.5) / len(each.mean) * each.length
        traces.append(
            graph_objects().Scatter(
                x=middles / 1000, y=each.mean.round(4), mode="lines", name=label(each.contig_id), line_shape="hvh"
            )
        )
        bare = float((each.mean == 0).mean())
        rows.append(
            [
                each.contig_id,
                each.length,
                float(each.mean.min()),
                float(each.mean.mean()),
                float(each.mean.max()),
                percent(bare),
            ]
        )
    lowest, highest = min(row[2] for row in rows), max(row[4] for row in rows)
    return Figure(
        title=f"Coverage along the longest contigs: {split}",
        text="How many rows hold a base, in 100 parts of each contig: "
        + (f"{lowest:.2f} everywhere." if lowest == highest else f"between {lowest:.2f} and {highest:.2f}."),
        columns=["contig", "bases", "least", "mean", "most", "parts in no row"],
        rows=rows,
        plot=plot_of(traces, x="position, kb", y="rows that hold a base", yaxis_rangemode="tozero"),
    )
