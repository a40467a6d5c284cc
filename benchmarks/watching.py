"""What watching costs: the rate of a loop with access logs, or with `LoaderCounter`, over the rate without.

Run `python -m benchmarks.watching`. One process, batches of 32, windows of 8,192 bases, an index file, warm. Interleaved
repeats; medians of the ratios of each repeat. Rates are per second of processor time, so that other processes disturb less.
Closing a log counts, and so does turning it into Parquet.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import data, machine
from sharded_eden import ShardedEdenDataset, Stream
from sharded_eden.train.statistics import LoaderCounter
from sharded_eden.windows.index import index_window_database

BATCH, BATCHES, REPEATS, VALUES_EVERY = 32, 128, 9, 50
RESULTS = Path(__file__).parent / "results"
CONTENDERS = ("nothing", "log, CSV", "log, Parquet", "LoaderCounter")


def loop(world: data.World, what: str, compact: bool, repeat: int, folder: Path) -> float:
    """Return windows/s of one repeat; opening is not included, closing is."""
    options: dict[str, Any] = {"compact": compact}
    if what.startswith("log"):
        options |= {"log_windows": True, "log_dir": folder, "log_format": what.rsplit(maxsplit=1)[-1].lower()}
    dataset = ShardedEdenDataset.open(world.sequence_db_dir, world.window_db, **options)
    stream = Stream(dataset)
    first = repeat * BATCHES * BATCH
    stream.__getitems__(range(BATCH))
    counter = LoaderCounter(stream, samples_per_batch=BATCH, consumed_samples=first)
    batches = (
        stream.collate_fn(stream.__getitems__(range(first + k * BATCH, first + (k + 1) * BATCH)))
        for k in range(BATCHES)
    )
    begin = time.process_time()
    for number, _ in enumerate(counter.watch(batches) if what == "LoaderCounter" else batches, start=1):
        if what == "LoaderCounter" and number % VALUES_EVERY == 0:
            counter.values()
    dataset.close()
    return BATCHES * BATCH / (time.process_time() - begin)


def main() -> None:
    """Measure, print and write the table."""
    shape = data.shapes(True)["short"]
    world = data.build(shape, True)
    index_window_database(world.sequence_db_dir, world.window_db)
    world.warm()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for compact in (False, True):
            rates: dict[str, list[float]] = {what: [] for what in CONTENDERS}
            for repeat in range(-1, REPEATS):
                for what in CONTENDERS:
                    rate = loop(world, what, compact, max(repeat, 0), Path(folder))
                    if repeat >= 0:
                        rates[what].append(rate)
            for what in CONTENDERS:
                share = statistics.median(a / b for a, b in zip(rates[what], rates["nothing"], strict=True))
                rows.append(
                    (
                        "compact" if compact else "full tensors",
                        what,
                        round(statistics.median(rates[what])),
                        round(share, 3),
                    )
                )
    lines = ["| rows | watched by | windows/s of processor time | of the rate without |", "|---|---|---|---|"]
    lines += [f"| {kind} | {what} | {rate:,} | {share:.3f} |" for kind, what, rate, share in rows]
    print("\n".join(lines))
    (RESULTS / "watching.md").write_text(
        f"# What watching costs\n\n{chr(10).join(lines)}\n\n`python -m benchmarks.watching`\n"
    )
    (RESULTS / "watching.json").write_text(json.dumps({"machine": machine.describe(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
