"""Figures of the access logs of one split. Input: `Reads`. Output: figures of bounded size."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from sharded_eden.report.figure import Figure, graph_objects, percent, plot_of
from sharded_eden.report.reads import PAUSE_EDGES, Reads
from sharded_eden.report.verdicts import times

MOST_PROCESSES = 64
MOST_TIMES = 40
MOST_RANKS = 8
"""Ranks with a colour of their own in the scatter plot."""


def of_reads(reads: Reads) -> list[Figure]:
    """Return all figures of a split's access logs."""
    if not reads.rows:
        return []
    return [_scatter(reads), _times_read(reads), _along(reads), _processes(reads), _pauses(reads)]


def _scatter(reads: Reads) -> Figure:
    points = reads.points.sort("seconds")
    ranks = sorted(reads.reads_by_rank)
    groups = [(f"rank {rank}", [rank]) for rank in ranks[:MOST_RANKS]]
    if len(ranks) > MOST_RANKS:
        groups[-1] = (f"ranks {ranks[MOST_RANKS - 1]} to {ranks[-1]}", ranks[MOST_RANKS - 1 :])
    traces = []
    for name, members in groups:
        chosen = points.filter(points["rank"].is_in(members))
        traces.append(
            graph_objects().Scatter(
                x=chosen["seconds"].round(3).to_numpy(),
                y=chosen["window"].to_numpy(),
                mode="markers",
                marker={"size": 4, "opacity": 0.7},
                name=name,
            )
        )
    shown = (
        f"{len(points):,} of {reads.rows:,} reads, chosen at random,"
        if len(points) < reads.rows
        else f"All {reads.rows:,} reads"
    )
    tenths = np.linspace(0, reads.seconds, 11)
    rows = []
    for low, high in pairwise(tenths):
        part = points.filter((points["seconds"] >= low) & ((points["seconds"] < high) | (high == tenths[-1])))["window"]
        values = part.to_numpy()
        if len(values):
            rows.append(
                [
                    f"{low:,.1f} to {high:,.1f} s",
                    len(values),
                    int(values.min()),
                    int(np.median(values)),
                    int(values.max()),
                ]
            )
    return Figure(
        title="Window against time",
        text=f"{shown} as points. A global shuffle fills the area evenly at all times; steps or stripes show blocks, "
        f"empty stripes "
        "show gaps.",
        columns=["time since the first read", "points", "lowest window", "median", "highest window"],
        rows=rows,
        plot=plot_of(
            traces,
            x="seconds since the first read",
            y="window",
            yaxis_range=[-0.02 * reads.windows, 1.02 * reads.windows],
            xaxis_rangemode="tozero",
        ),
        is_wide=True,
        height=440,
    )


def _times_read(reads: Reads) -> Figure:
    often = sorted(reads.times_read)
    rows = [
        [count, reads.times_read[count], percent(reads.times_read[count] / reads.windows)]
        for count in often[:MOST_TIMES]
    ]
    if often[MOST_TIMES:]:
        more = sum(reads.times_read[count] for count in often[MOST_TIMES:])
        rows.append([f"more than {often[MOST_TIMES - 1]}", more, percent(more / reads.windows)])
    width = min(0.6, 0.15 * len(rows))
    only = f"All {reads.windows:,} windows were read {times(often[0])}." if len(often) == 1 else ""
    return Figure(
        title="How often each window was read",
        text=only or "; ".join(f"{row[1]:,} windows {_times(row[0])}" for row in rows[:6]) + ".",
        columns=["times read", "windows", "share"],
        rows=rows,
        plot=plot_of(
            [graph_objects().Bar(x=[str(row[0]) for row in rows], y=[row[1] for row in rows], width=width)],
            x="times read", y="windows", xaxis_type="category", bargap=0.3,
        ),
    )  # fmt: skip


def _along(reads: Reads) -> Figure:
    mean = reads.by_part
    edges = np.arange(len(mean) + 1) * reads.windows // len(mean)
    least, most = int(mean.argmin()), int(mean.argmax())
    between = (
        f"{mean[least]:.2f} in all of them"
        if mean[least] == mean[most]
        else f"between {mean[least]:.2f} (from window {edges[least]:,} on) and {mean[most]:.2f} "
        f"(from window {edges[most]:,} on)"
    )
    step = max(1, len(mean) // 20)
    rows = [
        [f"{edges[k]:,} to {edges[min(k + step, len(mean))] - 1:,}", float(mean[k : k + step].mean())]
        for k in range(0, len(mean), step)
    ]
    return Figure(
        title="Reads along the split",
        text=f"Reads of a window, on average over {len(mean)} parts of the split: {between}.",
        columns=["windows", "reads of each"],
        rows=rows,
        plot=plot_of(
            [graph_objects().Scatter(x=edges[:-1], y=mean.round(4), mode="lines", line_shape="hv", fill="tozeroy")],
            x="window", y="reads of a window", yaxis_rangemode="tozero", showlegend=False,
        ),
    )  # fmt: skip


def _processes(reads: Reads) -> Figure:
    counts = reads.by_process
    names = {
        (rank, worker): f"rank {rank}, " + ("main" if worker < 0 else f"worker {worker}") for rank, worker in counts
    }
    rows: list[list[Any]] = [[names[key], counts[key], percent(counts[key] / reads.rows)] for key in sorted(counts)]
    what = "process"
    if len(rows) > MOST_PROCESSES:
        ranks = sorted(reads.reads_by_rank)
        rows = [
            [f"rank {rank}", reads.reads_by_rank[rank], percent(reads.reads_by_rank[rank] / reads.rows)]
            for rank in ranks
        ]
        what = "rank"
        if len(rows) > MOST_PROCESSES:
            rest = sum(row[1] for row in rows[MOST_PROCESSES:])
            rows = [*rows[:MOST_PROCESSES], ["all other ranks", rest, percent(rest / reads.rows)]]
    least, most = min(row[1] for row in rows), max(row[1] for row in rows)
    same = f"{least:,} reads each" if least == most else f"between {least:,} and {most:,} reads each"
    return Figure(
        title=f"Reads of each {what}",
        text=f"{len(reads.reads_by_rank):,} rank{'s' * (len(reads.reads_by_rank) != 1)}, {len(counts):,} reading "
        f"process{'es' * (len(counts) != 1)}: {same}.",
        columns=[what, "reads", "share"],
        rows=rows,
        plot=plot_of(
            [graph_objects().Bar(y=[row[0] for row in rows], x=[row[1] for row in rows], orientation="h")],
            x="reads", y="", yaxis_autorange="reversed", showlegend=False, bargap=_gap(len(rows)),
        ),
        height=max(320, 120 + 22 * len(rows)),
    )  # fmt: skip


def _pauses(reads: Reads) -> Figure:
    used = np.flatnonzero(reads.pauses)
    total = int(reads.pauses.sum())
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    counts = reads.pauses[low:high]
    lows = [0.0 if k == 0 else float(PAUSE_EDGES[k - 1]) for k in range(low, high)]
    highs = [float(PAUSE_EDGES[k]) if k < len(PAUSE_EDGES) else float("inf") for k in range(low, high)]
    rows = [
        [f"{_seconds(a)} to {_seconds(b)}", int(count)]
        for a, b, count in zip(lows, highs, counts, strict=True)
        if count
    ]
    text = "There was one batch for each process." if not total else (
        f"{total:,} pauses; half are below {_seconds(_quantile(reads, 0.5))}, 99% below "
        f"{_seconds(_quantile(reads, 0.99))}, and the "
        f"longest took {_seconds(reads.longest_pause[0])}. A stall is a bar far to the right."
    )  # fmt: skip
    return Figure(
        title="Time between two batches of a process",
        text=text,
        columns=["pause", "how many"],
        rows=rows,
        plot=plot_of(
            [graph_objects().Bar(x=[_seconds(high) for high in highs], y=counts)],
            x="pause of at most", y="pauses", yaxis_type="log", xaxis_type="category", showlegend=False, bargap=0.05,
        ),
    )  # fmt: skip


def _quantile(reads: Reads, share: float) -> float:
    """Return the upper border of the bar that holds a quantile of the pauses, in seconds."""
    at = int(np.searchsorted(np.cumsum(reads.pauses), share * reads.pauses.sum()))
    return float(PAUSE_EDGES[at]) if at < len(PAUSE_EDGES) else reads.longest_pause[0]


def _gap(bars: int) -> float:
    """Return the space between bars that keeps a few of them from filling the figure."""
    return max(0.3, 1 - 0.15 * bars)


def _times(count: object) -> str:
    return times(count) if isinstance(count, int) else str(count)


def _seconds(value: float) -> str:
    if value == 0:
        return "0 s"
    if value == float("inf"):
        return "more"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"
