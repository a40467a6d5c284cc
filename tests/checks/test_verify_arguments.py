"""`verify` and `bench`: swapped arguments, folders, names that look like patterns, and the manifest."""

from __future__ import annotations

import re
import shutil

import numpy as np
import polars as pl
import pytest
import worlds
from faults import World
from worlds import execute, query, random_sequence, sample_db

from sharded_eden import ShardedEdenDataset, bench, build_sequence_dbs, cli, stats, verify
from sharded_eden.errors import UsageError
from sharded_eden.format.parquet import write_parquet


def windows_folder(world: World):
    folder = world.folder / "windows"
    folder.mkdir()
    for name in ("train", "val"):
        shutil.copy(world.folder / f"{name}.db", folder / f"{name}_windows.db")
    return folder


def test_verify_and_bench_accept_the_folder_of_window_databases(world):
    folder = windows_folder(world)
    result = verify(world.seqs, [folder])
    assert (result.window_databases, result.findings) == (2, [])
    assert bench(world.seqs, folder, seconds=0.01, max_workers=0, batch_size=1).windows > 0


def test_swapped_arguments_name_both_kinds(world):
    folder = windows_folder(world)
    sample = sample_db(world.folder, "S1")
    for sequences, windows, words in (
        (
            world.train,
            world.seqs,
            f"SEQDB: {world.train} is a window database; expected a folder of sequence databases",
        ),
        (folder, folder, f"SEQDB: {folder} is a folder of window databases"),
        (
            world.seqs,
            world.seqs,
            f"WINDOWS.db: {world.seqs} is a folder of sequence databases; expected a window database",
        ),
        (world.seqs, sample, f"WINDOWS.db: {sample} is a sequence database"),
        (world.seqs, world.train.with_suffix(".parquet"), "is a Parquet file; expected a window database"),
        ("ftp://bucket/seqs", world.train, "SEQDB: 'ftp://bucket/seqs' is a URL"),
        (world.seqs, "ftp://bucket/w.db", "is a URL"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            verify(sequences, [windows])
        with pytest.raises(UsageError, match=re.escape(words)):
            bench(sequences, windows, seconds=0.01, max_workers=0)
    assert cli.main(["verify", str(world.train), str(world.seqs)]) == 2


@pytest.mark.parametrize(
    "name", ["data[1]", "a*", "a?b", "{x}", "~x", "$HOME", "a b", "a%20b", "a#b", "a?mode=rw", "é"]
)
def test_folders_whose_names_look_like_patterns(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for folder, length in ((name, 300), ("data1", 100), ("ab", 100)):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in/s.fa").write_text(f">a\n{random_sequence(length, length)}\n")
        build_sequence_dbs([tmp_path / "in"], tmp_path / folder)
    result = verify(name, full=True)
    assert (result.bases, result.findings) == (300, [])
    table = pl.DataFrame({"sample": ["s"], "contig_id": ["x"], "length": [1], "name": ["x"]})
    write_parquet(table, tmp_path / name / "contigs.parquet", {})
    assert [finding.check for finding in verify(name, full=True).findings] == ["table"]


def test_a_changed_base_is_found_by_the_hash_of_the_manifest(tmp_path):
    (tmp_path / "in").mkdir()
    sequence = random_sequence(9000, 1)
    (tmp_path / "in/s.fa").write_text(f">a\n{sequence}\n>b\nACGT\n")
    build_sequence_dbs([tmp_path / "in"], tmp_path / "seqs")
    assert verify(tmp_path / "seqs", full=True).findings == []
    other = sequence[:5000] + ("A" if sequence[5000] != "A" else "C") + sequence[5001:]
    execute(sample_db(tmp_path, "s"), ("UPDATE sequences SET nt_sequence = ? WHERE rowid = 1", (other,)))
    assert [finding.check for finding in verify(tmp_path / "seqs", full=True).findings] == ["content"]


def test_two_swapped_overflow_pages_are_found(tmp_path):
    (tmp_path / "in").mkdir()
    sequence = random_sequence(60_000, 1)
    (tmp_path / "in/s.fa").write_text(f">a\n{sequence}\n")
    build_sequence_dbs([tmp_path / "in"], tmp_path / "seqs")
    path = sample_db(tmp_path, "s")
    data = bytearray(path.read_bytes())
    ((size,),) = query(path, "PRAGMA page_size")
    # An overflow page holds the number of the next one (4 bytes), then letters.
    pages = [at for at in range(size, len(data), size) if data[at + 4 : at + size].isalpha()]
    first, second = pages[0], pages[1]
    one, other = data[first + 4 : first + size], data[second + 4 : second + size]
    data[first + 4 : first + size], data[second + 4 : second + size] = other, one
    path.write_bytes(data)
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert [finding.check for finding in verify(tmp_path / "seqs", full=True).findings] == ["content"]


def test_verify_is_never_clean_where_opening_fails(tmp_path):
    """A sample whose name ends in `__` is not found again in its sequence IDs."""
    worlds.write(tmp_path)
    shutil.move(tmp_path / "seqs/S0", tmp_path / "seqs/a__")
    (tmp_path / "seqs/a__/glm_dataset_S0.sqlite").rename(tmp_path / "seqs/a__/glm_dataset_a__.sqlite")
    for sample in ("S1", "S2.X"):
        shutil.rmtree(tmp_path / "seqs" / sample)
    for full in (False, True):
        assert not verify(tmp_path / "seqs", [tmp_path / "windows.db"], full=full).is_clean


def test_the_dataset_names_swapped_arguments(world):
    folder = windows_folder(world)
    for sequences, windows, words in (
        (world.train, world.seqs, f"sequence_db_dir: {world.train} is a window database"),
        (world.seqs, folder, f"window_db_path: {folder} is a folder of window databases; expected a window database"),
        ("ftp://bucket/seqs", world.train, "'ftp://bucket/seqs' is a URL"),
        (world.seqs, "ftp://bucket/w.db", "'ftp://bucket/w.db' is a URL"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            ShardedEdenDataset(None, sequences, windows, 64, stride=50)
    shutil.copy(world.train, world.seqs / "train_windows.db")  # window databases may lie beside the samples
    ShardedEdenDataset(None, world.seqs, world.seqs / "train_windows.db", 64, stride=50).close()
    assert verify(world.seqs, [world.seqs]).findings == []


def test_numpy_seeds(world):
    assert (
        verify(world.seqs, [world.train], seed=np.int64(3)).findings
        == verify(world.seqs, [world.train], seed=3).findings
    )
    one, two = (stats(world.seqs, sample=0.5, seed=seed) for seed in (np.int64(3), 3))
    assert repr(one) == repr(two)
