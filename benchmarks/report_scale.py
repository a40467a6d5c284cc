"""`report` over 10 million windows and 100 million log rows: seconds, peak memory, size of the file.

    python -m benchmarks.report_scale [--windows 10000000] [--passes 10] [--ranks 8] [--folder DIR]

The windows are of 64 bases at a stride of 50, so that the bases fit on a small disk: `report` costs the same for each
window of any size, and for each base. Each pass is a random order, dealt to the ranks by turns; logs are Parquet.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks import machine
from benchmarks.report import Result, Table, write
from sharded_eden import create_sample_database, precompute_window_database, write_splits

LETTERS = np.frombuffer(b"ACGT", dtype=np.uint8)
WINDOW, STRIDE = 64, 50
CONTIG_BASES = 50_000
SAMPLES = 10
MOST_SECONDS, MOST_MEMORY_MB, MOST_FILE_MB = 180, 2000, 10
"""The limits for 10 million windows and 100 million log rows."""
RESULTS = Path(__file__).parent / "results"


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


def measure(folder: Path) -> dict[str, float]:
    """Run `report` in a process of its own; return seconds, memory and size of the file."""
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
    return {
        "seconds": seconds,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "memory_mb": used.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10),
        "file_mb": (folder / "report.html").stat().st_size / 1e6,
    }


def result_of(windows: int, rows: int, found: dict[str, float]) -> Result:
    """Return the figures as a table."""
    table = Table(f"{windows:,} windows, {rows:,} log rows", "", ["", "measured", "at most"])
    table.rows = [
        ["seconds", f"{found['seconds']:.0f}", f"{MOST_SECONDS}"],
        ["seconds of processor time", f"{found['processor_seconds']:.0f}", ""],
        ["memory (resident set), MB", f"{found['memory_mb']:,.0f}", f"{MOST_MEMORY_MB:,}"],
        ["size of the file, MB", f"{found['file_mb']:.1f}", f"{MOST_FILE_MB}"],
    ]
    data = {"windows": windows, "rows": rows, **found}
    return Result("report_scale", "`report` on windows and access logs", [table], data)


def main() -> None:
    """Write data and logs, run `report` in a process of its own, and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=10_000_000)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where the data lie; they are removed at the end")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        # The memory of a process counts from that of the process that starts it, so this one stays small.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            windows = pool.submit(write_data, folder, arguments.windows).result()
            rows = pool.submit(write_logs, folder / "logs", windows, arguments.passes, arguments.ranks).result()
        found = measure(folder)
    print(write(result_of(windows, rows, found), machine.describe(), arguments.windows < 10_000_000, arguments.out))


if __name__ == "__main__":
    main()
