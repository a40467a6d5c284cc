"""The whole loop through `torch.utils.data.DataLoader`: 2 workers, batches of 32, until the last batch is in the main process.

Worker processes stay alive between passes, so their start is not included. Compact batches are expanded in the
main process, on the CPU, as in a training loop without an accelerator.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from benchmarks import contenders as c
from benchmarks.contenders import BATCH
from benchmarks.data import World
from benchmarks.guard import compare, digest
from benchmarks.report import Result, Table, rate, ratio, verdict
from benchmarks.timing import Race, Rates, Timed
from sharded_eden.load.dataset import ShardedEdenDataset

NAIVE = "naive, {} workers"
FLAT, OURS, COMPACT = "flat memory map, full tensors", "ours, full tensors", "ours, compact batches, expanded"
WORKERS = 2
OVER_NAIVE_ON_SHORT, OVER_FLAT = 15, 2.5

Key = tuple[str, str]


class Stretch(Sampler[int]):
    """The windows of the next pass."""

    def __init__(self) -> None:
        self.windows: list[int] = []

    def __iter__(self) -> Any:
        return iter(self.windows)

    def __len__(self) -> int:
        return len(self.windows)


def _loop(
    dataset: Any, workers: int, order: NDArray[np.int64], finish: Callable[[Any], Any] | None = None
) -> tuple[Timed, Callable[[list[int]], list[Any]]]:
    """Return a function that times passes of a loader, and one that returns its batches."""
    import time

    sampler = Stretch()
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=BATCH,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=c.collate,
        multiprocessing_context="fork" if workers else None,
    )

    def batches(windows: list[int]) -> list[Any]:
        sampler.windows = windows
        return [finish(batch) if finish else batch for batch in loader]

    def run(first: int, windows: int) -> float:
        sampler.windows = order[np.arange(first, first + windows) % len(order)].tolist()
        start = time.perf_counter()
        for batch in loader:
            if finish is not None:
                finish(batch)
        return time.perf_counter() - start

    return run, batches


def run(worlds: Sequence[World], quick: bool, say: Callable[[str], None]) -> Result:
    """Measure the loops on every world."""
    racing: dict[Key, tuple[Timed, int]] = {}
    torch.multiprocessing.set_sharing_strategy("file_descriptor")
    has_compact = "compact" in inspect.signature(ShardedEdenDataset).parameters
    for world in worlds:
        world.warm()
        shape, order = world.shape.name, world.order
        loops = {NAIVE.format(workers): _loop(c.NaiveDataset(world), workers, order) for workers in (0, 1, 2)}
        loops[FLAT] = _loop(c.FlatDataset(world), WORKERS, order)
        loops[OURS] = _loop(c.ours(world), WORKERS, order)
        if has_compact:
            compact: Any = c.ours(world, compact=True)
            loops[COMPACT] = _loop(compact, WORKERS, order, compact.expander())
        checked = world.order[: 2 * BATCH].tolist()
        naive = c.NaiveDataset(world)
        expected = [digest(naive[window]) for window in checked]
        for name, (timed, batches) in loops.items():
            made = batches(checked)
            compare(name, expected, (digest({k: t[i] for k, t in b.items()}) for b in made for i in range(BATCH)))
            racing[shape, name] = (timed, BATCH)
    rates = Race(racing, 0.5 if quick else 2.0, 3 if quick else 5, say).run()
    return Result("workers", "Through DataLoader", [_table(worlds, rates, has_compact)], _data(rates))


def _table(worlds: Sequence[World], rates: dict[Key, Rates], has_compact: bool) -> Table:
    table = Table(
        f"Whole loop through DataLoader, {WORKERS} workers, batches of {BATCH}",
        "Windows/s as a multiple of the naive loader's best worker setting (0, 1 or 2) and, last rows, of the flat memory map "
        "handing over full tensors in the same loop; medians of the ratios of each repeat.",
        ["", *(world.shape.title for world in worlds)],
    )
    names = [world.shape.name for world in worlds]
    settings = {s: max((0, 1, 2), key=lambda workers, s=s: rates[s, NAIVE.format(workers)].median) for s in names}
    best = {s: rates[s, NAIVE.format(workers)] for s, workers in settings.items()}
    table.rows.append(["naive, best setting", *(f"1x, {settings[s]} workers {rate(best[s].median)}" for s in names)])
    for name in (FLAT, OURS):
        table.rows.append(
            [name, *(f"{ratio(rates[s, name].over(best[s]))} {rate(rates[s, name].median)}" for s in names)]
        )
    if not has_compact:
        table.rows.append([COMPACT, *("this version has none" for _ in names)])
        return table
    over_naive = [rates[s, COMPACT].over(best[s]) for s in names]
    cells = [
        verdict(v, OVER_NAIVE_ON_SHORT) if s == "short" else ratio(v) for s, v in zip(names, over_naive, strict=True)
    ]
    table.rows.append(
        [COMPACT, *(f"{cell} {rate(rates[s, COMPACT].median)}" for s, cell in zip(names, cells, strict=True))]
    )
    for name in (OURS, COMPACT):
        over = [rates[s, name].over(rates[s, FLAT]) for s in names]
        cells = [verdict(v, OVER_FLAT) if name == COMPACT else ratio(v) for v in over]
        table.rows.append([f"{name}, over the flat memory map", *cells])
    return table


def _data(rates: dict[Key, Rates]) -> dict[str, Any]:
    return {"windows_per_second": {f"{shape}: {name}": r.each for (shape, name), r in rates.items()}}
