"""One sequence database -> the sketches of its contigs. One task: it can be pickled and run anywhere.

A sketch is FracMinHash: the hashes of all canonical k-mers (k = 21) that are below 2^64 / 20, so about one k-mer in 20. Both
strands of a contig give the same hashes. k-mers with letters other than A, C, G and T are left out; case does not count, and U
is T. The share of the hashes of one contig that another one holds estimates the share of its k-mers (containment).

Input: a sequence database. Output: two Parquet files, `contigs` (contig_id, length, hashes) and `hashes` (hash, contig), sorted
by hash. Costs 20 to 30 Mb/s and 12 bytes on disk for each hash; one contig is in memory at a time.

Source: Irber et al., "Lightweight compositional analysis of metagenomes with FracMinHash and minimum metagenome covers", 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, MissingExtra, WriteError, printable
from sharded_eden.format.commands import verify_command
from sharded_eden.format.publish import writing
from sharded_eden.format.schema import CONTIG_ID, LENGTH
from sharded_eden.format.sequence_db import sequence_db_problems
from sharded_eden.format.sqlite import READ_ERRORS, open_read_only, unreadable
from sharded_eden.jobs import Say

K = 21
"""Letters of a k-mer. At 95% identity, 0.95^21 = 34% of the k-mers are equal; two unrelated genomes share next to none."""
SCALED = 20
"""One k-mer in this many is in a sketch: about 49 of a contig of 1,000 bases."""
MIN_BASES = 1000
"""Shorter contigs are not compared: their sketches are too small."""
PIECE_BASES = 1 << 16
"""Long contigs are sketched in pieces that overlap by k - 1 letters: the library sorts the hashes as it adds them."""

HASH, CONTIG, HASHES = "hash", "contig", "hashes"


@dataclass(frozen=True)
class SketchTask:
    """A sequence database to sketch."""

    number: int
    path: Path
    out: Path
    """Where `<number>.contigs.parquet` and `<number>.hashes.parquet` go."""

    @property
    def contigs(self) -> Path:
        """The table of its contigs: contig_id, length, hashes (0 for those that are not compared)."""
        return self.out / f"{self.number}.contigs.parquet"

    @property
    def hashes(self) -> Path:
        """The hashes, sorted, with the number of the contig in the table."""
        return self.out / f"{self.number}.hashes.parquet"


def check_library() -> None:
    """Raise an error where sourmash is not installed.

    Raises:
        MissingExtra: it is not.
    """
    try:
        import sourmash  # noqa: F401
    except ImportError as error:
        raise MissingExtra("sourmash", "similar") from error


@contextmanager
def writing_temporary(path: Path) -> Iterator[None]:
    """Turn errors while a temporary file or folder is written into one that tells how to choose another folder.

    Raises:
        WriteError: it cannot be written.
    """
    try:
        with writing(path):
            yield
    except WriteError as error:
        raise WriteError(f"{error}. Give another folder: --scratch DIR") from error


def sketch_database(task: SketchTask, say: Say) -> int:
    """Sketch all contigs of at least `MIN_BASES` bases; return how many bases the database has.

    Args:
        task: the database, and where the result goes.
        say: called with the bases that were sketched since the last call.

    Raises:
        DatabaseError: the database cannot be read, or holds rows without text.
        WriteError: a table cannot be written.
    """
    ids: list[str] = []
    lengths: list[int] = []
    found: list[NDArray[np.uint64]] = []
    with closing(open_read_only(task.path, io="read")) as database:
        try:
            for problem in sequence_db_problems(database, task.path):
                raise problem.error(task.path)
            for contig_id, value in database.execute("SELECT contig_id, nt_sequence FROM sequences"):
                sequence = value.decode() if isinstance(value, bytes) else value
                if not isinstance(contig_id, str) or not isinstance(sequence, str):
                    check = verify_command(task.path.parent.parent, full=True)
                    raise DatabaseError(
                        f"{printable(task.path)}: a row of its table sequences has no text. Run: {check}"
                    )
                ids.append(contig_id)
                lengths.append(len(sequence))
                found.append(hashes_of(sequence))
                say(len(sequence))
        except READ_ERRORS as error:
            raise unreadable(task.path, error) from error
    counts = np.array([len(each) for each in found], dtype=np.int64)
    contigs = pl.DataFrame(
        {CONTIG_ID: ids, LENGTH: lengths, HASHES: counts},
        schema={CONTIG_ID: pl.String, LENGTH: pl.Int64, HASHES: pl.Int64},
    )
    with writing_temporary(task.contigs):
        contigs.write_parquet(task.contigs)
    frame = pl.DataFrame(
        {
            HASH: np.concatenate([np.empty(0, dtype=np.uint64), *found]),
            CONTIG: np.repeat(np.arange(len(found), dtype=np.uint32), counts),
        }
    )
    del found
    frame = frame.sort(HASH)
    with writing_temporary(task.hashes):
        frame.write_parquet(task.hashes, row_group_size=1 << 20)
    return sum(lengths)


def hashes_of(sequence: str) -> NDArray[np.uint64]:
    """Return the sketch of a sequence, (n,) uint64, sorted and distinct; empty for fewer than `MIN_BASES` bases."""
    if len(sequence) < MIN_BASES:
        return np.empty(0, dtype=np.uint64)
    from sourmash import MinHash

    sequence = sequence.upper().replace("U", "T")
    pieces: list[Any] = []
    for first in range(0, max(1, len(sequence) - K + 1), PIECE_BASES):
        sketch = MinHash(n=0, ksize=K, scaled=SCALED)
        sketch.add_sequence(sequence[first : first + PIECE_BASES + K - 1], force=True)
        hashes = sketch.hashes
        pieces.append(np.fromiter(hashes, dtype=np.uint64, count=len(hashes)))
    return np.unique(np.concatenate(pieces))
