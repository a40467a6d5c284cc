"""Mixtures: position -> example of 50 sources against one source with the same files, and what opening 50 sources costs.

    python -m benchmarks.mixture [--quick]

The one source has the windows of all 50 sample databases; each of the 50 has those of one. Batches of 32 windows of 8,192
tokens, interleaved; medians of the batches. The goal is at most 1.1 times the time of one source. Opening is measured in a new
process, for window databases of a million windows each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import polars as pl

from benchmarks.data import ROOT, SEED, STRIDE, WINDOW_SIZE
from sharded_eden import Mixture, ShardedEdenDataset, Stream
from sharded_eden.build.build import create_sample_database
from sharded_eden.format.schema import make_sequence_id
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.precompute import precompute_window_database

SOURCES = 50
BATCH = 32


def build(folder: Path, contigs: int, bases: int, claimed_bases: int | None = None) -> None:
    """Write 50 samples: one window database for each, and one for all of them.

    Args:
        folder: written once.
        contigs: of each sample.
        bases: of each contig.
        claimed_bases: the length that split files state, for many windows of few bases, which are opened but not read.
    """
    if (folder / "done").exists():
        return
    choose = random.Random(SEED)
    rows = []
    for k in range(SOURCES):
        names = [make_sequence_id("BCR", f"S{k}", c + 1) for c in range(contigs)]
        create_sample_database(
            f"S{k}", [(name, "".join(choose.choices("ACGT", k=bases))) for name in names], folder / f"seqs{k}"
        )
        create_sample_database(
            f"S{k}", [(name, "".join(choose.choices("ACGT", k=bases))) for name in names], folder / "seqs"
        )
        frame = pl.DataFrame({"contig_id": names, "length": [claimed_bases or bases] * contigs})
        rows.append(frame)
        frame.write_parquet(folder / f"{k}.parquet")
        precompute_window_database(folder / f"{k}.parquet", folder / f"{k}.db", window_size=WINDOW_SIZE, stride=STRIDE)
        if claimed_bases is None:
            index_window_database(folder / f"seqs{k}", folder / f"{k}.db")
    if claimed_bases is None:
        pl.concat(rows).write_parquet(folder / "all.parquet")
        precompute_window_database(folder / "all.parquet", folder / "all.db", window_size=WINDOW_SIZE, stride=STRIDE)
        index_window_database(folder / "seqs", folder / "all.db")
    (folder / "done").touch()


def opened(folder: Path, name: str, sequences: str) -> ShardedEdenDataset:
    """Open one source."""
    return ShardedEdenDataset(None, folder / sequences, folder / f"{name}.db", WINDOW_SIZE, stride=STRIDE, rc_aug=True)


def mixture_of(folder: Path) -> Mixture:
    """Open the 50 sources, with weights from 1 to 50."""
    return Mixture([(opened(folder, str(k), f"seqs{k}"), k + 1) for k in range(SOURCES)])


def ratio(folder: Path, batches: int) -> tuple[float, float]:
    """Return the median seconds of a batch of one source, and of 50."""
    streams = [Stream(opened(folder, "all", "seqs")), mixture_of(folder)]
    times: list[list[float]] = [[], []]
    for first in range(0, batches * BATCH, BATCH):
        for stream, spent in zip(streams, times, strict=True):
            begun = time.perf_counter()
            stream.collate_fn(stream.__getitems__(range(first, first + BATCH)))
            spent.append(time.perf_counter() - begun)
    warm = batches // 4
    return statistics.median(times[0][warm:]), statistics.median(times[1][warm:])


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_once(folder: Path) -> None:
    """Open 50 sources; print seconds and the memory that they took."""
    before = _resident_bytes()
    begun = time.perf_counter()
    mixture = mixture_of(folder)
    seconds = time.perf_counter() - begun
    megabytes = (_resident_bytes() - before) / 1e6
    print(json.dumps({"windows": len(mixture), "seconds": seconds, "megabytes": megabytes}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer batches, and window databases of 20,000 windows")
    parser.add_argument("--open", type=Path, help="used by this file itself")
    options = parser.parse_args()
    if options.open:
        open_once(options.open)
        return
    data = ROOT / "mixture"
    build(data, contigs=20, bases=100_000)
    one, many = ratio(data, 200 if options.quick else 1500)
    print(
        f"batch of {BATCH}: one source {one * 1e3:.2f} ms, {SOURCES} sources {many * 1e3:.2f} ms: {many / one:.2f} times"
    )
    windows = 20_000 if options.quick else 1_000_000
    large = ROOT / f"mixture-open-{windows}"
    build(large, contigs=10, bases=1000, claimed_bases=windows // 10 * STRIDE)
    for _ in range(3):
        run = [sys.executable, "-m", "benchmarks.mixture", "--open", str(large)]
        print(subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip())


if __name__ == "__main__":
    main()
