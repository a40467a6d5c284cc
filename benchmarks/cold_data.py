"""The data of `benchmarks.cold`: random bases in sequence databases, and the same bases in one flat file.

A folder of a shape holds the flat files that `benchmarks.peer_formats.Files` reads, and one folder for each way of writing the
sequence databases:

    bases.u8, contigs.json, window_{starts,lengths,contigs}.npy, order.npy
    snippet/   sequences/, windows.db, windows.db.index   `INSERT` into pages of 4 KB, as the specification's example
               no-index/windows.db                    a link to the window database, with no index beside it
    build/     the same, written by `sharded_eden.build`
    16384/     the same, in pages of so many bytes, for `benchmarks.pages`
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.data import SEED, STRIDE, WINDOW_SIZE
from sharded_eden.build.build import create_sample_database
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.publish import create_database
from sharded_eden.format.schema import CREATE_SEQUENCES, make_sequence_id, sample_database_path
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.precompute import precompute_window_database

SNIPPET, BUILD = "snippet", "build"
MOST_ORDERED = 1 << 20
"""Windows of `order.npy`, at most."""
TAGS = 8
_FOUR_LETTERS = np.frombuffer(
    bytes(b"ACGT"[byte >> shift & 3] for byte in range(256) for shift in (0, 2, 4, 6)), dtype="<u4"
)


@dataclass(frozen=True)
class ColdShape:
    """What the databases of a shape hold.

    Args:
        name: of its folder.
        title: for tables.
        samples: sequence databases.
        shortest, longest: contigs are uniformly long between these, in bases.
        log_normal: contigs are log-normal with a median of 2.2 kb and a mean of 4 kb instead.
        stores: how databases are written.
        descriptors: the limit of open files of the processes that read, `ulimit -n`; None for that of this process.
        windows: read in one measurement, at most a quarter of all.
    """

    name: str
    title: str
    samples: int
    shortest: int = 0
    longest: int = 0
    log_normal: bool = False
    stores: tuple[str, ...] = (SNIPPET,)
    descriptors: int | None = None
    windows: int = 1 << 15

    def lengths(self, rng: np.random.Generator, bases: int) -> NDArray[np.int64]:
        """Return the lengths of the contigs of one sample of about this many bases."""
        if self.log_normal:
            sigma = (2 * np.log(4.0 / 2.2)) ** 0.5
            drawn = rng.lognormal(np.log(2200), sigma, max(1, bases // 4000))
            return np.maximum(drawn, 200).astype(np.int64)
        mean = (self.shortest + self.longest) // 2
        return rng.integers(self.shortest, self.longest + 1, max(1, round(bases / mean)))


SHAPES = {
    shape.name: shape
    for shape in (
        ColdShape("short", "short contigs (mean 4 kb), 40 samples", 40, log_normal=True, stores=(SNIPPET, BUILD),
                  windows=1 << 16),
        ColdShape("middle", "contigs of 6 to 15 kb, 40 samples", 40, 6_000, 15_000, windows=1 << 16),
        ColdShape("5mb", "contigs of 5 Mb, 40 samples", 40, 5_000_000, 5_000_000, stores=(SNIPPET, BUILD)),
        ColdShape("1.5mb", "contigs of 1.5 Mb, 100 samples", 100, 1_500_000, 1_500_000),
        ColdShape("samples", "20,000 samples, `ulimit -n 1024`", 20_000, log_normal=True, descriptors=1024,
                  windows=1 << 17),
    )
}  # fmt: skip


@dataclass(frozen=True)
class ColdWorld:
    """The files of one shape."""

    shape: ColdShape
    folder: Path

    def sequences(self, store: str) -> Path:
        """Return the folder of the sequence databases."""
        return self.folder / store / "sequences"

    def window_db(self, store: str) -> Path:
        """Return the window database."""
        return self.folder / store / "windows.db"

    def windows(self) -> int:
        """Return how many windows one measurement reads."""
        total = len(np.load(self.folder / "window_starts.npy", mmap_mode="r"))
        return min(self.shape.windows, max(1024, total // 4))


def build(shape: ColdShape, root: Path, gigabytes: float, say: Callable[[str], None]) -> ColdWorld:
    """Return the files of a shape, written where they are missing.

    Args:
        shape: what to write.
        root: the folder of all shapes.
        gigabytes: bases of the flat file, in GB.
        say: takes what is being done.
    """
    folder = root / f"{shape.name}-{'-'.join(shape.stores)}-{gigabytes:g}gb"
    world, done = ColdWorld(shape, folder), folder / "done.json"
    recipe = json.dumps({**asdict(shape), "windows": 0, "gigabytes": gigabytes, "seed": SEED, "recipe": 1})
    if done.exists() and done.read_text() == recipe:
        return world
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ids, lengths = _write_sequences(world, int(gigabytes * 1e9), say)
    say(f"{shape.name}: {len(ids):,} contigs; window databases and indexes")
    _write_windows(world, ids, lengths)
    done.write_text(recipe)
    return world


def _write_sequences(
    world: ColdWorld, total_bases: int, say: Callable[[str], None]
) -> tuple[list[str], NDArray[np.int64]]:
    """Write all sequence databases and the flat file; return the IDs and lengths of contigs, in the flat file's order."""
    shape = world.shape
    rng = np.random.default_rng([SEED, len(shape.name), shape.samples])
    ids: list[str] = []
    lengths: list[NDArray[np.int64]] = []
    with (world.folder / "bases.u8").open("wb") as flat:
        for k in range(shape.samples):
            if k % max(1, shape.samples // 10) == 0:
                say(f"{shape.name}: sample {k:,} of {shape.samples:,}")
            name = f"S{k:05d}"
            of_sample = shape.lengths(rng, total_bases // shape.samples)
            names = [make_sequence_id(f"T{n % TAGS}", name, n) for n in range(1, len(of_sample) + 1)]
            bases = _random_bases(rng, int(of_sample.sum()), flat)
            for store in shape.stores:
                write = WRITERS.get(store) or partial(create_in_pages, int(store))
                write(name, zip(names, _pieces(bases, of_sample), strict=True), world.sequences(store))
            ids += names
            lengths.append(of_sample)
    return ids, np.concatenate(lengths)


def _random_bases(rng: np.random.Generator, count: int, flat: BinaryIO) -> bytes:
    bases = _FOUR_LETTERS[np.frombuffer(rng.bytes(-(-count // 4)), dtype=np.uint8)].tobytes()[:count]
    flat.write(bases)
    return bases


def _pieces(bases: bytes, lengths: NDArray[np.int64]) -> Iterator[str]:
    at = 0
    for length in lengths.tolist():
        yield bases[at : at + length].decode("ascii")
        at += length


def create_as_specified(sample_id: str, sequences: Iterator[tuple[str, str]], output_dir: Path) -> None:
    """Write the database of a sample as the specification's example does, without waiting for the disk."""
    path = sample_database_path(output_dir, sample_id)
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT NOT NULL)")
        connection.executemany("INSERT INTO sequences (contig_id, nt_sequence) VALUES (?, ?)", sequences)
        connection.commit()


def create_in_pages(page_bytes: int, sample_id: str, sequences: Iterator[tuple[str, str]], output_dir: Path) -> None:
    """Write the database of a sample as `build` does, in pages of another size."""
    path = sample_database_path(output_dir, sample_id)
    path.parent.mkdir(parents=True)
    with closing(create_database(path, page_size=page_bytes)) as database:
        database.execute(f"BEGIN; {CREATE_SEQUENCES}")
        database.executemany("INSERT INTO sequences VALUES (?, ?)", sequences)
        database.execute("COMMIT")


WRITERS: dict[str, Callable[..., object]] = {SNIPPET: create_as_specified, BUILD: create_sample_database}


def _write_windows(world: ColdWorld, ids: list[str], lengths: NDArray[np.int64]) -> None:
    """Write the window database, its index for each store, and the tables of the flat file."""
    folder, shape = world.folder, world.shape
    starts = np.cumsum(lengths) - lengths
    split = folder / "split.parquet"
    sorted_by_id = pl.DataFrame({"contig_id": ids, "length": lengths, "start": starts}).sort("contig_id")
    sorted_by_id.select("contig_id", "length").write_parquet(split)
    lengths, starts = sorted_by_id["length"].to_numpy(), sorted_by_id["start"].to_numpy()
    first = world.window_db(shape.stores[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = precompute_window_database(split, first, WINDOW_SIZE, STRIDE)
    for store in shape.stores:
        if store != shape.stores[0]:
            shutil.copyfile(first, world.window_db(store))
        index_window_database(world.sequences(store), world.window_db(store))
        without = world.window_db(store).parent / "no-index"
        without.mkdir()
        (without / "windows.db").hardlink_to(world.window_db(store))
    counts = WindowGeometry(window_size=WINDOW_SIZE, stride=STRIDE).counts(lengths)
    contig = np.repeat(np.arange(len(lengths)), counts)  # in the window database's order
    within = (np.arange(len(contig)) - np.repeat(np.cumsum(counts) - counts, counts)) * STRIDE
    assert len(contig) == result.windows
    in_flat = np.argsort(starts)
    offsets = [*starts[in_flat].tolist(), int(lengths.sum())]
    names = sorted_by_id["contig_id"].gather(in_flat).to_list()
    (folder / "contigs.json").write_text(json.dumps({"ids": names, "offsets": offsets}))
    np.save(folder / "window_contigs.npy", np.argsort(in_flat)[contig])
    np.save(folder / "window_starts.npy", starts[contig] + within)
    np.save(folder / "window_lengths.npy", np.minimum(WINDOW_SIZE, lengths[contig] - within))
    order = np.random.default_rng(SEED).permutation(result.windows)[:MOST_ORDERED]
    np.save(folder / "order.npy", order)
