"""Contigs of other lengths than their windows need: with an index, each window is the row or the error that SQLite gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import worlds

from sharded_eden import ShardedEdenDataset, precompute_window_database
from sharded_eden.errors import MissingSequence
from sharded_eden.format.index import index_path
from sharded_eden.windows.index import index_window_database

NAME = "BCR__ECT-S0__CT1-1"
LENGTHS = [1, 13, 14, 20, 49, 50, 51, 63, 64, 99, 100, 101, 113, 114, 149, 150, 163, 164, 165, 200, 214, 215, 300]


def read(dataset: ShardedEdenDataset) -> list[list[Any]]:
    """Each window, alone and in a batch: its tokens, or the error."""
    found: list[list[Any]] = []
    for k in range(len(dataset)):
        found.append([])
        for each in (lambda k=k: dataset[k], lambda k=k: dataset.__getitems__([k] * 3)[0]):
            try:
                found[-1].append(each()["tokens"].tolist())
            except MissingSequence as error:
                found[-1].append(str(error))
    return found


@pytest.mark.parametrize("keep_tail", [False, True])
@pytest.mark.parametrize("lengths", ["recorded", "not recorded"])
@pytest.mark.parametrize("window_length", [64, 164, 214])
def test_with_an_index_and_without(tmp_path: Path, window_length: int, lengths: str, keep_tail: bool) -> None:
    split, windows = tmp_path / "split.parquet", tmp_path / "windows.db"
    pl.DataFrame({"contig_id": [NAME], "length": [window_length]}).write_parquet(split)
    precompute_window_database(split, windows, worlds.T, worlds.STRIDE, keep_tail=keep_tail)
    if lengths == "not recorded":
        worlds.execute(windows, "DROP TABLE contig_lengths")
    is_error = []
    for length in LENGTHS:
        folder = worlds.write(tmp_path / str(length), {NAME: worlds.random_sequence(length, 1)})
        for path in folder.glob("windows.db*"):
            path.unlink()
        (folder / "windows.db").write_bytes(windows.read_bytes())
        with worlds.dataset(folder) as dataset:
            expected = read(dataset)
        index_window_database(folder / "seqs", folder / "windows.db")
        with worlds.dataset(folder) as dataset:
            assert dataset._addresses is not None
            assert read(dataset) == expected, length
        is_error.append(any(isinstance(row, str) for rows in expected for row in rows))
        index_path(folder / "windows.db").unlink()
    # Every contig that is too short for its windows is an error.
    needed = window_length
    if lengths == "not recorded":
        last = len(expected) - 1
        needed = 0 if not last else last * worlds.STRIDE + (1 if keep_tail else worlds.T)
    assert is_error == [length < needed for length in LENGTHS]


@pytest.mark.parametrize("number", [2**31, 2**58, 2**60, 2**62, 2**63 - 1])
def test_a_window_beyond_every_contig(tmp_path: Path, number: int) -> None:
    folder = worlds.write(tmp_path, {NAME: worlds.random_sequence(200, 1)})
    worlds.execute(
        folder / "windows.db", f"UPDATE window_mappings SET window_in_seq_idx = {number} WHERE window_idx = 1"
    )
    needed = number * worlds.STRIDE + worlds.T
    with worlds.dataset(folder) as dataset, pytest.raises(MissingSequence, match=f"at least {needed} bases"):
        dataset[1]
