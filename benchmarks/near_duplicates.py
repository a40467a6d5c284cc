"""Near-duplicates: recall and false pairs on planted pairs, seconds and memory for a gigabase, and the libraries compared.

    python -m benchmarks.near_duplicates [--pairs 400] [--megabases 200] [--tools sourmash,pyskani,datasketch]

Each planted pair is a contig of 2 to 6 kb of a real genome (`demo/genomes`) and a copy with substitutions: a quarter each
whole, as the other strand, as a half, and as a half of the other strand. Contigs of other places in the genomes, and random
ones, are not planted. A reported pair that was not planted counts as false unless the two contigs share an exact run of
40 letters, which real repeats do; those are counted apart. Tools that are not installed are skipped.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from xopen import xopen

from sharded_eden import create_sample_database
from sharded_eden.cli.level import peak_mb
from sharded_eden.format.schema import sample_database_path
from sharded_eden.similar.groups import THRESHOLD
from sharded_eden.similar.pairs import similar_contigs

GENOMES = Path(__file__).resolve().parent.parent / "demo" / "genomes"
LETTERS = np.frombuffer(b"ACGT", dtype=np.uint8)
COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")
IDENTITIES = (0.80, 0.85, 0.90, 0.93, 0.95, 0.97, 0.99)
EXACT = 40
Pairs = set[tuple[int, int]]


def random_letters(rng: np.random.Generator, bases: int) -> bytes:
    """Return random letters."""
    return LETTERS[rng.integers(0, 4, bases)].tobytes()


def mutated(rng: np.random.Generator, sequence: bytes, identity: float) -> bytes:
    """Return a copy in which each letter is substituted with probability 1 - identity."""
    letters = np.frombuffer(sequence, dtype=np.uint8).copy()
    changed = np.flatnonzero(rng.random(len(letters)) >= identity)
    codes = np.searchsorted(LETTERS, letters[changed])
    letters[changed] = LETTERS[(codes + rng.integers(1, 4, len(changed))) % 4]
    return letters.tobytes()


def plant(rng: np.random.Generator, sequence: bytes, identity: float, kind: int) -> bytes:
    """Return a copy: whole, other strand, half, half of the other strand."""
    copy = mutated(rng, sequence, identity)
    if kind % 2:
        copy = copy.translate(COMPLEMENT)[::-1]
    if kind >= 2:
        copy = copy[: len(copy) // 2] if rng.random() < 0.5 else copy[len(copy) // 2 :]
    return copy


def by_sourmash(one: list[bytes], other: list[bytes]) -> Pairs:
    """The implementation of this package."""
    with tempfile.TemporaryDirectory() as folder:
        databases = {}
        for sample, contigs in (("A", one), ("B", other)):
            path = sample_database_path(folder, sample)
            rows = ((f"B__E-{sample}__C-{i}", contig.decode()) for i, contig in enumerate(contigs))
            create_sample_database(sample, rows, folder)
            databases[sample] = path
        found = similar_contigs(
            databases, Path(folder), threshold=THRESHOLD, wanted=lambda _: lambda a, b: (a < len(one)) & (b >= len(one))
        )
        named = found.named()
    number = [[int(each.rpartition("-")[2]) for each in named[column]] for column in ("one", "other")]
    return set(zip(*number, strict=True))


def by_pyskani(one: list[bytes], other: list[bytes]) -> Pairs:
    """Average nucleotide identity of skani, with a sketch as dense as ours."""
    import pyskani

    database = pyskani.Database(compression=20, marker_compression=20)
    for i, contig in enumerate(one):
        database.sketch(str(i), contig)
    return {
        (int(hit.reference_name), j)
        for j, contig in enumerate(other)
        for hit in database.query(str(j), contig, cutoff=0.75, learned_ani=False, faster_small=True)
    }


def by_datasketch(one: list[bytes], other: list[bytes]) -> Pairs:
    """LSH Ensemble, which is made for containment."""
    from datasketch import MinHash, MinHashLSHEnsemble

    def sketch(contig: bytes) -> tuple[MinHash, int]:
        reverse = contig.translate(COMPLEMENT)[::-1]
        count = len(contig)
        kmers = {min(contig[i : i + 21], reverse[count - i - 21 : count - i]) for i in range(count - 20)}
        minhash = MinHash(num_perm=128)
        minhash.update_batch(list(kmers))
        return minhash, len(kmers)

    ensemble = MinHashLSHEnsemble(threshold=THRESHOLD, num_perm=128, num_part=8)
    ensemble.index([(i, *sketch(contig)) for i, contig in enumerate(one)])
    return {(i, j) for j, contig in enumerate(other) for i in ensemble.query(*sketch(contig))}


TOOLS: dict[str, Callable[[list[bytes], list[bytes]], Pairs]] = {
    "sourmash": by_sourmash,
    "pyskani": by_pyskani,
    "datasketch": by_datasketch,
}


def genome_pieces(rng: np.random.Generator, count: int) -> list[bytes]:
    """Cut non-overlapping contigs of 2 to 6 kb from the genomes of the demo."""
    pieces = []
    for path in sorted(GENOMES.glob("*.fa.*")):
        with xopen(path, "rb") as file:
            records = file.read().split(b">")[1:]
        for record in records:
            sequence = record.partition(b"\n")[2].replace(b"\n", b"").upper()
            place = 0
            while place + 6000 <= len(sequence):
                length = int(rng.integers(2000, 6000))
                if set(piece := sequence[place : place + length]) <= set(b"ACGT"):
                    pieces.append(piece)
                place += length
    rng.shuffle(pieces)
    return pieces[:count]


def shares_a_run(one: bytes, other: bytes) -> bool:
    """Return whether two contigs share an exact run of 40 letters, on either strand."""
    runs = {one[i : i + EXACT] for i in range(len(one) - EXACT + 1)}
    strands = (other, other.translate(COMPLEMENT)[::-1])
    return any(strand[i : i + EXACT] in runs for strand in strands for i in range(len(strand) - EXACT + 1))


def recall(tools: list[str], pairs: int) -> None:
    """Print recall and false pairs at each identity."""
    print("tool        identity   recall   false pairs   pairs with a real repeat   Mb/s")
    for identity in IDENTITIES:
        rng = np.random.default_rng(int(identity * 100))
        pieces = genome_pieces(rng, 3 * pairs)
        originals, rest = pieces[:pairs], pieces[pairs:]
        half = len(rest) // 2
        one = originals + rest[:half]
        other = [plant(rng, contig, identity, i % 4) for i, contig in enumerate(originals)] + rest[half:]
        other += [random_letters(rng, 3000) for _ in range(pairs)]
        for tool in tools:
            started = time.perf_counter()
            found = TOOLS[tool](one, other)
            seconds = time.perf_counter() - started
            planted = {(i, i) for i in range(pairs)}
            extra = found - planted
            repeats = sum(shares_a_run(one[i], other[j]) for i, j in extra)
            false = (len(extra) - repeats) / max(1, len(found))
            megabases = sum(map(len, one + other)) / 1e6
            print(
                f"{tool:10s}{identity:>10.0%}{len(found & planted) / pairs:>9.3f}{false:>14.2%}{repeats:>27,}"
                f"{megabases / seconds:>7.1f}",
                flush=True,
            )


def cost(megabases: int) -> None:
    """Print seconds, memory and disk for random contigs of 5 kb, in samples of 10 Mb, as they grow linearly."""
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as folder:
        databases = {}
        for number in range(max(1, megabases // 10)):
            sample = f"S{number}"
            rows = ((f"B__E-{sample}__C-{i}", random_letters(rng, 5000).decode()) for i in range(2000))
            create_sample_database(sample, rows, folder)
            databases[sample] = sample_database_path(folder, sample)
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        wall, processor = time.perf_counter(), time.process_time()
        similar_contigs(databases, scratch, threshold=THRESHOLD)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        disk = sum(path.stat().st_size for path in scratch.iterdir()) / 1e6
    scale = 1000 / (len(databases) * 10)
    print(
        f"cost: {len(databases) * 10} Mb in {wall:.0f} s ({processor:.0f} s of processor time, one process); for a gigabase "
        f"{wall * scale:.0f} s, {processor * scale:.0f} s of processor time and {disk * scale:.0f} MB of temporary files. "
        f"Peak memory {peak_mb() or 0:.0f} MB, {os.cpu_count()} processors"
    )


def main() -> None:
    """Run both measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--megabases", type=int, default=200)
    parser.add_argument("--tools", default="sourmash")
    arguments = parser.parse_args()
    tools = []
    for tool in arguments.tools.split(","):
        with suppress(ImportError):
            __import__(tool)
            tools.append(tool)
    recall(tools, arguments.pairs)
    if arguments.megabases:
        cost(arguments.megabases)


if __name__ == "__main__":
    main()
