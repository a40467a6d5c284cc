"""Windows derived from a window database equal those that `precompute` makes of its split."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import worlds
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from sharded_eden import ShardedEdenDataset, Stream, StreamBatchSampler, pack_window_database
from sharded_eden.derive import derived_window_database
from sharded_eden.errors import DatabaseError, GeometryMismatch, MissingDatabase, WriteError
from sharded_eden.format.geometry import WindowGeometry, default_stride
from sharded_eden.windows.precompute import precompute_window_database

CONTIGS = {
    f"{'BCR' if k % 2 else 'Meta'}__ECT-S{k % 3}__CT1-{k}": worlds.random_sequence(length, k)
    for k, length in enumerate([5, 30, 63, 64, 65, 130, 400, 1000, 77, 64])
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    worlds.oracle.write_sequence_dbs(tmp_path / "seqs", CONTIGS)
    pl.DataFrame({"contig_id": list(CONTIGS), "length": [len(s) for s in CONTIGS.values()]}).write_parquet(
        tmp_path / "split.parquet"
    )
    precompute(tmp_path, "windows.db", 64, 50)
    return tmp_path


def precompute(folder: Path, name: str, *arguments: int, **options) -> Path:
    precompute_window_database(
        folder / "split.parquet", folder / name, *arguments, sequences=folder / "seqs", **options
    )
    return folder / name


def open_split(folder: Path, name: str = "windows.db", seq_length: int = 64, **options) -> ShardedEdenDataset:
    return ShardedEdenDataset(None, folder / "seqs", folder / name, seq_length, rc_aug=True, **options)


def assert_equal(one: ShardedEdenDataset, other: ShardedEdenDataset) -> None:
    assert len(one) == len(other) > 0
    assert (one.fingerprint, one.geometry, one.rows) == (other.fingerprint, other.geometry, other.rows)
    for name in ("window_mappings", "contig_lengths"):
        query = f"SELECT * FROM {name}"
        assert worlds.query(Path(one.window_db_path), query) == worlds.query(Path(other.window_db_path), query)
    for k in range(len(one)):
        a, b = one[3, k], other[3, k]
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(("size", "stride"), [(128, 100), (128, None), (32, 20), (64, 13), (1500, 1000), (40, 60)])
@pytest.mark.parametrize("options", [{}, {"window_min_length_threshold": 30}])
@pytest.mark.filterwarnings("ignore:stride=60 is more than")
def test_derived_windows_equal_precomputed_ones(folder, size, stride, options):
    wanted = precompute(folder, "wanted.db", size, default_stride(size) if stride is None else stride, **options)
    with (
        open_split(folder, seq_length=size, stride=stride, derive_windows=True, **options) as derived,
        open_split(folder, wanted.name, size) as expected,
    ):
        assert derived.window_db_path != str(wanted)
        assert_equal(derived, expected)
        assert Path(f"{derived.window_db_path}.index").is_file()


@pytest.mark.parametrize("options", [{"keep_tail": True}, {"special_tokens": 7}, {"window_min_length_threshold": 63}])
def test_tails_special_tokens_and_thresholds_stay(folder, options):
    precompute(folder, "source.db", 64, 50, **options)
    wanted = precompute(folder, "wanted.db", 128, 90, **options)
    with (
        open_split(folder, "source.db", 128, stride=90, derive_windows=True) as derived,
        open_split(folder, wanted.name, 128) as expected,
    ):
        assert_equal(derived, expected)


def test_packs_are_those_of_the_same_seed(folder):
    precompute(folder, "source.db", 64, 50, pack=True, pack_seed=7)
    wanted = precompute(folder, "wanted.db", 256, 200, pack=True, pack_seed=7)
    with (
        open_split(folder, "source.db", 256, stride=200, derive_windows=True, packed=True) as derived,
        open_split(folder, wanted.name, 256, packed=True) as expected,
    ):
        assert_equal(derived, expected)


def test_the_same_geometry_opens_the_database_itself(folder):
    before = sorted(os.listdir(folder))
    with open_split(folder, derive_windows=True) as dataset:
        assert dataset.window_db_path == str(folder / "windows.db")
        assert dataset.stride == 50
    assert sorted(os.listdir(folder)) == before


def test_the_same_geometry_without_packs_is_not_taken_for_a_packed_one(folder):
    paths = folder / "windows.db", folder / "seqs"
    with pytest.raises(DatabaseError, match=r"windows\.db holds no packs. Add them: sharded-eden pack"):
        derived_window_database(*paths, window_size=64, pack=True)
    pack_window_database(folder / "windows.db")
    assert derived_window_database(*paths, window_size=64, pack=True) == folder / "windows.db"


def test_a_derived_database_is_made_once_and_in_the_folder_of_choice(folder):
    (folder / "derived").mkdir()
    paths = set()
    for _ in range(2):
        with open_split(folder, seq_length=128, stride=90, derive_windows=folder / "derived") as dataset:
            paths.add((dataset.window_db_path, os.stat(dataset.window_db_path).st_ino))
    assert [path for path, _ in paths] == [str(folder / "derived" / "windows.128-90.db")]
    assert sorted(p.name for p in (folder / "derived").iterdir()) == [
        ".windows.128-90.db.lock", "windows.128-90.db", "windows.128-90.db.index",
    ]  # fmt: skip


def test_without_the_option_the_check_is_strict(folder):
    with pytest.raises(
        GeometryMismatch, match=r"window_size=64; the dataset asks for seq_length=128.*derive_windows=True"
    ):
        open_split(folder, seq_length=128)
    with pytest.raises(GeometryMismatch, match="stride=50; the dataset asks for stride=51"):
        open_split(folder, stride=51)


@pytest.mark.filterwarnings("ignore:.*holds no window")
def test_left_out_windows_are_refused(folder):
    precompute(folder, "ambiguous.db", 64, 50, max_ambiguous=0.5)
    precompute(folder, "short.db", 64, 50, window_min_length_threshold=60)
    precompute(folder, "none.db", 64, 50, window_min_length_threshold=600)
    worlds.oracle.write_window_db(folder / "foreign.db", CONTIGS, 64, 50)
    for name, options, words in (
        ("ambiguous.db", {}, "max-ambiguous.*precompute SPLIT.parquet .*ambiguous.128.db .*--max-ambiguous 0.5"),
        ("short.db", {"window_min_length_threshold": 59}, "threshold=60, the dataset asks for 59"),
        ("none.db", {}, "left out all windows"),
        ("foreign.db", {}, "no lengths of contigs"),
    ):
        with pytest.raises(GeometryMismatch, match=words):
            open_split(folder, name, 128, stride=90, derive_windows=True, **options)
    assert not list(folder.glob("*.128-90*"))


def test_changed_windows_are_refused(folder):
    path = folder / "windows.db"
    for statements in (
        ["DELETE FROM window_mappings WHERE window_idx = (SELECT max(window_idx) FROM window_mappings)",
         "UPDATE metadata SET value = value - 1 WHERE key = 'total_windows'"],
        ["UPDATE contig_lengths SET length = length + 50 WHERE first_window_idx = 0"],
        ["UPDATE contig_lengths SET length = 'x' WHERE first_window_idx = 0"],
        ["UPDATE window_mappings SET window_in_seq_idx = 1 WHERE window_idx = 0"],
    ):  # fmt: skip
        copy = folder / "changed.db"
        shutil.copy(path, copy)
        worlds.execute(copy, *statements)
        with pytest.raises(GeometryMismatch, match="cannot be derived"):
            derived_window_database(copy, folder / "seqs", window_size=128)
        assert not list(folder.glob("changed.128*"))


def test_another_file_with_the_name_is_refused(folder):
    precompute(folder, "windows.128-90.db", 128, 90)
    with pytest.raises(GeometryMismatch, match=r"was not derived.*rm "):
        open_split(folder, seq_length=128, stride=90, derive_windows=True)
    (folder / "windows.128-90.db").unlink()
    open_split(folder, seq_length=128, stride=90, derive_windows=True).close()
    pl.DataFrame({"contig_id": list(CONTIGS)[:3], "length": [5, 30, 63]}).write_parquet(folder / "split.parquet")
    precompute(folder, "windows.db", 64, 50, overwrite=True)
    with pytest.raises(GeometryMismatch, match=r"derived from other windows.*rm "):
        open_split(folder, seq_length=128, stride=90, derive_windows=True)


def test_a_folder_that_does_not_exist(folder):
    with pytest.raises(MissingDatabase, match="no such folder for derived"):
        open_split(folder, seq_length=128, derive_windows=folder / "absent")


def test_a_folder_whose_name_is_not_utf_8(folder):
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))
    odd.mkdir()
    shutil.copy(folder / "windows.db", odd / "windows.db")
    path = derived_window_database(odd / "windows.db", folder / "seqs", window_size=32)
    wanted = derived_window_database(folder / "windows.db", folder / "seqs", window_size=32)
    assert path.read_bytes() == wanted.read_bytes()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(folder):
    folder.chmod(0o555)
    try:
        with pytest.raises(WriteError, match="derive_windows='FOLDER'"):
            open_split(folder, seq_length=128, derive_windows=True)
    finally:
        folder.chmod(0o755)


def _derive(folder: Path) -> tuple[str, int]:
    path = derived_window_database(folder / "windows.db", folder / "seqs", window_size=128, stride=90)
    return str(path), path.stat().st_ino


def test_several_processes_derive_one_database(folder):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(_derive, [folder] * 6, chunksize=1))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_the_stream_of_derived_windows_has_one_hash(folder, packed):
    """Whatever the workers, start methods, ranks, micro batches and restarts: that of the precomputed database."""
    precompute(folder, "wanted.db", 128, 90, pack=True)
    with open_split(folder, "wanted.db", 128, packed=packed) as expected:
        stream = Stream(expected)
        wanted = hash_of(stream[k]["tokens"] for k in range(48))
    with open_split(folder, seq_length=128, stride=90, derive_windows=True, packed=packed) as derived:
        for ranks, micro, workers, method in (
            (1, 1, 0, None), (1, 2, 1, "fork"), (2, 1, 4, "fork"), (1, 4, 1, "spawn"), (2, 4, 0, None), (4, 2, 0, None),
        ):  # fmt: skip
            rows = {}
            for first, last in ((0, 16), (16, 48)):  # stopped after 16 rows, and resumed
                stream = Stream(derived, num_samples=last)
                for rank in range(ranks):
                    options = {
                        "micro_batch_size": micro, "global_batch_size": 8, "rank": rank, "data_parallel_size": ranks,
                        "consumed_samples": first,
                    }  # fmt: skip
                    positions = list(StreamBatchSampler(stream, **options))
                    loader = DataLoader(
                        stream, batch_sampler=StreamBatchSampler(stream, **options), num_workers=workers,
                        multiprocessing_context=method, collate_fn=derived.collate_fn,
                    )  # fmt: skip
                    for batch, of_batch in zip(loader, positions, strict=True):
                        rows.update(zip(map(int, of_batch), batch["tokens"], strict=True))
            assert hash_of(rows[k] for k in range(48)) == wanted, (ranks, micro, workers, method)


def hash_of(rows: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.numpy().tobytes())
    return digest.hexdigest()


@given(st.integers(1, 20_000), st.integers(0, 20))
def test_the_default_stride_leaves_no_gap(window_size, special_tokens):
    stride = default_stride(window_size, special_tokens)
    assert 1 <= stride <= max(1, window_size - special_tokens)
    if window_size >= 1024:
        assert stride == window_size - 200


@pytest.mark.filterwarnings("ignore:stride=")
def test_the_result_says_how_often_a_base_is_shown(folder):
    choose = random.Random(1)
    for _ in range(20):
        size = choose.randrange(20, 200)
        stride, keep_tail = choose.randrange(1, size), choose.random() < 0.5
        result = precompute_window_database(
            folder / "split.parquet", folder / "shown.db", size, stride, keep_tail=keep_tail, overwrite=True
        )
        geometry = WindowGeometry(window_size=size, stride=stride, keep_tail=keep_tail)
        lengths = np.array([len(s) for s in CONTIGS.values()])
        shown = sum(
            min(geometry.usable, length - k * stride)
            for length, count in zip(lengths.tolist(), geometry.counts(lengths).tolist(), strict=True)
            for k in range(count)
        )
        assert result.shown_bases == shown
