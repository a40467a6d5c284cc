"""The second pass from complete copies of objects: its rate over that of local files.

Run `python -m benchmarks.copies`. One process, batches of 32, windows of 8,192 bases, warm. Interleaved repeats, in turns one
first and the other; medians of the ratios of each repeat. Rates are per second of processor time, so that other processes
disturb less. The storage is a file:// URL, which is not read after the first pass: the batches of both are compared, bit for
bit.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import data, machine
from sharded_eden import ShardedEdenDataset, Stream
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.remote_index import add_remote

BATCH, BATCHES, REPEATS = 32, 128, 10
RESULTS = Path(__file__).parent / "results"


def batch_of(stream: Stream, number: int) -> dict[str, torch.Tensor]:
    """Return one batch."""
    return stream.collate_fn(stream.__getitems__(range(number * BATCH, (number + 1) * BATCH)))


def rate(stream: Stream, repeat: int) -> float:
    """Return windows/s of processor time."""
    began = time.process_time()
    for number in range(BATCHES):
        batch_of(stream, repeat * BATCHES + number)
    return BATCHES * BATCH / (time.process_time() - began)


def main() -> None:
    """Measure, print and write the table."""
    rows = []
    for name in ("short", "5mb"):
        world = data.build(data.shapes(True)[name], True)
        with tempfile.TemporaryDirectory() as scratch:
            window_db = Path(scratch) / "windows.db"
            shutil.copy2(world.window_db, window_db)
            url = f"file://{world.sequence_db_dir.absolute()}"
            index_window_database(world.sequence_db_dir, window_db)
            add_remote(window_db, url)
            for compact in (False, True):
                local = Stream(ShardedEdenDataset.open(world.sequence_db_dir, window_db, compact=compact))
                options = {"cache_dir": Path(scratch) / "cache", "cache_bytes": 1 << 40, "compact": compact}
                copies = Stream(ShardedEdenDataset.open(url, window_db, **options))
                while copies.dataset._addresses._readers.get()._missing:
                    batch_of(copies, 0)
                    time.sleep(0.1)
                for number in range(BATCHES):
                    one, other = batch_of(local, number), batch_of(copies, number)
                    assert all(torch.equal(one[key], other[key]) for key in one)
                pairs = []
                for repeat in range(REPEATS):
                    streams = (copies, local) if repeat % 2 else (local, copies)
                    rates = {stream is copies: rate(stream, repeat) for stream in streams}
                    pairs.append((rates[True], rates[False]))
                local.dataset.close()
                copies.dataset.close()
                ratio = statistics.median(a / b for a, b in pairs)
                of_local = statistics.median(b for _, b in pairs)
                kind = "compact" if compact else "full tensors"
                rows.append((world.shape.title, kind, round(of_local), round(ratio, 3)))
    lines = ["| data | rows | local files, windows/s of processor time | copies, of that rate |", "|---|---|---|---|"]
    lines += [f"| {title} | {kind} | {of_local:,} | {ratio:.3f} |" for title, kind, of_local, ratio in rows]
    print("\n".join(lines))
    (RESULTS / "copies.md").write_text(
        f"# The second pass from complete copies\n\n{chr(10).join(lines)}\n\n`python -m benchmarks.copies`\n"
    )
    (RESULTS / "copies.json").write_text(json.dumps({"machine": machine.describe(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
