"""Thousands of sequence databases in one process: memory and file descriptors stay within bounds."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import worlds

from sharded_eden import create_sample_database, precompute_window_database

HELPERS = Path(__file__).resolve().parent.parent / "helpers"

pytestmark = pytest.mark.slow

SEQUENCES = {f"BCR__ECT-S00000__CT1-{k}": worlds.random_sequence(3000 + 4000 * k, k) for k in range(3)}


def many(folder: Path, samples: int) -> Path:
    """Write samples that are one database each, under names of the same length, and the windows of them all."""
    template = create_sample_database("S00000", SEQUENCES.items(), folder / "seqs").read_bytes()
    names = [f"S{k:05}" for k in range(samples)]
    for name in names[1:]:
        path = worlds.sample_db(folder, name)
        path.parent.mkdir()
        path.write_bytes(template.replace(b"S00000", name.encode()))
    ids = [(contig_id.replace("S00000", name), len(s)) for name in names for contig_id, s in SEQUENCES.items()]
    split = folder / "split.parquet"
    pl.DataFrame(ids, schema=["contig_id", "length"], orient="row").write_parquet(split)
    precompute_window_database(split, folder / "windows.db")
    return folder


def read_all(folder: Path, io: str = "auto", descriptors: int = 0) -> dict[str, Any]:
    command = [sys.executable, HELPERS / "many_samples.py", folder, io, str(descriptors)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def sha256_of_all(samples: int) -> str:
    """The expected windows: each sample has one window a contig, sorted by contig ID."""
    digests = []
    for _ in range(samples):
        for sequence in SEQUENCES.values():
            shown = sequence[:8189].encode()
            row = torch.tensor([1, 3, *shown, 2, *[0] * (8189 - len(shown))])
            digests.append(hashlib.sha256(row.numpy()).digest())
    return hashlib.sha256(b"".join(digests)).hexdigest()


def test_a_thousand_samples_cost_less_than_128_megabytes(tmp_path):
    folders = [many(tmp_path / str(n), n) for n in (1, 1000)]
    for io in ("mmap", "read"):
        one, thousand = (read_all(folder, io) for folder in folders)
        grown = (thousand["private_kib"] - one["private_kib"]) * 1024 / 1e6
        print(f"{io}: {one['private_kib'] * 1024 / 1e6:.0f} MB with 1 sample, {grown:.0f} MB more with 1,000")
        assert thousand["sha256"] == sha256_of_all(1000)
        assert 0 < grown < 128


def test_ten_thousand_samples_with_1024_file_descriptors(tmp_path):
    found = read_all(many(tmp_path, 10_000), descriptors=1024)
    assert found["sha256"] == sha256_of_all(10_000)
    assert found["soft_limit"] == 1024
    assert found["open_files"] <= 1024 // 3 + 16
