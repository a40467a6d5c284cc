"""`python -m benchmarks.scale`: prepares, packs, opens and reads a hundred million windows. Needs about 20 GB at `--folder`.

Each step runs in a separate process and reports its seconds, processor time and largest resident set.

    precompute   contigs of a metagenome (log-normal, median 2.2 kb, mean 4 kb), one or a few windows each
    pack         a database of half as many windows
    open         a dataset with control tags: many windows of 8,192 from few bases (stride 40), 20 samples; cold (as root), warm
    read         random whole items from it, interleaved with a database of a hundredth of its windows, all
                 files in the page cache: other items each time, and the same ones again
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from benchmarks import machine
from benchmarks.data import ROOT, SEED, STRIDE, WINDOW_SIZE
from sharded_eden.build.build import create_sample_database
from sharded_eden.format.schema import make_sequence_id
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.pack import pack_window_database
from sharded_eden.windows.precompute import precompute_window_database

if TYPE_CHECKING:  # torch has no place in the memory of the steps that prepare
    from sharded_eden.load.dataset import ShardedEdenDataset

SAMPLES = 1000
WINDOWS_OF_SHORT_CONTIG = 1.066
"""Windows of a contig of the metagenome, on average."""
DENSE_STRIDE, DENSE_WINDOWS, DENSE_SAMPLES = 40, 300, 20
"""How a few bases make many windows: stride, windows of a contig; samples, the same number whatever the windows."""
ITEMS, ROUNDS = 1000, 21
MOST_SECONDS, MOST_PRIVATE_MB, MOST_RATIO = 0.2, 10.0, 1.1
"""What opening may take, and a random item, as a multiple of one from a hundredth of the windows."""


def metagenome(path: Path, windows: int, *, is_sorted: bool) -> None:
    """Write a split of short contigs with about this many windows, sample by sample."""
    contigs = int(windows / WINDOWS_OF_SHORT_CONTIG / SAMPLES)
    ordinals = pl.Series(sorted(str(k) for k in range(1, contigs + 1)) if is_sorted else range(1, contigs + 1))
    rng = np.random.default_rng(SEED)
    order = np.arange(SAMPLES) if is_sorted else rng.permutation(SAMPLES)

    def frames(*_: object) -> Iterator[pl.DataFrame]:
        for sample in order.tolist():
            lengths = np.maximum(rng.lognormal(np.log(2200), 1.093, contigs), 200).astype(np.int64)
            ids = f"BCR__ECT-S{sample:04d}__CT1-" + ordinals.cast(pl.String)
            yield pl.DataFrame({"contig_id": ids, "length": lengths})

    schema = pl.Schema({"contig_id": pl.String, "length": pl.Int64})
    pl.io.plugins.register_io_source(frames, schema=schema).sink_parquet(path)


def dense(folder: Path, windows: int) -> None:
    """Write sequence databases and a window database of about this many windows into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    length = WINDOW_SIZE + (DENSE_WINDOWS - 1) * DENSE_STRIDE
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)
    contigs = max(1, windows // (DENSE_WINDOWS * DENSE_SAMPLES))
    ids = []
    for k in range(DENSE_SAMPLES):
        sample = f"S{k:04d}"
        names = [make_sequence_id(f"TAG{k % 20:02d}", sample, n) for n in range(contigs)]
        bases = (letters[rng.integers(0, 4, length, dtype=np.uint8)].tobytes().decode() for _ in names)
        create_sample_database(sample, zip(names, bases, strict=True), folder / "sequences")
        ids += names
    split = folder / "split.parquet"
    pl.DataFrame({"contig_id": ids, "length": np.full(len(ids), length)}).sort("contig_id").write_parquet(split)
    precompute_window_database(split, folder / "windows.db", WINDOW_SIZE, DENSE_STRIDE)
    index_window_database(folder / "sequences", folder / "windows.db")


def open_dense(folder: Path) -> ShardedEdenDataset:
    """Open what `dense` wrote."""
    from sharded_eden.load.dataset import ShardedEdenDataset

    return ShardedEdenDataset(
        None, folder / "sequences", folder / "windows.db", WINDOW_SIZE, stride=DENSE_STRIDE, use_control_tags=True
    )


def child_precompute(split: Path, output: Path) -> dict[str, Any]:
    """Precompute a split."""
    result = precompute_window_database(split, output, WINDOW_SIZE, STRIDE)
    return {"windows": result.windows, "bytes": output.stat().st_size, "split_bytes": split.stat().st_size}


def child_pack(database: Path) -> dict[str, Any]:
    """Pack a window database."""
    result = pack_window_database(database)
    return {"windows": result.windows, "packs": result.packs, "bytes": database.stat().st_size}


def child_open(folder: Path) -> dict[str, Any]:
    """Open a dataset after all imports and after a smaller one has been opened and read."""
    from benchmarks.startup import resident_mb

    with open_dense(folder.with_name("small")) as small:
        small.__getitems__(range(32))
    before, start = resident_mb(), time.perf_counter()
    dataset = open_dense(folder)
    seconds = time.perf_counter() - start
    grown = {key: value - before[key] for key, value in resident_mb().items()}
    return {"windows": len(dataset), "open_seconds": seconds, "open_mb": grown["mb"], "private_mb": grown["own_mb"]}


def child_open_cold(folder: Path) -> dict[str, Any]:
    """Open a dataset when nothing of it is in the page cache."""
    from benchmarks.cold_worker import drop_caches

    with open_dense(folder.with_name("small")) as small:
        small.__getitems__(range(32))
    drop_caches()
    return child_open(folder)


def child_read(small: Path, large: Path) -> dict[str, Any]:
    """Read random items from two datasets, interleaved: other items each round, and the same items again."""
    rng = np.random.default_rng(SEED)
    datasets = {folder.name: open_dense(folder) for folder in (small, large)}
    told: dict[str, Any] = {}
    for kind in ("other", "same"):
        seconds: dict[str, list[float]] = {name: [] for name in datasets}
        picked: dict[str, list[int]] = {}
        for _ in range(ROUNDS):
            for name, dataset in datasets.items():
                if kind == "other" or name not in picked:
                    picked[name] = rng.integers(0, len(dataset), ITEMS).tolist()
                start = time.perf_counter()
                for window in picked[name]:
                    dataset[window]
                seconds[name].append(time.perf_counter() - start)
        for name, each in seconds.items():
            told[f"{kind}_{name}_us"] = statistics.median(each[1:]) / ITEMS * 1e6
        pairs = zip(seconds[large.name][1:], seconds[small.name][1:], strict=True)
        told[f"{kind}_ratio"] = statistics.median(a / b for a, b in pairs)
    return told


CHILDREN = {
    "precompute": child_precompute,
    "pack": child_pack,
    "open": child_open,
    "open-cold": child_open_cold,
    "read": child_read,
}


def measure(step: str, *paths: Path) -> dict[str, Any]:
    """Run one step in a separate process and return its figures."""
    command = [sys.executable, "-m", "benchmarks.scale", "--child", step, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    told: dict[str, Any] = json.loads(done.stdout)
    figures = ", ".join(
        f"{name} {value:,.6g}" if isinstance(value, float) else f"{name} {value}" for name, value in told.items()
    )
    print(f"{step} {' '.join(path.name for path in paths)}: {figures}", flush=True)
    return told


def _number(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def warm(folder: Path) -> None:
    """Read all files of a folder once, so that they are in the page cache."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def main() -> None:
    """Run the selected steps."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--windows", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, default=ROOT / "scale", help="removed at the end")
    parser.add_argument("--steps", default="sorted,unsorted,pack,dense", help="default: %(default)s")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.child:
        step, *paths = options.child
        start, cpu = time.perf_counter(), time.process_time()
        told = CHILDREN[step](*map(Path, paths))
        told |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps(told | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}))
        return
    print("; ".join(f"{name} {value}" for name, value in machine.describe().items()), flush=True)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _run(options.steps.split(","), options.windows, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(steps: list[str], windows: int, folder: Path) -> None:
    for step in ("sorted", "unsorted", "pack"):
        if step in steps:
            split, output = folder / f"{step}.parquet", folder / f"{step}.db"
            metagenome(split, windows // 2 if step == "pack" else windows, is_sorted=step != "unsorted")
            if step == "pack":
                precompute_window_database(split, output, WINDOW_SIZE, STRIDE)
                measure("pack", output)
            else:
                measure("precompute", split, output)
            split.unlink()
            output.unlink()
    if "dense" in steps:
        small, large = folder / "small", folder / "large"
        for world, many in ((small, windows // 100), (large, windows)):
            dense(world, many)
            warm(world)
        steps_of_opening = ("open-cold", "open") if os.geteuid() == 0 else ("open",)
        if len(steps_of_opening) == 1:
            print("not run as root: the page cache cannot be dropped, opening is measured warm only")
        told = {step: [measure(step, large) for _ in range(3)] for step in steps_of_opening}
        for step, each in told.items():
            for key, most in (("open_seconds", MOST_SECONDS), ("private_mb", MOST_PRIVATE_MB)):
                _compare(f"{step}: {key}", statistics.median(one[key] for one in each), most)
        for world in (small, large):
            warm(world)
        _compare("read: a random item, large over small", measure("read", small, large)["other_ratio"], MOST_RATIO)


def _compare(what: str, value: float, most: float) -> None:
    print(f"{what} {value:.3g}, at most {most:g}: {'reached' if value <= most else 'MISSED'}", flush=True)


if __name__ == "__main__":
    main()
