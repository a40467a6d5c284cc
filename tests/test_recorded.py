"""Hashes of streams and database rows equal those of version 0.1. `python tests/test_recorded.py` writes the file of hashes."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import worlds

from sharded_eden import (
    ShardedEdenDataset,
    Stream,
    build_sequence_dbs,
    pack_window_database,
    precompute_window_database,
)

RECORDED = Path(__file__).with_name("data") / "recorded_hashes.json"
T, STRIDE = 96, 80

PUBLIC_NAMES_OF_0_1 = (
    "NucleotideTokenizer", "ShardedEdenDataModule", "ShardedEdenDataset", "Stream", "WindowGeometry", "__version__", "bench",
    "build_sequence_dbs", "compute_num_windows", "create_sample_database", "extract_sample_id", "pack_window_database",
    "precompute_window_database", "verify", "write_splits",
)  # fmt: skip

STREAMS = {
    "plain": {},
    "rc": {"rc_aug": True},
    "tags": {"rc_aug": True, "use_control_tags": True},
    "compact": {"rc_aug": True, "compact": True, "use_control_tags": True},
    "no specials": {"include_bos": False, "include_sep": False, "include_eos": False},
    "weighted": {"mask_ambiguous": True, "soft_mask_weight": 0.1, "loss_on_eos": True},
    "packed": {"packed": True, "rc_aug": True},
    "packed compact": {"packed": True, "compact": True, "rc_aug": True},
}
WINDOWS = {
    "default": {},
    "tails": {"keep_tail": True},
    "threshold": {"window_min_length_threshold": 50},
    "ambiguous": {"max_ambiguous": 0.2},
}


def _fasta(folder: Path) -> Path:
    """Three samples with contigs of 10 to 100,000 bases in both cases, with ambiguous letters."""
    inputs = folder / "inputs"
    inputs.mkdir()
    seed = 0
    for name, lengths in {"S0": (500, 10, 96, 97), "S1": (100_000, 95, 5_000), "S-2": (4_061, 4_062, 333, 80)}.items():
        lines = []
        for k, length in enumerate(lengths):
            seed += 1
            letters = "ACGTacgtN" if k % 2 else "ACGT"
            sequence = worlds.random_sequence(length, seed, letters)
            lines.append(f">BCR__ECT-{name}__CT1-{k}\n" if k else f">Meta__ECT-{name}__CT1-{k}\n")
            lines += [sequence[at : at + 70] + "\n" for at in range(0, length, 70)]
        (inputs / f"{name}.fa").write_text("".join(lines))
    return inputs


def _rows(path: Path, *tables: str) -> str:
    digest = hashlib.sha256()
    connection = sqlite3.connect(path)
    for table in tables:
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1"):
            digest.update(repr(row).encode())
    connection.close()
    return digest.hexdigest()


def _stream(dataset: ShardedEdenDataset) -> str:
    digest = hashlib.sha256()
    stream = Stream(dataset)
    for first in range(0, 2 * len(dataset), 7):
        for item in stream.__getitems__(list(range(first, first + 7))):
            for name in sorted(item):
                digest.update(name.encode() + np.ascontiguousarray(item[name].numpy()).tobytes())
    return digest.hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    found = {}
    seqdb = folder / "seqdb"
    build_sequence_dbs([_fasta(folder)], seqdb)
    databases = sorted(seqdb.glob("*/*.sqlite"))
    for path in databases:
        found[f"sequences of {path.parent.name}"] = _rows(path, "sequences")
    contigs = pl.read_parquet(seqdb / "contigs.parquet").select("contig_id", "length").sort("contig_id")
    split = folder / "split.parquet"
    contigs.write_parquet(split)
    for name, options in WINDOWS.items():
        path = folder / f"{name}.db"
        sequences = {"sequences": seqdb} if "max_ambiguous" in options else {}
        precompute_window_database(split, path, T, STRIDE, **options, **sequences)
        found[f"windows {name}"] = _rows(path, "metadata", "window_mappings", "contig_lengths")
    pack_window_database(folder / "default.db")
    found["packs"] = _rows(folder / "default.db", "metadata", "packs")
    for name, options in STREAMS.items():
        with (
            warnings.catch_warnings(),
            ShardedEdenDataset(None, seqdb, folder / "default.db", T, stride=STRIDE, **options) as dataset,
        ):
            warnings.simplefilter("ignore")
            found[f"stream {name}"] = _stream(dataset)
    return found


def test_streams_and_rows_are_those_of_0_1(tmp_path):
    assert hashes(tmp_path) == json.loads(RECORDED.read_text())


def test_the_public_names_of_0_1_are_there():
    import sharded_eden

    for name in PUBLIC_NAMES_OF_0_1:
        assert getattr(sharded_eden, name) is not None


@pytest.mark.parametrize("module", ["sampler", "conventions", "megatron"])
def test_modules_that_users_import_are_there(module):
    __import__(f"sharded_eden.train.{module}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as folder:
        RECORDED.write_text(json.dumps(hashes(Path(folder)), indent=1, sort_keys=True) + "\n")
