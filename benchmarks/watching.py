"""What watching costs: the rate of a loop with access logs, or with `LoaderCounter`, over the rate without.

Run `python -m benchmarks.watching`. Batches of 32, windows of 8,192 bases, an index file, warm. Medians of the ratios of pairs:
each run is followed or preceded by one without. In one process, rates are per second of processor time, so that other processes
disturb less; closing a log counts, and so does turning it into Parquet. With workers, rates are by the clock, from the first
batch to the last, of a loop that does nothing else.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from benchmarks import data, machine
from sharded_eden import ShardedEdenDataset, Stream, StreamBatchSampler
from sharded_eden.train.statistics import LoaderCounter
from sharded_eden.windows.index import index_window_database

SHAPE = data.Shape("watching", "short contigs", 8, 20_000, 2_200, log_normal=True)
BATCH, VALUES_EVERY = 32, 50
BATCHES = {0: 2048, 1: 256, 2: 256}
"""By the number of workers: in one process a log has 65,536 rows, because the time to open and close it counts there."""
REPEATS = {0: 5, 1: 3, 2: 3}
"""By the number of workers."""
WATCHED_BY = ("log, CSV", "log, Parquet", "LoaderCounter")
HEADER = "| rows | read by | watched by | windows/s | of the rate without |\n|---|---|---|---|---|"
RESULTS = Path(__file__).parent / "results"


def loop(world: data.World, what: str, compact: bool, workers: int, repeat: int, folder: Path) -> float:
    """Return windows/s of one repeat; opening is not included."""
    options: dict[str, Any] = {"compact": compact}
    if what.startswith("log"):
        options |= {"log_windows": True, "log_dir": folder, "log_format": what.rsplit(maxsplit=1)[-1].lower()}
    dataset = ShardedEdenDataset.open(world.sequence_db_dir, world.window_db, **options)
    stream = Stream(dataset)
    count = BATCHES[workers]
    first = repeat * count * BATCH
    stream.__getitems__(range(BATCH))
    clock = time.perf_counter if workers else time.process_time
    batches: Iterable[Any]
    if workers:
        sampler = StreamBatchSampler(
            stream, micro_batch_size=BATCH, global_batch_size=BATCH, consumed_samples=first % len(stream)
        )
        batches = DataLoader(stream, batch_sampler=sampler, collate_fn=stream.collate_fn, num_workers=workers)
    else:
        batches = in_process(stream, first, count)
    counter = LoaderCounter(stream, samples_per_batch=BATCH, consumed_samples=first)
    begin = clock()
    for number, _ in enumerate(islice(counter.watch(batches) if what == "LoaderCounter" else batches, count)):
        if number == 0 and workers:
            begin = clock()
        if what == "LoaderCounter" and number % VALUES_EVERY == VALUES_EVERY - 1:
            counter.values()
    seconds = clock() - begin
    begin = clock()
    dataset.close()
    if not workers:
        seconds += clock() - begin
    return (count - (workers > 0)) * BATCH / seconds


def in_process(stream: Stream, first: int, count: int) -> Iterator[Any]:
    """Yield some batches from a position on."""
    for begin in range(first, first + count * BATCH, BATCH):
        yield stream.collate_fn(stream.__getitems__(range(begin, begin + BATCH)))


def measure(world: data.World, what: str, compact: bool, workers: int, folder: Path) -> tuple[int, float]:
    """Return the rate, and the median of its ratios to the rate without."""
    rates, ratios = [], []
    for repeat in range(-1, REPEATS[workers]):
        pair = [what, "nothing"][:: 1 if repeat % 2 else -1]
        found = {each: loop(world, each, compact, workers, max(repeat, 0), folder) for each in pair}
        if repeat >= 0:
            rates.append(found[what])
            ratios.append(found[what] / found["nothing"])
    return round(statistics.median(rates)), round(statistics.median(ratios), 3)


def main() -> None:
    """Measure, print and write the table."""
    world = data.build(SHAPE, False)
    index_window_database(world.sequence_db_dir, world.window_db)
    world.warm()
    rows: list[tuple[str, str, str, int, float]] = []
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for workers in REPEATS:
            read_by = "one process" if not workers else f"{workers} worker{'s' * (workers > 1)}"
            for compact in (False, True):
                for what in WATCHED_BY:
                    rate, share = measure(world, what, compact, workers, Path(folder))
                    rows.append(("compact" if compact else "full tensors", read_by, what, rate, share))
                    print(table(rows[-1:]), flush=True)
    (RESULTS / "watching.md").write_text(
        f"# What watching costs\n\n{HEADER}\n{table(rows)}\n\nIn one process per second of processor time, with workers by the "
        "clock. `python -m benchmarks.watching`\n"
    )
    (RESULTS / "watching.json").write_text(json.dumps({"machine": machine.describe(), "rows": rows}, indent=1) + "\n")


def table(rows: list[tuple[str, str, str, int, float]]) -> str:
    """Return rows of the table."""
    return "\n".join(f"| {kind} | {by} | {what} | {rate:,} | {share:.3f} |" for kind, by, what, rate, share in rows)


if __name__ == "__main__":
    main()
