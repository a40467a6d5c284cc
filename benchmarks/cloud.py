"""`python -m benchmarks.cloud`: windows from a server that answers each request after 30 ms; writes results/cloud.md and .json.

The server is `benchmarks.range_server`, in a process of its own on this machine. Contenders take turns in each repeat; numbers
are medians of the repeats.

    one by one     one request after the other, nothing ahead: what a loop over `dataset[i]` does
    stream, N      a `Stream` with one worker, N requests in flight
    bare client    N connections that request ranges of 8 KB and do nothing else: what the server and this machine can do

The best possible rate is requests in flight / delay. Data: contigs of 4 kb and of 5 Mb, in the pages that `build` chooses and
in pages of 4 KB. The first batch of every stream is compared with the local one, bit for bit.

The last table compares with LitData and MosaicML Streaming, by S3 requests to the same server, see `benchmarks.cloud_worker`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
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

from benchmarks.machine import describe
from benchmarks.peers import MAIN, PEERS, STREAMING, install, python_of
from benchmarks.report import Result, Table, verdict, write

ROOT = Path(__file__).parent.parent

SIZE, STRIDE, BATCH = 8192, 7992, 8
DELAY_SECONDS = 0.030
IN_FLIGHT = (16, 64)
ONE_BY_ONE = "one by one"
CLIENT_SECONDS = 3.0
LEAST_OF_POSSIBLE, LEAST_OVER_ONE = 0.8, 20.0
"""The targets: of min(requests in flight / delay, bare client), and over one request after the other."""
LOADERS = {
    "ours": (MAIN, "single windows of the sequence databases"),
    "litdata": (PEERS, "chunks of 64 MB"),
    "streaming": (STREAMING, "MDS shards of 64 MB"),
}
"""{kind: (environment, what is stored)}."""
LOADER_SAMPLES, LOADER_BASES = 64, 4_000_000
SHAPES = {"4 kb": (2000, 4_000), "5 Mb": (2, 5_000_000)}
"""{name: (contigs of each sample, mean length in bases)}."""
SAMPLES = 4


@contextmanager
def serving(folder: Path, delay_seconds: float, bytes_per_second: float = math.inf) -> Iterator[str]:
    """Serve a folder; yield the URL."""
    command = [sys.executable, "-m", "benchmarks.range_server", str(folder), str(delay_seconds), str(bytes_per_second)]
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


def write_data(folder: Path, shape: str, page_size: int | None, samples: int = SAMPLES) -> Path:
    """Write sequence databases, a window database and its index."""
    from sharded_eden import build_sequence_dbs, precompute_window_database
    from sharded_eden.split import write_splits

    contigs, mean = SHAPES[shape]
    choose = random.Random(7)
    folder.mkdir(parents=True)
    for sample in range(samples):
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


def bare_rate(url: str, size_bytes: int, in_flight: int) -> float:
    """Return the ranges per second of a client that does nothing else."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.range_client",
        url,
        str(size_bytes),
        str(in_flight),
        str(CLIENT_SECONDS),
    ]
    return float(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(folder: Path, server: str, path: str, windows: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Return what each contender reached in each repeat."""
    import torch

    from sharded_eden import ShardedEdenDataset
    from sharded_eden.windows.remote_index import add_remote

    url = f"{server}/{path}/seqs"
    add_remote(folder / "w.db", url)
    local = ShardedEdenDataset(None, folder / "seqs", folder / "w.db", SIZE, stride=STRIDE, compact=True)
    _, _, expected = stream_seconds(local, 0, 0)
    local.close()
    largest = max((folder / "seqs").glob("*/*.sqlite"), key=lambda each: each.stat().st_size)
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        for in_flight in (1, *IN_FLIGHT):
            options = {"compact": True, "requests_in_flight": in_flight}
            with ShardedEdenDataset(None, url, folder / "w.db", SIZE, stride=STRIDE, **options) as dataset:
                counts(server)
                if in_flight == 1:
                    row = {"windows_per_second": _one_by_one(dataset)}
                else:
                    first, seconds, batch = stream_seconds(dataset, windows, 1)
                    assert all(torch.equal(batch[key], expected[key]) for key in expected)
                    row = {"windows_per_second": windows / seconds, "first_batch_seconds": first}
            row["most_in_flight"] = counts(server)["in_flight"]
            if in_flight > 1:
                file = f"{url}/{largest.relative_to(folder / 'seqs').as_posix()}"
                row["bare_client"] = bare_rate(file, largest.stat().st_size, in_flight)
            found.setdefault(ONE_BY_ONE if in_flight == 1 else f"{in_flight} in flight", []).append(row)
    return found


def _one_by_one(dataset: Any, few: int = 64) -> float:
    dataset[0]
    began = time.perf_counter()
    for k in random.Random(1).sample(range(len(dataset)), few):
        dataset[k]
    return few / (time.perf_counter() - began)


def per_window(folder: Path, server: str, path: str) -> dict[str, float]:
    """Return requests and bytes per window, and over those of the windows, of a pass without repeats."""
    from sharded_eden import ShardedEdenDataset, Stream

    url = f"{server}/{path}/seqs"
    with ShardedEdenDataset(None, folder / "seqs", folder / "w.db", SIZE, stride=STRIDE) as dataset:
        total = min(len(dataset), 4096)
        own = sum(len(each.bases) for each in dataset.fetch_many(Stream(dataset).windows_at(range(total))))
    counts(server)
    with ShardedEdenDataset(None, url, folder / "w.db", SIZE, stride=STRIDE, compact=True) as dataset:
        stream = Stream(dataset)
        for k in range(0, total, 32):
            stream.__getitems__(list(range(k, min(k + 32, total))))
        served = counts(server)
    return {
        "requests_per_window": served["requests"] / total, "bytes_per_window": served["bytes"] / total,
        "bytes_over_own": served["bytes"] / own,
    }  # fmt: skip


def rates(repeats: int, windows: int, scratch: Path, server: str, delay: float) -> tuple[list[Table], list[Any]]:
    """Measure our loader."""
    speed = Table(
        "Windows per second of one worker",
        f"{repeats} repeats; medians, with the least and the most. `of possible`: the median of the rate over the smaller of "
        "(requests in flight / delay) and the bare client right after it. Micro batches of 8.",
        [
            "contigs, pages",
            "",
            "windows/s",
            "bare client, ranges/s",
            "in flight / delay",
            "of possible",
            "over one by one",
        ],
    )
    cost = Table(
        "What a window costs",
        "",
        ["contigs, pages", "requests per window", "bytes per window", "bytes over the window's own"],
    )
    rows: list[Any] = []
    for shape in SHAPES:
        for page_size in (None, 4096):
            path = f"{shape.replace(' ', '')}-{page_size or 'built'}"
            called = f"{shape}, {f'{page_size:,} bytes' if page_size else 'as built'}"
            folder = write_data(scratch / path, shape, page_size)
            found = measure(folder, server, path, windows, repeats)
            one = statistics.median(each["windows_per_second"] for each in found[ONE_BY_ONE])
            for name, each in found.items():
                each_rate = [row["windows_per_second"] for row in each]
                cells = [called, name, _spread(each_rate)]
                if name == ONE_BY_ONE:
                    speed.rows.append([*cells, "", f"{1 / delay:,.0f}", "", ""])
                else:
                    best = int(name.split()[0]) / delay
                    of_possible = [row["windows_per_second"] / min(best, row["bare_client"]) for row in each]
                    speed.rows.append([
                        *cells, _spread([row["bare_client"] for row in each]), f"{best:,.0f}",
                        verdict(statistics.median(of_possible), LEAST_OF_POSSIBLE),
                        verdict(statistics.median(each_rate) / one, LEAST_OVER_ONE),
                    ])  # fmt: skip
                print(speed.rows[-1], flush=True)
                rows.append({"data": called, "contender": name, "repeats": each})
            costs = per_window(folder, server, path)
            limit = 1.3 if page_size else 1.1
            cost.rows.append([
                called, verdict(costs["requests_per_window"], limit, at_most=True), f"{costs['bytes_per_window']:,.0f}",
                verdict(costs["bytes_over_own"], 1.5, at_most=True),
            ])  # fmt: skip
            print(cost.rows[-1], flush=True)
            rows.append({"data": called, "per_window": costs})
    return [speed, cost], rows


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def write_loaders(folder: Path, server: str) -> None:
    """Write the data of the comparison, as each loader stores them, into FOLDER/bucket."""
    import numpy as np

    from sharded_eden import (
        ShardedEdenDataset,
        build_sequence_dbs,
        extract_sample_id,
        precompute_window_database,
    )
    from sharded_eden.split import write_splits
    from sharded_eden.windows.index import index_window_database

    bucket, choose = folder / "bucket", random.Random(7)
    (folder / "in").mkdir()
    for sample in range(LOADER_SAMPLES):
        letters = choose.randbytes(LOADER_BASES).translate(LETTERS).decode()
        (folder / f"in/S{sample}.fa").write_text(f">c\n{letters}\n")
    build_sequence_dbs([folder / "in"], bucket / "seqs")
    write_splits(bucket / "seqs", folder / "splits", by="contig", val=0, test=0)
    precompute_window_database(folder / "splits/train_split.parquet", bucket / "w.db", SIZE, STRIDE)
    index_window_database(bucket / "seqs", bucket / "w.db")
    with ShardedEdenDataset(None, bucket / "seqs", bucket / "w.db", SIZE, stride=STRIDE) as dataset:
        total = len(dataset)
        windows = np.lib.format.open_memmap(folder / "windows.npy", "w+", np.uint8, (total, SIZE - 3))
        samples = np.zeros(total, dtype=np.int64)
        for k in range(0, total, 256):
            for number, each in enumerate(dataset.fetch_many([(0, w) for w in range(k, min(k + 256, total))]), start=k):
                windows[number, : len(each.bases)] = each.bases
                samples[number] = int(extract_sample_id(each.sequence_id)[1:])
        windows.flush()
        np.save(folder / "samples.npy", samples)
    for kind in LOADERS:
        print(kind, _worker("write", kind, folder, server), flush=True)


def compare(repeats: int, folder: Path, server: str) -> tuple[Table, list[Any]]:
    """Measure the loaders."""
    table = Table(
        "Loaders that stream from S3",
        f"{LOADER_SAMPLES} samples of {LOADER_BASES / 1e6:.0f} Mb, one shuffled pass, one worker, batches of 32 rows of bytes; "
        f"{repeats} repeats in turn; medians, with the least and the most. Caches are empty at first. Time to the first batch "
        "includes opening, for ours the copy of the window database and its index; imports are not included.",
        ["loader", "stored as", "windows/s", "requests per window", "bytes per window", "first batch, s",
         "samples in the first batch", "samples in the first 1,024 windows"],
    )  # fmt: skip
    found: dict[str, list[Any]] = {}
    failed: dict[str, str] = {}
    for _ in range(repeats):
        for kind in LOADERS:
            if kind not in failed:
                counts(server)
                answer = _worker("read", kind, folder, server)
                if isinstance(answer, str):
                    failed[kind] = answer
                    continue
                served = counts(server)
                answer |= {f"{name}_per_window": served[name] / answer["windows"] for name in ("requests", "bytes")}
                found.setdefault(kind, []).append(answer)
                print(kind, answer, flush=True)
    for kind, (_, stored) in LOADERS.items():
        if kind in failed:
            table.rows.append([kind, stored, f"failed: {failed[kind]}", *[""] * 5])
            continue
        middle = {
            name: statistics.median(each[name] for each in found[kind]) for name in found[kind][0] if name != "version"
        }
        table.rows.append(
            [
                f"{kind} {found[kind][0]['version']}",
                stored,
                _spread([each["windows_per_second"] for each in found[kind]]),
                f"{middle['requests_per_window']:.4f}",
                f"{middle['bytes_per_window']:,.0f}",
                f"{middle['first_batch_seconds']:.1f}",
                f"{middle['samples_in_first_batch']:.0f}",
                f"{middle['samples_in_first_1024']:.0f}",
            ]
        )
    return table, [{"loader": kind, "repeats": found.get(kind), "failed": failed.get(kind)} for kind in LOADERS]


def _worker(do: str, kind: str, folder: Path, server: str) -> Any:
    """Return the answer of a loader, or the end of its errors."""
    environment = {
        **os.environ, "AWS_ENDPOINT_URL": server, "S3_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    command = [python_of(LOADERS[kind][0]), "-W", "ignore", "-m", "benchmarks.cloud_worker", do, kind, str(folder)]
    if not command[0].exists():
        return f"there is no {LOADERS[kind][0]}"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else " ".join(done.stderr.split())[-300:]


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--windows", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--delay", type=float, default=DELAY_SECONDS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--quick", action="store_true", help="one repeat, few windows")
    arguments = parser.parse_args()
    repeats, windows = (1, 800) if arguments.quick else (arguments.repeats, arguments.windows)
    install()
    with tempfile.TemporaryDirectory() as name, serving(Path(name), arguments.delay) as server:
        tables, rows = rates(repeats, windows, Path(name), server, arguments.delay)
    with tempfile.TemporaryDirectory() as name, serving(Path(name), arguments.delay) as server:
        write_loaders(Path(name), server)
        loaders, peers = compare(repeats, Path(name), server)
    title = f"Object storage: a server that answers each request after {arguments.delay * 1000:.0f} ms"
    result = Result("cloud", title, [*tables, loaders], {"ours": rows, "loaders": peers})
    print(write(result, describe(), arguments.quick, arguments.out))


if __name__ == "__main__":
    main()
