"""From gzipped FASTA to sequence databases: bases/s of `build` compared with (decompress + `executemany` of ready tuples).

The limit does only the necessary work: it decompresses the file with the same library, and inserts tuples that are already in
memory with the same SQLite settings and 4,096-byte pages. `build` also divides the file into records, checks every
residue and every name, hashes input and rows, keeps the contig table and the manifest, syncs and publishes. Interleaved, one
process; then two jobs against one, on eight files.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from xopen import xopen

from benchmarks.data import ROOT, SEED
from benchmarks.report import Result, Table, rate, ratio
from sharded_eden import build_sequence_dbs
from sharded_eden.build.records import read_records
from sharded_eden.format.publish import create_database
from sharded_eden.format.schema import CREATE_SEQUENCES, make_sequence_id

REPEATS = 5
LINE = 60
FILES = 8
PAGE_SIZES = (4096, 8192, 16_384, 65_536)
_LETTERS = np.frombuffer(b"ACGT", dtype=np.uint8)

Timed = Callable[[], object]


def _write(path: Path, lengths: list[int], rng: np.random.Generator) -> None:
    with xopen(path, "wb", compresslevel=6, threads=0, format="gz") as file:
        for ordinal, length in enumerate(lengths, start=1):
            bases = _LETTERS[rng.integers(0, 4, length)]
            lines = np.full((-(-length // LINE), LINE + 1), ord("\n"), np.uint8)
            whole = length // LINE
            lines[:whole, :LINE] = bases[: whole * LINE].reshape(whole, LINE)
            text = lines[:whole].tobytes() + bases[whole * LINE :].tobytes()
            file.write(b">contig_%d length=%d\n" % (ordinal, length) + text.rstrip() + b"\n")


def _files(quick: bool) -> dict[str, list[Path]]:
    """Return files of each shape under eight names, made once."""
    folder = ROOT / f"prepare{'-quick' if quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    contigs = 5_000 if quick else 50_000
    short = [int(n) for n in np.maximum(rng.lognormal(np.log(2200), 1.093, contigs), 200)]
    long = [5_000_000] * (4 if quick else 40)
    files = {}
    for title, lengths in ((f"{contigs:,} short contigs", short), (f"{len(long)} contigs of 5 Mb", long)):
        paths = [folder / f"{title.replace(' ', '-').replace(',', '')}-{k}.fa.gz" for k in range(FILES)]
        if not paths[-1].exists():
            _write(paths[0].with_suffix(".part"), lengths, rng)
            paths[0].with_suffix(".part").rename(paths[0])
            for path in paths[1:]:
                path.unlink(missing_ok=True)
                path.hardlink_to(paths[0])
        files[title] = paths
    return files


def _insert(database: Path, rows: list[tuple[str, str]], page_size: int = 4096) -> None:
    database.unlink(missing_ok=True)
    with closing(create_database(database, page_size=page_size)) as connection:
        connection.execute(f"BEGIN; {CREATE_SEQUENCES}")
        connection.executemany("INSERT INTO sequences VALUES (?, ?)", rows)
        connection.execute("COMMIT")


def _insert_plain(database: Path, rows: list[tuple[str, str]]) -> None:
    database.unlink(missing_ok=True)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(CREATE_SEQUENCES)
        connection.executemany("INSERT INTO sequences VALUES (?, ?)", rows)
        connection.commit()


def _decompress(path: Path) -> None:
    with path.open("rb") as raw, xopen(raw, "rb", threads=0) as file:
        while file.read(1 << 18):
            pass


def _decompress_plain(path: Path) -> None:
    import gzip

    with gzip.open(path) as file:
        while file.read(1 << 18):
            pass


def _seconds(
    contenders: dict[str, Timed], repeats: int, say: Callable[[str], None], clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Time all in turn, repeatedly."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name, run in contenders.items():
            say(f"repeat {repeat + 1} of {repeats}: {name}")
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def _build(inputs: list[Path], jobs: int, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    build_sequence_dbs(inputs, folder, jobs=jobs)


def run(quick: bool, say: Callable[[str], None]) -> Result:
    """Measure all, interleaved."""
    table = Table(
        "Building sequence databases",
        f"Bases a second of processor time, median of {REPEATS} interleaved repeats. The limit: decompress (ISA-L), and "
        "executemany of ready tuples (no journal, no syncs). Plain: the same with gzip and sqlite3 of the standard library as "
        "they come. Two jobs against one: eight such files, seconds on the clock, starting the processes included.",
        ["", "bases", "limit", "plain", "build", "build over limit", "build over plain", "two jobs over one"],
    )
    pages = Table(
        "Page size",
        "Inserting ready tuples, and bytes a base on disk.",
        ["", *(f"{size:,}" for size in PAGE_SIZES)],
    )
    data: dict[str, dict[str, list[float]]] = {}
    for title, (path, *others) in _files(quick).items():
        rows = [(make_sequence_id("BCR", "S", record.ordinal), record.sequence) for record in read_records(path)]
        bases = sum(len(sequence) for _, sequence in rows)
        made = path.with_suffix(".db")
        out = path.with_suffix(".out")
        parts: dict[str, Timed] = {
            "decompress": partial(_decompress, path),
            "insert": partial(_insert, made, rows),
            "plain decompress": partial(_decompress_plain, path),
            "plain insert": partial(_insert_plain, made, rows),
            "build": partial(_build, [path], 1, out),
        }
        jobs: dict[str, Timed] = {
            "all files, one job": partial(_build, [path, *others], 1, out),
            "all files, two jobs": partial(_build, [path, *others], 2, out),
        }
        seconds = data[title] = {
            **_seconds(parts, REPEATS, say, time.process_time),
            **_seconds(jobs, REPEATS, say, time.perf_counter),
        }
        middle = {name: statistics.median(each) for name, each in seconds.items()}
        limit = bases / (middle["decompress"] + middle["insert"])
        plain = bases / (middle["plain decompress"] + middle["plain insert"])
        build = bases / middle["build"]
        faster = middle["all files, one job"] / middle["all files, two jobs"]
        shown = [rate(limit), rate(plain), rate(build), ratio(build / limit), ratio(build / plain), ratio(faster)]
        table.rows.append([title, f"{bases:,}", *shown])
        cells = []
        for size in PAGE_SIZES:
            name = f"insert, pages of {size}"
            data[title] |= _seconds({name: partial(_insert, made, rows, size)}, REPEATS, say, time.process_time)
            fastest = rate(bases / statistics.median(data[title][name]))
            cells.append(f"{fastest} bases/s, {made.stat().st_size / bases:.4f} bytes a base")
        pages.rows.append([title, *cells])
        made.unlink()
        shutil.rmtree(out)
    return Result(
        "prepare", "Prepare", [table, pages], {"seconds": data, "start method": multiprocessing.get_start_method()}
    )
