"""`precompute` of a folder of splits, over processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import worlds

from sharded_eden import cli, precompute_window_database
from sharded_eden.errors import EdenWarning, InputError, UsageError
from sharded_eden.windows.folder import precompute_window_databases, splits_of_folder


def write_splits(folder: Path, **contigs: dict[str, int]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lengths in contigs.items():
        columns = {"contig_id": list(lengths), "length": list(lengths.values())}
        schema = {"contig_id": pl.String, "length": pl.Int64}
        pl.DataFrame(columns, schema=schema).write_parquet(folder / f"{name}_split.parquet")
    return folder


def splits_of_worlds(folder: Path) -> Path:
    lengths = {name: len(text) for name, text in worlds.CONTIGS.items()}
    ids = list(lengths)
    train, val = ({name: lengths[name] for name in part} for part in (ids[:3], ids[3:]))
    return write_splits(folder, train=train, val=val, test={})


@pytest.mark.parametrize("jobs", [1, 3])
def test_each_split_becomes_what_it_becomes_by_itself(tmp_path: Path, jobs: int) -> None:
    folder = worlds.write(tmp_path / "world")
    splits = splits_of_worlds(tmp_path / "splits")
    options = {"max_ambiguous": 0.4, "sequences": folder / "seqs", "pack": True, "keep_tail": True, "pack_seed": 3}
    told: list[tuple[int, int]] = []
    notes: list[str] = []
    with pytest.warns(EdenWarning, match="test_windows.db holds no window"):
        results = precompute_window_databases(
            splits,
            tmp_path / "out",
            jobs=jobs,
            window_size=64,
            stride=50,
            progress=lambda *at: told.append(at),
            note=notes.append,
            **options,
        )
    assert list(results) == ["test", "train", "val"]
    written = [f"{name}_windows.db{suffix}" for name in results for suffix in ("", ".index")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (3000, 3000) or told[-1][0] >= 2500
    assert {total for _, total in told} == {3000}
    assert set(notes) >= {f"{name}: {step}" for name in ("train", "val") for step in ("contigs", "packing")}
    for name, result in results.items():
        if result.windows:
            alone = precompute_window_database(
                splits / f"{name}_split.parquet", tmp_path / f"{name}.db", 64, 50, **options
            )
            assert alone.windows == result.windows
            assert alone.packs == result.packs
            assert (tmp_path / f"{name}.db").read_bytes() == result.path.read_bytes()


def test_the_command_takes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = write_splits(tmp_path / "splits", train={"a": 30_000, "b": 5}, val={"c": 9})
    assert cli.main(["precompute", str(splits), str(tmp_path / "out"), "--jobs", "2"]) == 0
    out = capsys.readouterr().out
    for name in ("train", "val"):
        assert f"{name}_window_db_path='{tmp_path}/out/{name}_windows.db'" in out
        path = tmp_path / "out" / f"{name}_windows.db"
        assert cli.main(["pack", str(tmp_path / "out")]) == 0
        assert worlds.query(path, "SELECT count(*) FROM packs") > [(0,)]
        assert worlds.query(path, "SELECT max(window_idx) + 1 FROM window_mappings") == [(4 if name == "train" else 1,)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_refused_names_the_split_and_leaves_the_others_whole(tmp_path: Path, jobs: int) -> None:
    splits = write_splits(tmp_path / "splits", good={"a": 30_000}, wrong={"b": -5})
    with pytest.raises(InputError, match=r"wrong_split\.parquet: row 0 has a negative length"):
        precompute_window_databases(splits, tmp_path / "out", jobs=jobs)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good_windows.db"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no split: .*sharded-eden split SEQDB"):
        precompute_window_databases(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UsageError, match="--jobs must be at least 1, not 0"):
        precompute_window_databases(splits, tmp_path / "out", jobs=0)


SLOW_SPLITS = """
import sys
from sharded_eden.windows.folder import precompute_window_databases, splits_of_folder
if __name__ == "__main__":
    precompute_window_databases(sys.argv[1], sys.argv[2], jobs=2)
"""


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def wait_until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["parent", "worker"])
def test_processes_that_are_killed_leave_nobody_behind(tmp_path: Path, whom: str) -> None:
    long = {f"BCR__ECT-S{k % 5}__CT1-{k}": 2_000_000_000 for k in range(60)}
    splits = write_splits(tmp_path / "splits", train=long, val=long)
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW_SPLITS, str(splits), str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: len(list(out.glob(".*.partial"))) == 2)
        workers = [pid for pid in children_of(process.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(workers) == 2
        os.kill(process.pid if whom == "parent" else workers[0], signal.SIGKILL)
        if whom == "worker":
            assert "a worker process died, most likely because memory ran out" in process.communicate(timeout=60)[1]
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    small = write_splits(tmp_path / "splits", train={"a": 5}, val={"b": 5})
    precompute_window_databases(small, out)
    assert sorted(path.name for path in out.iterdir()) == ["train_windows.db", "val_windows.db"]


@pytest.mark.parametrize("name", ["val_split.PARQUET", "val_split.pq", "val_SPLIT.parquet"])
def test_a_split_with_another_ending_is_not_left_out(tmp_path: Path, name: str) -> None:
    for each in ("train_split.parquet", name):
        pl.DataFrame({"contig_id": ["BCR__ECT-S__CT1-1"], "length": [500]}).write_parquet(tmp_path / each)
    with pytest.raises(InputError, match="may be a split, but its name does not end in _split"):
        splits_of_folder(tmp_path)
