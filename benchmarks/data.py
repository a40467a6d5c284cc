"""The data of all measurements: random bases from a fixed seed, built once into `.bench/`.

Each world holds the same contigs twice: in the project's own databases, written by its own build functions, and as one flat
file of bytes with a table of windows, which the limit reads and the peers convert into their formats.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.build.build import create_sample_database
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.index import index_path
from sharded_eden.format.schema import make_sequence_id
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.precompute import precompute_window_database

ROOT = Path(__file__).resolve().parent.parent / ".bench"
WINDOW_SIZE = 8192
STRIDE = 7992
SEED = 20261122

_LETTERS = np.frombuffer(b"ACGT", dtype=np.uint8)


@dataclass(frozen=True)
class Shape:
    """The properties of a world."""

    name: str
    title: str
    samples: int
    contigs: int
    contig_bases: int
    """The length of every contig; with `log_normal`, their median."""
    log_normal: bool = False

    def lengths(self, rng: np.random.Generator) -> list[int]:
        """Return the length of every contig, in bases."""
        if not self.log_normal:
            return [self.contig_bases] * self.contigs
        sigma = (2 * np.log(4.0 / 2.2)) ** 0.5  # median 2.2 kb, mean 4 kb
        drawn = rng.lognormal(np.log(self.contig_bases), sigma, self.contigs)
        return [int(length) for length in np.maximum(drawn, 200)]


def shapes(quick: bool) -> dict[str, Shape]:
    """Return all shapes by name; `quick` ones are smaller but have the same structure."""
    few, some = (2, 2) if quick else (8, 4)
    long_bases = 20_000_000 if quick else 150_000_000
    many_bases = 2_000_000 if quick else 60_000_000
    return {
        shape.name: shape
        for shape in (
            Shape("short", "short contigs", 4 if quick else 20, 2_000 if quick else 40_000, 2_200, log_normal=True),
            Shape("5mb", "contigs of 5 Mb", 1, few, 5_000_000),
            Shape("150mb", f"contigs of {long_bases // 1_000_000} Mb", 1, some, long_bases),
            Shape("24long", f"24 contigs of {many_bases // 1_000_000} Mb", 1, 24, many_bases),
        )
    }


@dataclass(frozen=True)
class World:
    """The files of one shape."""

    shape: Shape
    folder: Path

    @property
    def sequence_db_dir(self) -> Path:
        """Folder of the sequence databases."""
        return self.folder / "sequences"

    @property
    def window_db(self) -> Path:
        """The window database."""
        return self.folder / "windows.db"

    @cached_property
    def bases(self) -> NDArray[np.uint8]:
        """(bases,) uint8: all contigs, concatenated, memory-mapped."""
        return np.asarray(np.memmap(self.folder / "bases.u8", dtype=np.uint8, mode="r"))

    @cached_property
    def window_starts(self) -> NDArray[np.int64]:
        """(N,) int64: the start of each window in `bases`."""
        return np.asarray(np.load(self.folder / "window_starts.npy"))

    @cached_property
    def window_lengths(self) -> NDArray[np.int64]:
        """(N,) int64: bases of each window, at most `WINDOW_SIZE`."""
        return np.asarray(np.load(self.folder / "window_lengths.npy"))

    @cached_property
    def window_contigs(self) -> NDArray[np.int64]:
        """(N,) int64: the contig of each window."""
        return np.asarray(np.load(self.folder / "window_contigs.npy"))

    @property
    def order_file(self) -> Path:
        """The random order in which all contenders visit the windows."""
        return self.folder / "order.npy"

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(N,) int64: a permutation of the windows."""
        return np.asarray(np.load(self.order_file))

    def warm(self) -> None:
        """Read every file once, so that it is in the page cache."""
        files = self.window_db, index_path(self.window_db), self.folder / "bases.u8"
        for path in (*self.sequence_db_dir.rglob("*.sqlite"), *files):
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def build(shape: Shape, quick: bool) -> World:
    """Return the world of a shape; build it if it is missing."""
    folder = ROOT / f"{shape.name}{'-quick' if quick else ''}"
    world = World(shape, folder)
    done = folder / "done.json"
    recipe = json.dumps({**shape.__dict__, "window_size": WINDOW_SIZE, "stride": STRIDE, "seed": SEED, "recipe": 2})
    if done.exists() and done.read_text() == recipe:
        return world
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng([SEED, len(shape.name), shape.contigs, shape.contig_bases])
    lengths = shape.lengths(rng)
    sample_names = [f"S{k:02d}" for k in range(shape.samples)]
    ids = [make_sequence_id("BCR", sample_names[k % shape.samples], k) for k in range(len(lengths))]
    contigs = sorted(zip(ids, lengths, strict=True))  # the order of the window database
    with (folder / "bases.u8").open("wb") as file:
        for _, length in contigs:
            for first in range(0, length, 1 << 24):
                size = min(1 << 24, length - first)
                file.write(_LETTERS[rng.integers(0, 4, size, dtype=np.uint8)].data)
    offsets = np.concatenate([[0], np.cumsum([length for _, length in contigs])])
    (folder / "contigs.json").write_text(
        json.dumps({"ids": [name for name, _ in contigs], "offsets": [int(offset) for offset in offsets]})
    )
    for sample in sample_names:
        create_sample_database(sample, _sequences(world, sample, contigs, offsets), world.sequence_db_dir)
    split = folder / "split.parquet"
    pl.DataFrame(contigs, schema={"contig_id": pl.String, "length": pl.Int64}, orient="row").write_parquet(split)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = precompute_window_database(split, world.window_db, WINDOW_SIZE, STRIDE)
    index_window_database(world.sequence_db_dir, world.window_db)
    _write_window_table(world, np.array([length for _, length in contigs]), offsets)
    assert len(world.window_starts) == result.windows
    np.save(world.order_file, rng.permutation(result.windows))
    done.write_text(recipe)
    return world


def _sequences(
    world: World, sample: str, contigs: list[tuple[str, int]], offsets: NDArray[np.int64]
) -> Iterator[tuple[str, str]]:
    for (name, length), offset in zip(contigs, offsets, strict=False):
        if f"-{sample}__" in name:
            yield name, world.bases[offset : offset + length].tobytes().decode("ascii")


def _write_window_table(world: World, lengths: NDArray[np.int64], offsets: NDArray[np.int64]) -> None:
    counts = WindowGeometry(window_size=WINDOW_SIZE, stride=STRIDE).counts(lengths)
    contig = np.repeat(np.arange(len(lengths)), counts)
    within = (np.arange(len(contig)) - np.repeat(np.cumsum(counts) - counts, counts)) * STRIDE
    np.save(world.folder / "window_contigs.npy", contig)
    np.save(world.folder / "window_starts.npy", offsets[contig] + within)
    np.save(world.folder / "window_lengths.npy", np.minimum(WINDOW_SIZE, lengths[contig] - within))
