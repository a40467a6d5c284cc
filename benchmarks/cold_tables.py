"""The tables of `benchmarks.cold`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.cold_data import BUILD, SHAPES
from benchmarks.report import Table, small, verdict

FLAT, FLAT_AHEAD, SQLITE = "flat", "flat, ahead", "sqlite"
INDEX, AHEAD, STREAM = "index", "index, ahead", "index, stream"
MANY_SAMPLES, SHORT = "samples", {"short", "middle", "samples"}

AHEAD_OVER_FLAT, AHEAD_OF_MANY_SAMPLES = 1.8, 1.2
PLAIN_OVER_FLAT_SHORT, PLAIN_OVER_FLAT_LONG = 0.75, 0.9
REQUESTS_SNIPPET, REQUESTS_BUILD = 1.3, 1.1
BYTES_OVER_OWN = 2.0
BYTES_OVER_READ_AHEAD = 1.05
"""The same bytes at both settings of the kernel's read-ahead, give or take other processes."""
DELAYED_OVER_FLAT = 5.0

Measured = dict[str, list[dict[str, Any]]]
"""{contender: the answer of each repeat}, with `windows` and `rate` (windows/s)."""


@dataclass(frozen=True)
class Case:
    """One state of data and machine."""

    part: str
    """disk, peers, limit or delay."""
    shape: str
    store: str
    read_ahead_kb: int

    def __str__(self) -> str:
        return f"{self.part}, {self.shape}, {self.store}, {self.read_ahead_kb} KB"


def median(answers: list[dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> float:
    """Return the median over the repeats."""
    return statistics.median(map(of, answers))


def over(found: Measured, one: str, other: str) -> float:
    """Return how many times as fast one contender is as another: the median of the ratios of each repeat."""
    return statistics.median(mine["rate"] / its["rate"] for mine, its in zip(found[one], found[other], strict=True))


def requests(answer: dict[str, Any]) -> float:
    """Return the requests of one window."""
    return float("nan") if answer["requests"] is None else float(answer["requests"] / answer["windows"])


def kilobytes(answer: dict[str, Any]) -> float:
    """Return what one window read from the disk, KB."""
    return float(answer["kilobytes"] / answer["windows"])


def tables(measured: Mapping[Case, Measured], gigabytes: float, peer_gigabytes: float) -> list[Table]:
    """Return all tables."""
    found = []
    if on_disk := {case: m for case, m in measured.items() if case.part == "disk"}:
        found.append(_goals(on_disk))
    if delayed := {case: m for case, m in measured.items() if case.part == "delay"}:
        found.append(_delayed_goals(delayed))
    titles = {
        "disk": f"From the disk, {gigabytes:g} GB of bases a shape",
        "peers": f"Peers on the same data in the same state, {peer_gigabytes:g} GB of bases a shape",
        "limit": "Peers where the disk takes few requests a second",
        "delay": "Peers where every request takes longer by the same time",
    }
    notes = {
        "disk": "Windows/s with opening; KB that the process read and requests of the device, for one window. `ahead`: the "
        "windows of a batch are announced before the first is read; `stream`: those of the next batches, too.",
        "peers": "LitData shuffles inside chunks and has no global shuffle; all others read windows at random places. All give "
        "bases; ours also frames them with special tokens. Megatron stores two bytes a base.",
        "limit": "cgroup v1, `blkio.throttle.read_iops_device`. A global shuffle needs a request for each window, a loader "
        "that shuffles inside chunks does not.",
        "delay": "`slow_reads.c`, a FUSE file system that waits before each read; requests and KB are those that it got.",
    }
    for part, title in titles.items():
        cases = {case: m for case, m in measured.items() if case.part == part}
        if cases:
            found.append(_all(title, notes[part], cases))
    return found


def _delayed_goals(cases: Mapping[Case, Measured]) -> Table:
    table = Table("With a delay in every request", "", ["", "index, stream over flat", "index, ahead over flat"])
    for case, found in cases.items():
        ratios = (verdict(over(found, each, FLAT), DELAYED_OVER_FLAT) for each in (STREAM, AHEAD))
        table.rows.append([_title(case), *ratios])
    return table


def _title(case: Case) -> str:
    return f"{SHAPES[case.shape].title}{', by build' if case.store == BUILD else ', pages of 4 KB'}"


def _all(title: str, note: str, cases: Mapping[Case, Measured]) -> Table:
    names = list(dict.fromkeys(name for m in cases.values() for name in m))
    table = Table(title, note, ["", "read-ahead", *names])
    for case, found in cases.items():
        cells = []
        for name in names:
            if name not in found:
                cells.append("")
                continue
            a = found[name]
            cells.append(
                f"{median(a, lambda x: x['rate']):,.0f}/s "
                + small(f"{median(a, kilobytes):.1f} KB, {median(a, requests):.2f}")
            )
        table.rows.append([_title(case), f"{case.read_ahead_kb} KB", *cells])
    return table


def _goals(cases: Mapping[Case, Measured]) -> Table:
    note = (
        "Medians of the ratios of each repeat; bold where reached. Index and window database are cold too. The kernel reads "
        "pages of 4 KB, from the flat file too: `bytes over those of flat`. Requests, bytes and "
        "opening are those of `index, stream`."
    )
    table = Table(
        "What must be reached",
        note,
        ["", "read-ahead", "index, stream over flat", "index, ahead over flat",
         "index, ahead over flat, ahead", "index over flat", "requests a window",
         "bytes over the window's own", "bytes over those of flat", "bytes over those at 128 KB", "opening"],
    )  # fmt: skip
    for case, found in cases.items():
        a = found[STREAM]
        least = AHEAD_OF_MANY_SAMPLES if case.shape == MANY_SAMPLES else AHEAD_OVER_FLAT
        plain = PLAIN_OVER_FLAT_SHORT if case.shape in SHORT else PLAIN_OVER_FLAT_LONG
        most = REQUESTS_BUILD if case.store == BUILD else REQUESTS_SNIPPET
        same = cases.get(Case(case.part, case.shape, case.store, 128))
        table.rows.append(
            [
                _title(case),
                f"{case.read_ahead_kb} KB",
                *(verdict(over(found, each, FLAT), least) for each in (STREAM, AHEAD)),
                f"{over(found, AHEAD, FLAT_AHEAD):.2f}",
                verdict(over(found, INDEX, FLAT), plain),
                _at_most(median(a, requests), most),
                _at_most(median(a, lambda x: kilobytes(x) * 1024 / x["window_bytes"]), BYTES_OVER_OWN),
                f"{median(a, kilobytes) / median(found[FLAT], kilobytes):.2f}",
                ""
                if same is None or case.read_ahead_kb == 128
                else _at_most(median(a, kilobytes) / median(same[STREAM], kilobytes), BYTES_OVER_READ_AHEAD),
                _opening(a),
            ]
        )
    return table


def _opening(answers: list[dict[str, Any]]) -> str:
    seconds = f"{median(answers, lambda x: x['open_seconds']):.2f} s"
    if answers[0]["open_requests"] is None:
        return seconds
    return f"{seconds}, {median(answers, lambda x: x['open_requests']):,.0f} requests"


def _at_most(value: float, target: float) -> str:
    bold = "**" if value <= target else ""
    return f"{bold}{value:.2f}{bold} {small(f'at most {target:g}')}"
