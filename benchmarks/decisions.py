"""Two decisions of the read path, measured: the page size that `build` writes, and one JOIN against two queries.

    python -m benchmarks.decisions

Page size: the same contigs in databases of different page sizes; microseconds to find and read a window of 8,189 bases
at a random place, mapped and with positioned reads, and bytes on disk for each base. JOIN: one sample, from a window index
to the row of its contig, by a JOIN through the attached window database, or by the two queries that the loader uses. Medians of
interleaved repeats, warm page cache.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sharded_eden.format.publish import create_database
from sharded_eden.format.schema import CREATE_SEQUENCES, sample_database_path
from sharded_eden.format.sqlite import attach_read_only, open_read_only
from sharded_eden.load.read.databases import SequenceReader
from sharded_eden.windows.precompute import precompute_window_database

PAGE_BYTES = (1024, 4096, 8192, 16_384, 32_768, 65_536)
WINDOW_BASES = 8189
REPEATS = 5
READS = 3000


def main() -> None:
    """Print both tables."""
    choose = np.random.default_rng(0)
    shapes = {
        "short (median 2.2 kb)": np.exp(choose.normal(np.log(2200), 1.1, 20_000)).astype(int).clip(200, 200_000),
        "5 Mb": np.full(6, 5_000_000),
        "100 Mb": np.full(1, 100_000_000),
    }
    with tempfile.TemporaryDirectory() as name:
        for shape, lengths in shapes.items():
            page_sizes(shape, lengths, Path(name) / shape.split()[0], choose)
        join(Path(name) / "short", choose)


def write(path: Path, lengths: np.ndarray, page_bytes: int, choose: np.random.Generator) -> None:
    """Write one sequence database of random contigs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    database = create_database(path, page_size=page_bytes)
    database.execute(CREATE_SEQUENCES + "; BEGIN")
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)
    for k, length in enumerate(lengths):
        bases = letters[choose.integers(0, 4, int(length))].tobytes().decode()
        database.execute("INSERT INTO sequences VALUES (?, ?)", (f"BCR__ECT-S__CT1-{k}", bases))
    database.execute("COMMIT")
    database.close()


def page_sizes(shape: str, lengths: np.ndarray, folder: Path, choose: np.random.Generator) -> None:
    """Print microseconds a read and bytes a base for each page size."""
    readers = {}
    for page_bytes in PAGE_BYTES:
        path = sample_database_path(folder / str(page_bytes), "S")
        write(path, lengths, page_bytes, np.random.default_rng(1))
        for io in ("mmap", "read"):
            readers[page_bytes, io] = (SequenceReader({"S": path}, io=io), path.stat().st_size / lengths.sum())  # type: ignore[arg-type]
    contigs = choose.integers(0, len(lengths), READS)
    places = [(f"BCR__ECT-S__CT1-{k}", int(choose.integers(0, max(1, lengths[k] - WINDOW_BASES)))) for k in contigs]

    def read_all(reader: SequenceReader) -> None:
        for contig_id, start in places:
            contig = reader.contig(contig_id)
            contig.read(start, np.empty(min(WINDOW_BASES, contig.length - start), dtype=np.uint8))

    medians = interleaved({key: lambda r=reader: read_all(r) for key, (reader, _) in readers.items()})
    print(f"\n{shape}\n\n| page bytes | mmap, us | read, us | bytes a base |\n|---|---|---|---|")
    for page_bytes in PAGE_BYTES:
        mapped, positioned = (medians[page_bytes, io] / READS * 1e6 for io in ("mmap", "read"))
        print(f"| {page_bytes} | {mapped:.1f} | {positioned:.1f} | {readers[page_bytes, 'mmap'][1]:.3f} |")


def join(folder: Path, choose: np.random.Generator) -> None:
    """Print microseconds for each way from a window index to the row of its contig."""
    import polars as pl

    path = sample_database_path(folder / "4096", "S")
    sequences = open_read_only(path)
    rows = list(sequences.execute("SELECT contig_id, octet_length(nt_sequence) FROM sequences"))
    pl.DataFrame(rows, schema=["contig_id", "length"], orient="row").write_parquet(folder / "split.parquet")
    windows = precompute_window_database(folder / "split.parquet", folder / "windows.db")
    window_db = open_read_only(windows.path, cache_kib=2048)
    attach_read_only(sequences, windows.path, "windows")
    picked = choose.integers(0, windows.windows, READS).tolist()
    one, first, second = sequences.cursor(), window_db.cursor(), sequences.cursor()
    joined = (
        "SELECT s.rowid, w.sequence_id, w.window_in_seq_idx FROM windows.window_mappings AS w "
        "JOIN sequences AS s ON s.contig_id = w.sequence_id WHERE w.window_idx = ?"
    )

    def by_join() -> None:
        for window_idx in picked:
            one.execute(joined, (window_idx,)).get  # noqa: B018

    def by_two_queries() -> None:
        lookup = "SELECT sequence_id, window_in_seq_idx FROM window_mappings WHERE window_idx = ?"
        for window_idx in picked:
            sequence_id, _ = first.execute(lookup, (window_idx,)).get
            second.execute("SELECT rowid FROM sequences WHERE contig_id = ?", (sequence_id,)).get  # noqa: B018

    medians = interleaved({"one JOIN": by_join, "two queries": by_two_queries})
    print("\n| window index to row | us |\n|---|---|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds / READS * 1e6:.2f} |")


def interleaved(contenders: dict[Any, Callable[[], None]]) -> dict[Any, float]:
    """Return the median seconds of each contender, interleaved, after one warm-up."""
    times: dict[Any, list[float]] = {key: [] for key in contenders}
    for repeat in range(REPEATS + 1):
        for key, run in contenders.items():
            begun = time.perf_counter()
            run()
            if repeat:
                times[key].append(time.perf_counter() - begun)
    return {key: statistics.median(values) for key, values in times.items()}


if __name__ == "__main__":
    main()
