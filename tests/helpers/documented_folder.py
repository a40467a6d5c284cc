"""Writes the folder in which the examples of the public docstrings run: `docs/api.md` describes it."""

from __future__ import annotations

import random
from pathlib import Path

from sharded_eden import (
    ShardedEdenDataset,
    build_sequence_dbs,
    pack_window_database,
    precompute_window_database,
    write_splits,
)


def write(folder: Path) -> None:
    """Write genomes, sequence databases, splits, window databases with packs, and access logs."""
    genomes = folder / "genomes"
    genomes.mkdir()
    for name in "abcd":
        letters = random.Random(name)
        contigs = ("".join(letters.choices("ACGT", k=length)) for length in (20_000, 3_000))
        text = "".join(f">c{number}\n{contig}\n" for number, contig in enumerate(contigs, start=1))
        (genomes / f"{name}.fna").write_text(text)
    sequences = folder / "sequence_db_dir"
    build_sequence_dbs([genomes], sequences)
    splits = write_splits(sequences, folder / "splits", val=0.25, test=0.0)
    for name, part in splits.parts.items():
        windows = folder / f"windows/{name}_windows.db"
        precompute_window_database(part.path, windows, window_size=1024, stride=824, sequences=sequences)
        pack_window_database(windows)
    train = splits.parts["train"].path
    precompute_window_database(train, folder / "unpacked_windows.db", window_size=1024, stride=824)
    windows = folder / "windows/train_windows.db"
    options = {"log_windows": True, "log_dir": folder / "logs"}
    with ShardedEdenDataset.open(sequences, windows, **options) as dataset:
        dataset[0], dataset[1]
