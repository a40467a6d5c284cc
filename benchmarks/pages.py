"""`python -m benchmarks.pages --folder FOLDER`: what the page size of sequence databases costs, cold and warm. Needs root.

The same contigs in databases of several page sizes, read by their index in batches of 32. The requests of the device are
counted, so `--folder` must lie on a device that nothing else reads: for example an ext4 file system on a loop device with
`losetup --direct-io=on`. Times are medians of interleaved repeats. Writes `benchmarks/results/pages.md`.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.cold_data import ColdShape, ColdWorld, build, create_in_pages
from benchmarks.cold_state import device_of, read_ahead
from benchmarks.cold_worker import Windows, counters, ours, own_bytes
from benchmarks.data import SEED
from benchmarks.report import Result, Table, write
from sharded_eden.format.schema import make_sequence_id

PAGE_BYTES = (4096, 8192, 16_384, 32_768, 65_536)
STORES = tuple(map(str, PAGE_BYTES))
SHAPES = (
    ColdShape("short", "contigs of the metagenome, mean 4 kb", 8, log_normal=True, stores=STORES, windows=1 << 12),
    ColdShape("middle", "contigs of 6 to 15 kb", 8, 6_000, 15_000, stores=STORES, windows=1 << 12),
    ColdShape("genomes", "contigs of 20 to 200 kb", 8, 20_000, 200_000, stores=STORES, windows=1 << 12),
    ColdShape("5mb", "contigs of 5 Mb", 8, 5_000_000, 5_000_000, stores=STORES, windows=1 << 12),
)
CONTENDERS = ("index", "index, ahead")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
BUILT_BASES = 32_000_000
"""Bases of the sample that is written to measure the time."""


def built(shape: ColdShape, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Return the seconds that writing one sample takes, for each store, by turns."""
    rng = np.random.default_rng(SEED)
    lengths = shape.lengths(rng, BUILT_BASES)
    letters = np.frombuffer(b"ACGT", np.uint8)
    contigs = [
        (make_sequence_id("BCR", "S", k), letters[rng.integers(0, 4, n)].tobytes().decode())
        for k, n in enumerate(lengths.tolist())
    ]
    seconds: dict[str, list[float]] = {store: [] for store in STORES}
    for _ in range(repeats):
        for store, page_bytes in zip(STORES, PAGE_BYTES, strict=True):
            start = time.perf_counter()
            create_in_pages(page_bytes, "S", iter(contigs), folder)
            seconds[store].append(time.perf_counter() - start)
            shutil.rmtree(folder)
    return seconds


def read(
    world: ColdWorld, store: str, windows: Windows, counters_of: Path, *, ahead: bool
) -> dict[str, dict[str, float]]:
    """Return what reading windows costs with an empty page cache, then with a filled one."""
    found = {}
    for state in ("cold", "warm"):
        gc.collect()
        if state == "cold":
            DROP_CACHES.write_text("3")
        before, own, start = counters(str(counters_of)), own_bytes(), time.perf_counter()
        batch_of = ours(world.folder, store, windows, index=True, ahead=ahead)
        for batch in windows.batches:
            batch_of(batch)
        seconds = time.perf_counter() - start
        found[state] = {
            "rate": len(windows.chosen) / seconds,
            "requests": counters(str(counters_of))[0] - before[0],
            "kilobytes": (own_bytes() - own) / 1024,
            "window_bytes": windows.mean_bytes,
        }
        del batch_of
    return found


def of_shape(device: Path, world: ColdWorld, repeats: int) -> dict[str, dict[str, Any]]:
    """Return what was measured of each store."""
    found: dict[str, dict[str, Any]] = {store: defaultdict(list) for store in STORES}
    subprocess.run(["sync", "-f", world.folder], check=True)  # only clean pages are dropped
    for repeat in range(repeats):
        windows = Windows(world.folder, repeat * world.windows(), world.windows())
        for ahead in (False, True):
            for store in STORES:
                for state, each in read(world, store, windows, device / "stat", ahead=ahead).items():
                    found[store][f"{state} {CONTENDERS[ahead]}"].append(each)
    seconds = built(world.shape, world.folder / "built", repeats)
    bases = (world.folder / "bases.u8").stat().st_size
    for store in STORES:
        found[store]["build_seconds"] = seconds[store]
        size = sum(path.stat().st_size for path in world.sequences(store).glob("*/*.sqlite"))
        found[store]["bytes_a_base"] = size / bases
    return found


def _median(answers: list[dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> float:
    return statistics.median(map(of, answers))


def _ratio(answers: list[dict[str, Any]], base: list[dict[str, Any]]) -> float:
    return statistics.median(a["rate"] / b["rate"] for a, b in zip(answers, base, strict=True))


def table(world: ColdWorld, found: dict[str, dict[str, Any]]) -> Table:
    """Return the table of one shape."""
    windows, base = world.windows(), found[STORES[0]]
    rows = []
    for store, page_bytes in zip(STORES, PAGE_BYTES, strict=True):
        each = found[store]
        cold = each["cold index"]
        rows.append([
            f"{page_bytes:,}",
            f"{_median(cold, lambda a: a['requests'] / windows):.2f}",
            f"{_median(cold, lambda a: a['kilobytes'] / windows):.1f} ({cold[0]['window_bytes'] / 1024:.1f})",
            *(
                f"{_median(each[kind], lambda a: a['rate']):,.0f} ({_ratio(each[kind], base[kind]):.2f})"
                for kind in ("cold index", "cold index, ahead", "warm index, ahead")
            ),
            f"{statistics.median(a / b for a, b in zip(each['build_seconds'], base['build_seconds'], strict=True)):.2f}",
            f"{each['bytes_a_base']:.3f}",
        ])  # fmt: skip
    columns = ("page, bytes", "requests a window", "KB a window (its own)", "cold, windows/s", "cold with read-ahead",
               "warm", "time to build, of 4,096", "bytes on disk a base")  # fmt: skip
    return Table(world.shape.title, f"{windows:,} windows; in parentheses: of the rate at 4,096.", columns, rows)


def main() -> None:
    """Measure all shapes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gb", type=float, default=0.4, help="bases of a shape, in GB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if os.geteuid():
        parser.error("only root drops the page cache")
    device = device_of(options.folder)
    if device is None:
        parser.error(f"{options.folder} lies on no block device")
    torch.set_num_threads(1)
    measured, tables = {}, []
    with read_ahead(device, 128):
        for shape in SHAPES:
            world = build(shape, options.folder, options.gb, print)
            measured[shape.name] = of_shape(device, world, options.repeats)
            tables.append(table(world, measured[shape.name]))
            print("\n" + tables[-1].markdown(), flush=True)
            shutil.rmtree(world.folder)
    title = f"Page sizes ({options.gb:g} GB of bases in 8 samples a shape)"
    write(Result("pages", title, tables, measured), machine.describe(), False, options.results)


if __name__ == "__main__":
    main()
