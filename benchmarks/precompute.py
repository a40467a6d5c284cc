"""From a split's Parquet file to a window database: windows/s, ours compared with a plain Python loop, on the same file.

Measured from the call to a finished database with its index, ours also with `contig_lengths` and a fingerprint. Both
write to the same folder. Splits are sorted as `split` writes them; the unsorted one is like those of other tools.
"""

from __future__ import annotations

import sqlite3
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.data import ROOT, SEED, STRIDE, WINDOW_SIZE
from benchmarks.report import Result, Table, rate, ratio
from sharded_eden.format.schema import make_sequence_id
from sharded_eden.windows.precompute import precompute_window_database

BATCH_ROWS = 20_000
REPEATS = 3


def naive(split: Path, output: Path) -> None:
    """Implement the specification directly: a loop over contigs and windows, `executemany` in batches."""
    output.unlink(missing_ok=True)
    table = pl.read_parquet(split).sort("contig_id")
    connection = sqlite3.connect(output)
    connection.execute("CREATE TABLE metadata (key TEXT PRIMARY KEY, value INTEGER NOT NULL)")
    connection.execute(
        "CREATE TABLE window_mappings "
        "(window_idx INTEGER PRIMARY KEY, sequence_id TEXT NOT NULL, window_in_seq_idx INTEGER NOT NULL)"
    )
    insert = "INSERT INTO window_mappings VALUES (?, ?, ?)"
    rows: list[tuple[int, str, int]] = []
    total = 0
    for contig_id, length in table.select("contig_id", "length").iter_rows():
        windows = 1 if length < WINDOW_SIZE else 1 + (length - WINDOW_SIZE) // STRIDE
        for k in range(windows):
            rows.append((total, contig_id, k))
            total += 1
            if len(rows) >= BATCH_ROWS:
                connection.executemany(insert, rows)
                rows.clear()
    connection.executemany(insert, rows)
    connection.execute("CREATE INDEX idx_sequence_id ON window_mappings(sequence_id)")
    metadata = {
        "window_size": WINDOW_SIZE,
        "stride": STRIDE,
        "total_windows": total,
        "distinct_sequences": table.height,
    }
    connection.executemany("INSERT INTO metadata VALUES (?, ?)", metadata.items())
    connection.commit()
    connection.close()


def ours(split: Path, output: Path) -> None:
    """Call ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precompute_window_database(split, output, WINDOW_SIZE, STRIDE)


CONTENDERS = {"naive": naive, "ours": ours}


def _splits(quick: bool) -> dict[str, Path]:
    """Return split files: one of a metagenome, one of chromosomes."""
    folder = ROOT / f"precompute{'-quick' if quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    short = 20_000 if quick else 600_000
    drawn = np.maximum(rng.lognormal(np.log(2200), 1.093, short), 200).astype(np.int64)
    long = np.full(4 if quick else 40, 150_000_000)
    splits = {}
    for title, lengths in (("short contigs", drawn), ("short contigs, unsorted", drawn), ("contigs of 150 Mb", long)):
        path = splits[f"{len(lengths):,} {title}"] = folder / f"{title.replace(',', '').replace(' ', '-')}.parquet"
        ids = [make_sequence_id("BCR", f"S{k % 20:02d}", k) for k in range(len(lengths))]
        split = pl.DataFrame({"contig_id": ids, "length": lengths})
        (split if "unsorted" in title else split.sort("contig_id")).write_parquet(path)
    return splits


def _same(one: Path, other: Path) -> bool:
    """Tell whether two databases have the same windows."""
    connection = sqlite3.connect(one)
    connection.execute("ATTACH ? AS other", (str(other),))
    query = (
        "SELECT (SELECT count(*) FROM main.window_mappings) = (SELECT count(*) FROM other.window_mappings) AND NOT EXISTS "
        "(SELECT 1 FROM main.window_mappings JOIN other.window_mappings AS o USING (window_idx) "
        "WHERE o.sequence_id != main.window_mappings.sequence_id OR o.window_in_seq_idx != "
        "main.window_mappings.window_in_seq_idx)"
    )
    (same,) = connection.execute(query).fetchone()
    connection.close()
    return bool(same)


def run(quick: bool, say: Callable[[str], None]) -> Result:
    """Measure both, interleaved."""
    splits = _splits(quick)
    table = Table(
        "Precomputing a window database",
        f"Windows/s, median of {REPEATS} interleaved repeats; naive: a Python loop, `executemany` of {BATCH_ROWS:,} rows.",
        ["", "windows", "naive", "ours", "ours over naive"],
    )
    data: dict[str, dict[str, list[float]]] = {}
    for title, split in splits.items():
        outputs = {name: split.with_suffix(f".{name}.db") for name in CONTENDERS}
        seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for repeat in range(REPEATS):
            for name, make in CONTENDERS.items():
                say(f"precompute, {title}, repeat {repeat + 1} of {REPEATS}: {name}")
                start = time.perf_counter()
                make(split, outputs[name])
                seconds[name].append(time.perf_counter() - start)
        assert _same(*outputs.values()), f"{title}: the two databases differ"
        connection = sqlite3.connect(outputs["ours"])
        (windows,) = connection.execute("SELECT count(*) FROM window_mappings").fetchone()
        connection.close()
        rates = {name: windows / statistics.median(each) for name, each in seconds.items()}
        table.rows.append(
            [title, f"{windows:,}", rate(rates["naive"]), rate(rates["ours"]), ratio(rates["ours"] / rates["naive"])]
        )
        data[title] = seconds
    return Result("precompute", "Precompute", [table], {"seconds": data})
