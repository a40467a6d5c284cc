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
from benchmarks.report import Result, Table, write
from sharded_eden.build.build import create_sample_database
from sharded_eden.cli.level import peak_mb
from sharded_eden.format.schema import make_sequence_id
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.pack import pack_window_database
from sharded_eden.windows.precompute import precompute_window_database

if TYPE_CHECKING:  # torch has no place in the memory of the steps that prepare
    from sharded_eden.load.dataset import ShardedEdenDataset

RESULTS = Path(__file__).parent / "results"
SAMPLES = 1000
WINDOWS_OF_SHORT_CONTIG = 1.066
"""Windows of a contig of the metagenome, on average."""
DENSE_STRIDE, DENSE_WINDOWS, DENSE_SAMPLES = 40, 300, 20
"""How a few bases make many windows: stride, windows of a contig; samples, the same number whatever the windows."""
ITEMS, ROUNDS = 1000, 21
PREPARED = {"sorted": "`precompute`, sorted split", "unsorted": "`precompute`, unsorted split", "pack": "`pack`"}
WHAT = {"open_seconds": "time", "private_mb": "growth of the private memory"}
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
    parser.add_argument(
        "--steps", default="sorted,unsorted,pack,dense", help="default: %(default)s, which writes a result"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.child:
        step, *paths = options.child
        start, cpu = time.perf_counter(), time.process_time()
        told = CHILDREN[step](*map(Path, paths))
        told |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps(told | {"peak_mb": peak_mb()}))
        return
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    steps = options.steps.split(",")
    try:
        prepared = [_prepare(step, options.windows, folder) for step in PREPARED if step in steps]
        opened = _open_and_read(options.windows, folder) if "dense" in steps else {}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if set(steps) == {*PREPARED, "dense"}:
        result = result_of(prepared, opened)
        print(write(result, machine.describe(), options.windows < 100_000_000, options.out))


def _prepare(step: str, windows: int, folder: Path) -> dict[str, Any]:
    """Write a split, measure what is made of it, and remove both."""
    split, output = folder / f"{step}.parquet", folder / f"{step}.db"
    metagenome(split, windows // 2 if step == "pack" else windows, is_sorted=step != "unsorted")
    if step == "pack":
        precompute_window_database(split, output, WINDOW_SIZE, STRIDE)
        told = measure("pack", output)
    else:
        told = measure("precompute", split, output)
    split.unlink()
    output.unlink()
    return {"step": PREPARED[step]} | told


def _open_and_read(windows: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Measure opening, cold and warm, and random items."""
    small, large = folder / "small", folder / "large"
    for world, many in ((small, windows // 100), (large, windows)):
        dense(world, many)
        warm(world)
    steps = ["open-cold", "open"] if os.geteuid() == 0 else ["open"]
    if len(steps) == 1:
        print("not run as root: the page cache cannot be dropped, opening is measured warm only")
    told = {step: [measure(step, large) for _ in range(3)] for step in steps}
    for world in (small, large):
        warm(world)
    return told | {"read": [measure("read", small, large)]}


def result_of(prepared: list[dict[str, Any]], opened: dict[str, list[dict[str, Any]]]) -> Result:
    """Return the figures as tables."""
    columns = ["step", "windows", "seconds", "processor seconds", "memory (resident set)", "on disk"]
    preparing = Table("Preparing", "Contigs with a median length of 2.2 kb (mean 4 kb), in 1,000 samples.", columns)
    for one in prepared:
        into = f" into {one['packs']:,} packs" if "packs" in one else ""
        seconds = [f"{one[name]:,.0f}" for name in ("seconds", "cpu_seconds")]
        disk = f"{one['bytes'] / 1e9:.2f} GB"
        preparing.rows.append([one["step"], f"{one['windows']:,}{into}", *seconds, f"{one['peak_mb']:,.0f} MB", disk])
    opening = Table("Opening, with an index and control tags", "Medians of 3.", ["", "measured", "at most"])
    for step, title in (("open-cold", "nothing in the page cache"), ("open", "all files in the page cache")):
        if each := opened.get(step):
            for key, unit, most in (("open_seconds", "s", MOST_SECONDS), ("private_mb", "MB", MOST_PRIVATE_MB)):
                value = statistics.median(one[key] for one in each)
                row = [f"{title}: {WHAT[key]}", f"{value:.3f} {unit}", f"{most:g} {unit}"]
                opening.rows.append(row)
    read = opened["read"][0]
    note = "Medians of 20 rounds of 1,000 items, interleaved; all files in the page cache."
    items = Table("Random whole items", note, ["", "a hundredth", "all windows", "ratio", "at most"])
    for kind, title, most in (
        ("other", "other items in each round", f"{MOST_RATIO:g}"),
        ("same", "the same items", ""),
    ):
        microseconds = [f"{read[f'{kind}_{size}_us']:.1f} µs" for size in ("small", "large")]
        items.rows.append([title, *microseconds, f"{read[f'{kind}_ratio']:.2f}", most])
    title = f"{opened['open'][0]['windows']:,} windows"
    return Result("scale", title, [preparing, opening, items], {"prepared": prepared, **opened})


if __name__ == "__main__":
    main()
