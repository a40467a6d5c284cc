"""`report` over 10 million windows and 100 million log rows: seconds, peak memory, size of the file.

    python -m benchmarks.report_scale [--windows 10000000] [--passes 10] [--ranks 8] [--folder DIR]

The windows are of 64 bases at a stride of 50, so that the bases fit on a small disk: `report` costs the same for each
window of any size, and for each base. Each pass is a random order, dealt to the ranks by turns; logs are Parquet.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from sharded_eden import create_sample_database, precompute_window_database, write_splits

LETTERS = np.frombuffer(b"ACGT", dtype=np.uint8)
WINDOW, STRIDE = 64, 50
CONTIG_BASES = 50_000
SAMPLES = 10


def write_data(folder: Path, windows: int) -> int:
    """Write sequence databases and one window database; return its number of windows."""
    rng = np.random.default_rng(1)
    contigs = max(1, windows * STRIDE // CONTIG_BASES // SAMPLES)
    for number in range(SAMPLES):
        rows = (
            (f"BCR__ECT-S{number}__CT1-{i}", LETTERS[rng.integers(0, 4, CONTIG_BASES)].tobytes().decode())
            for i in range(contigs)
        )
        create_sample_database(f"S{number}", rows, folder / "seqdb")
    write_splits(folder / "seqdb", folder, val=0, test=0)
    precompute_window_database(
        folder / "train_split.parquet", folder / "train_windows.db", window_size=WINDOW, stride=STRIDE
    )
    return SAMPLES * contigs * ((CONTIG_BASES - WINDOW) // STRIDE + 1)


def write_logs(folder: Path, windows: int, passes: int, ranks: int) -> int:
    """Write the access logs of all ranks; return their number of rows."""
    folder.mkdir()
    rng = np.random.default_rng(2)
    rows = 0
    each = (CONTIG_BASES - WINDOW) // STRIDE + 1
    contigs = pl.read_parquet(folder.parent / "train_split.parquet")["contig_id"]  # in the order of the windows
    samples = contigs.str.extract("ECT-(S[0-9]+)__")
    for epoch in range(passes):
        order = rng.permutation(windows)
        for rank in range(ranks):
            window = order[rank::ranks]
            rows += len(window)
            place = epoch * (windows // ranks + 1) + np.arange(len(window))
            pl.DataFrame(
                {
                    "window_idx": window,
                    "sequence_id": contigs.gather(window // each),
                    "sample_id": samples.gather(window // each),
                    "window_in_seq_idx": window % each,
                    "rank": np.full(len(window), rank),
                    "access_ts": 1_700_000_000_000_000_000 + place // 16 * 1_000_000,
                    "worker": np.full(len(window), -1),
                    "epoch": np.full(len(window), epoch),
                }
            ).write_parquet(folder / f"window_access_train_rank{rank}_{epoch:08x}.parquet")
    return rows


def main() -> None:
    """Write data and logs, run `report` in a process of its own, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=10_000_000)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        windows = write_data(folder, arguments.windows)
        rows = write_logs(folder / "logs", windows, arguments.passes, arguments.ranks)
        command = [
            sys.executable,
            "-m",
            "sharded_eden",
            "report",
            "report.html",
            "seqdb",
            "train_windows.db",
            "--logs",
            "logs",
        ]
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True)
        seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        memory = used.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
        size = (folder / "report.html").stat().st_size / 1e6
        print(
            f"{windows:,} windows and {rows:,} log rows: {seconds:.0f} s ({used.ru_utime + used.ru_stime:.0f} s "
            f"of processor time), "
            f"{memory:,.0f} MB, a file of {size:.1f} MB, {os.cpu_count()} processors"
        )


if __name__ == "__main__":
    main()
