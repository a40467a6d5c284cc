"""`python -m benchmarks.cloud`: windows read over HTTP from a server that answers each request after 30 ms.

The server is `benchmarks.range_server`, in a process of its own on this machine. Contenders take turns in each
repeat; numbers are medians of the repeats.

    one by one     one request after the other, nothing ahead: what a loop over `dataset[i]` does
    stream, N      a `Stream` with one worker, N requests in flight

The best possible rate is requests in flight / delay. Data: contigs of 4 kb and of 5 Mb, in the pages that `build` chooses and
in pages of 4 KB. The first batch of every stream is compared with the local one, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

SIZE, STRIDE, BATCH = 8192, 7992, 8
DELAY_SECONDS = 0.030
IN_FLIGHT = (16, 64)
SHAPES = {"4 kb": (2000, 4_000), "5 Mb": (2, 5_000_000)}
"""{name: (contigs of each sample, mean length in bases)}."""
SAMPLES = 4


@contextmanager
def serving(folder: Path, delay_seconds: float) -> Iterator[str]:
    """Serve a folder; yield the URL."""
    command = [sys.executable, "-m", "benchmarks.range_server", str(folder), str(delay_seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def counts(server: str) -> dict[str, int]:
    """Return what the server has served since the last call."""
    with urllib.request.urlopen(f"{server}/-/counts") as answer:
        return json.load(answer)


def write_data(folder: Path, shape: str, page_size: int | None) -> Path:
    """Write sequence databases, a window database and its index."""
    from sharded_eden import build_sequence_dbs, precompute_window_database
    from sharded_eden.split import write_splits

    contigs, mean = SHAPES[shape]
    choose = random.Random(7)
    folder.mkdir(parents=True)
    for sample in range(SAMPLES):
        with (folder / f"S{sample}.fa").open("w") as file:
            for contig in range(contigs):
                length = max(200, int(mean * choose.lognormvariate(-0.18, 0.6))) if mean < 10**6 else mean
                file.write(f">c{contig}\n{choose.randbytes(length).translate(LETTERS).decode()}\n")
    options: dict[str, Any] = {} if page_size is None else {"page_size": page_size}
    build_sequence_dbs([str(path) for path in sorted(folder.glob("*.fa"))], folder / "seqs", **options)
    write_splits(folder / "seqs", folder / "splits", by="contig", val=0, test=0)
    precompute_window_database(folder / "splits/train_split.parquet", folder / "w.db", SIZE, STRIDE)
    return folder


LETTERS = bytes(b"ACGT"[k & 3] for k in range(256))


def stream_seconds(dataset: Any, windows: int, workers: int) -> tuple[float, float, Any]:
    """Return the seconds to the first batch, those of `windows` after it, and the first batch."""
    from torch.utils.data import DataLoader

    from sharded_eden import Stream, StreamBatchSampler

    stream = Stream(dataset)
    sampler = StreamBatchSampler(stream, micro_batch_size=BATCH, global_batch_size=BATCH)
    loader = DataLoader(stream, batch_sampler=sampler, num_workers=workers)
    began = time.perf_counter()
    batches = iter(loader)
    first = next(batches)
    ready = time.perf_counter()
    for _ in islice(batches, windows // BATCH):
        pass
    return ready - began, time.perf_counter() - ready, first


def measure(folder: Path, server: str, path: str, windows: int, repeats: int) -> list[dict[str, Any]]:
    """Return one row for each contender."""
    import torch

    from sharded_eden import ShardedEdenDataset
    from sharded_eden.windows.remote_index import add_remote

    url = f"{server}/{path}/seqs"
    add_remote(folder / "w.db", url)
    local = ShardedEdenDataset(None, folder / "seqs", folder / "w.db", SIZE, stride=STRIDE, compact=True)
    _, _, expected = stream_seconds(local, 0, 0)
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        for name in ("one by one", *IN_FLIGHT):
            few = 64 if name == "one by one" else windows
            options = {"requests_in_flight": 1 if name == "one by one" else name}
            with ShardedEdenDataset(
                None, url, folder / "w.db", SIZE, stride=STRIDE, compact=True, **options
            ) as dataset:
                counts(server)
                if name == "one by one":
                    began = time.perf_counter()
                    dataset[0]
                    first = time.perf_counter() - began
                    for k in random.Random(1).sample(range(len(dataset)), few):
                        dataset[k]
                    seconds = time.perf_counter() - began - first
                else:
                    first, seconds, batch = stream_seconds(dataset, few, 1)
                    assert all(torch.equal(batch[key], expected[key]) for key in expected)
            served = counts(server)
            found.setdefault(str(name), []).append({
                "windows_per_second": few / seconds, "first_batch_seconds": first, "most_in_flight": served["in_flight"],
            })  # fmt: skip
    local.close()
    return [
        {"contender": name, **{key: statistics.median(each[key] for each in rows) for key in rows[0]}}
        for name, rows in found.items()
    ]


def per_window(folder: Path, server: str) -> tuple[float, float]:
    """Return requests and bytes per window, over a whole pass without repeats."""
    from sharded_eden import ShardedEdenDataset, Stream

    url_of = json.loads(_meta(folder))["remote"]["url"]
    with ShardedEdenDataset(None, url_of, folder / "w.db", SIZE, stride=STRIDE, compact=True) as dataset:
        counts(server)
        stream = Stream(dataset)
        total = min(len(dataset), 4096)
        for k in range(0, total, 32):
            stream.__getitems__(list(range(k, min(k + 32, total))))
        served = counts(server)
    return served["requests"] / total, served["bytes"] / total


def _meta(folder: Path) -> str:
    import zipfile

    with zipfile.ZipFile(folder / "w.db.index") as archive:
        return archive.read("meta.json").decode()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--windows", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--delay", type=float, default=DELAY_SECONDS)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch, serving(Path(scratch), arguments.delay) as server:
        for shape in SHAPES:
            for page_size in (None, 4096):
                path = f"{shape.replace(' ', '')}-{page_size or 'built'}"
                folder = write_data(Path(scratch) / path, shape, page_size)
                for row in measure(folder, server, path, arguments.windows, arguments.repeats):
                    rows.append({"contigs": shape, "pages": page_size or "as built", **row})
                    print(json.dumps(rows[-1]), flush=True)
                requests, transferred = per_window(folder, server)
                print(f"{path}: {requests:.3f} requests and {transferred:,.0f} bytes per window", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
