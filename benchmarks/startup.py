"""Opening a window database with control tags: seconds and growth of memory, each time in a new process.

Measured from the call of the constructor to a dataset that knows its length and its control tags; packages are imported
before that, and the files are in the page cache. Memory is the growth of the resident set, mapped pages included.

`python -m benchmarks.startup ours|naive FOLDER` is what those processes run.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.contenders import byte_ids
from benchmarks.data import ROOT, STRIDE, WINDOW_SIZE
from benchmarks.report import Result, Table, ratio, small
from sharded_eden.build.build import create_sample_database
from sharded_eden.format.schema import make_sequence_id
from sharded_eden.load.dataset import ShardedEdenDataset
from sharded_eden.windows.precompute import precompute_window_database

SAMPLES, TAGS, WINDOWS_OF_CONTIG = 20, 50, 4
TARGET_SECONDS, TARGET_MB = 0.3, 20
REPEATS = 5


def build(windows: int) -> Path:
    """Return the folder of a world with this many windows, building it if it is missing."""
    folder = ROOT / f"startup-{windows}"
    done = folder / "done"
    if done.exists():
        return folder
    contigs = windows // WINDOWS_OF_CONTIG
    samples = [f"S{k:02d}" for k in range(SAMPLES)]
    ids = [make_sequence_id(f"TAG{k % TAGS:02d}", samples[k // TAGS % SAMPLES], k) for k in range(contigs)]
    split = folder / "split.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    length = WINDOW_SIZE + (WINDOWS_OF_CONTIG - 1) * STRIDE
    pl.DataFrame({"contig_id": ids, "length": np.full(contigs, length)}).sort("contig_id").write_parquet(split)
    for sample in samples:
        if not (folder / "sequences" / sample).exists():
            first = next(name for name in ids if f"-{sample}__" in name)
            create_sample_database(sample, [(first, "ACGT" * (length // 4))], folder / "sequences")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precompute_window_database(split, folder / "windows.db", WINDOW_SIZE, STRIDE)
    done.touch()
    return folder


def open_ours(folder: Path) -> Any:
    """Open our dataset."""
    return ShardedEdenDataset(
        None, folder / "sequences", folder / "windows.db", WINDOW_SIZE, stride=STRIDE, use_control_tags=True
    )


def open_naive(folder: Path) -> Any:
    """Open like a naive implementation of the specification: count the windows, keep a dict of control tags by sequence ID."""
    samples = {p.parent.name: sqlite3.connect(p) for p in (folder / "sequences").glob("*/*.sqlite")}
    windows = sqlite3.connect(folder / "windows.db")
    (length,) = windows.execute("SELECT COUNT(*) FROM window_mappings").fetchone()
    (distinct,) = windows.execute("SELECT COUNT(DISTINCT sequence_id) FROM window_mappings").fetchone()
    tags = {
        sequence_id: byte_ids(f"<ctrl_{sequence_id.split('__')[0].lower()}>")
        for (sequence_id,) in windows.execute("SELECT DISTINCT sequence_id FROM window_mappings")
    }
    return samples, windows, length, distinct, tags


OPENERS = {"ours": open_ours, "naive": open_naive}


def resident_mb() -> dict[str, float]:
    """Return the resident set, and the part of it that is private to this process (not pages of files)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    in_mb = {key: int(status[key].split()[0]) * 1024 / 1e6 for key in ("VmRSS", "RssAnon")}
    return {"mb": in_mb["VmRSS"], "own_mb": in_mb["RssAnon"]}


def _measure(name: str, folder: Path) -> dict[str, float]:
    before, start = resident_mb(), time.perf_counter()
    opened = OPENERS[name](folder)
    seconds = time.perf_counter() - start
    grown = {key: value - before[key] for key, value in resident_mb().items()}
    del opened
    return {"seconds": seconds, **grown}


def run(quick: bool, say: Callable[[str], None]) -> Result:
    """Measure both, interleaved."""
    windows = 200_000 if quick else 10_000_000
    say(f"data: {windows:,} windows with control tags")
    folder = build(windows)
    with (folder / "windows.db").open("rb") as file:
        while file.read(1 << 24):
            pass
    found: dict[str, list[dict[str, float]]] = {name: [] for name in OPENERS}
    for repeat in range(REPEATS):
        for name in OPENERS:
            say(f"opening, repeat {repeat + 1} of {REPEATS}: {name}")
            command = [sys.executable, "-m", "benchmarks.startup", name, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    median = {
        name: {key: statistics.median(each[key] for each in runs) for key in ("seconds", "mb", "own_mb")}
        for name, runs in found.items()
    }
    table = Table(
        f"Opening a database of {windows:,} windows with control tags",
        f"Median of {REPEATS} fresh processes, page cache warm. {windows // WINDOWS_OF_CONTIG:,} contigs, {TAGS} tags, "
        f"{SAMPLES} samples.",
        ["", "naive: DISTINCT and a dict", "ours", "naive over ours"],
    )
    for key, title, unit, target in (
        ("seconds", "time", "s", TARGET_SECONDS),
        ("mb", "growth of the resident set", "MB", TARGET_MB),
        ("own_mb", "of it not pages of files", "MB", TARGET_MB),
    ):
        naive, ours = median["naive"][key], median["ours"][key]
        digits = 3 if unit == "s" else 1
        reached = "**" if ours < target else ""
        table.rows.append(
            [
                title,
                f"{naive:,.{digits}f} {unit}",
                f"{reached}{ours:,.{digits}f} {unit}{reached} {small(f'under {target:g} {unit}')}",
                ratio(naive / max(ours, 1e-6)),
            ]
        )
    return Result("startup", "Start-up", [table], {"windows": windows, "runs": found})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]))))
