"""Small data for tests: contigs, and their databases written by the oracle with stdlib sqlite3."""

from __future__ import annotations

import atexit
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import oracle
from sharded_eden import ShardedEdenDataset

T = 64
STRIDE = 50


def random_sequence(length: int, seed: int = 0, letters: str = "ACGT") -> str:
    return "".join(random.Random(seed).choices(letters, k=length))


CONTIGS = {
    "BCR__ECT-S0__CT1-1": random_sequence(200, 1),
    "BCR__ECT-S0__CT1-2": random_sequence(20, 2),
    "Meta__ECT-S1__CT1-1": random_sequence(164, 3, "ACGTacgtNn"),
    "BCR__ECT-S1__CT1-1": random_sequence(63, 4),
    "TCR__ECT-S2-X__CT1-1": random_sequence(165, 5, "ACGTRYKMSWBDHVN"),
}
"""Five contigs, three tags, the samples S0, S1 and S2.X, eleven windows."""


def write(
    folder: Path, contigs: Mapping[str, str] = CONTIGS, window_size: int = T, stride: int = STRIDE, **options: Any
) -> Path:
    """Write `seqs/` and `windows.db` into a folder and return it."""
    shutil.copytree(
        _written(tuple(contigs.items()), window_size, stride, tuple(options.items())), folder, dirs_exist_ok=True
    )
    return folder


@lru_cache(maxsize=32)
def _written(contigs: tuple[tuple[str, str], ...], window_size: int, stride: int, options: tuple[Any, ...]) -> Path:
    """Databases that tests copy: writing them takes SQLite ten times as long, because it syncs."""
    folder = Path(tempfile.mkdtemp(prefix="worlds-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    oracle.write_sequence_dbs(folder / "seqs", dict(contigs))
    oracle.write_window_db(folder / "windows.db", dict(contigs), window_size, stride, **dict(options))
    folder.chmod(0o755)
    return folder


def dataset(folder: Path, tokenizer: Any = None, **options: Any) -> ShardedEdenDataset:
    options = {"seq_length": T, "stride": STRIDE, **options}
    return ShardedEdenDataset(tokenizer, folder / "seqs", folder / "windows.db", **options)


def sample_db(folder: Path, sample: str) -> Path:
    return folder / "seqs" / sample / f"glm_dataset_{sample}.sqlite"


def execute(path: Path, *statements: str | tuple[str, tuple[Any, ...]]) -> None:
    """Run statements in an existing database with the sqlite3 module, and commit."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous = OFF")
    for statement in statements:
        connection.execute(*((statement,) if isinstance(statement, str) else statement))
    connection.commit()
    connection.close()


def query(path: Path, statement: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    rows = connection.execute(statement).fetchall()
    connection.close()
    return rows


def rows_of(folder: Path) -> list[tuple[str, int]]:
    """The (sequence_id, window_in_seq_idx) of every window."""
    statement = "SELECT sequence_id, window_in_seq_idx FROM window_mappings ORDER BY window_idx"
    return query(folder / "windows.db", statement)


def expected(folder: Path, window_idx: int, **options: Any) -> dict[str, list[float]]:
    """One item of the reference implementation."""
    options = {"seq_length": T, "stride": STRIDE, **options}
    return oracle.item(folder / "seqs", folder / "windows.db", window_idx, **options)


def as_lists(item: Mapping[str, Any]) -> dict[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in item.items()}
