"""`sharded-eden verify` compares the index of a window database with what SQLite reads."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import World, found, write_windows
from worlds import execute, random_sequence, sample_db

import oracle
from sharded_eden import cli, verify
from sharded_eden.checks.run import VerifyResult
from sharded_eden.format.index import IndexFile, index_path, write_index
from sharded_eden.windows.index import index_window_database

LENGTHS = (40, 700, 4_000, 4_062, 9_000, 20_000)
TRAIN = {
    f"{'BCR' if k % 2 else 'Meta'}__ECT-S{sample}__CT1-{k}": random_sequence(bases + sample, 10 * sample + k)
    for sample in range(3)
    for k, bases in enumerate(LENGTHS)
}
VAL = {f"BCR__ECT-V0__CT1-{k}": random_sequence(3_000, 90 + k) for k in range(2)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("addresses"))
    oracle.write_sequence_dbs(world.seqs, TRAIN | VAL)
    write_windows(world.train, TRAIN)
    write_windows(world.val, VAL)
    for path in (world.train, world.val):
        index_window_database(world.seqs, path)
    return world


@pytest.fixture
def world(sound: World, tmp_path: Path) -> World:
    """A copy with the same modification times; inodes differ, so the index is written again."""
    shutil.copytree(sound.folder, tmp_path / "world")
    for name in ("train.db", "val.db"):
        index_window_database(tmp_path / "world/seqs", tmp_path / "world" / name)
    return World(tmp_path / "world")


def rewrite(world: World, change: Any = None, **meta: Any) -> np.ndarray:
    """Write the index of the training split again with other entries, and checksums that fit them; return its runs."""
    path = index_path(world.train)
    file = IndexFile(path)
    runs = file.runs.copy()
    if change is not None:
        change(runs)
    kept = {name: value for name, value in file.meta.items() if name != "version"}
    write_index(path, kept | meta, file.samples.copy(), [runs])
    return runs


def of_addresses(result: VerifyResult) -> list[Any]:
    return [finding for finding in result.findings if finding.check == "addresses"]


@pytest.mark.slow
def test_a_sound_index_is_clean(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, full = world.verify(), world.verify(full=True)
    assert quick.findings == full.findings == []
    assert full.addresses_compared == full.windows
    assert 512 < quick.addresses_compared < full.windows
    assert world.verify(windows_read=0).addresses_compared == 0
    # Contigs that are read in pieces and by BLOB I/O; windows that are looked up and compared in small parts.
    monkeypatch.setattr("sharded_eden.checks.addresses.PIECE_BASES", 3_000)
    monkeypatch.setattr("sharded_eden.checks.addresses.WINDOWS_AT_ONCE", 7)
    monkeypatch.setattr("sharded_eden.checks.addresses.WINDOWS_PER_TASK", 50)
    assert world.verify(full=True).as_dict() == full.as_dict()
    monkeypatch.undo()
    assert world.verify(full=True, jobs=2).as_dict() == full.as_dict()


def set_run(name: str, add: int, run: int = -1):
    def change(runs: np.ndarray) -> None:
        runs[name][run] = int(runs[name][run]) + add

    change.__name__ = f"{name}{add:+}"
    return change


def tags_exchanged(runs: np.ndarray) -> None:
    runs["tag"] ^= 1


def no_such_sample(runs: np.ndarray) -> None:
    runs["sample"][-1] = 77


CHANGES = {
    set_run("at", 1): "has another base",
    set_run("local", -1): "",
    set_run("overflow", 1): "cannot be read",
    set_run("length", 1): "is of a contig of",
    set_run("length", -1): "is of a contig of",
    set_run("first_in_contig", 1): "begins at base",
    set_run("first_window", 1): "begins at base",
    set_run("sample", -1): "is of sample 'S2', here of 'S1'",
    no_such_sample: "is of sample 'S2', here of number 77 of 4",
    tags_exchanged: "has the control tag",
}


@pytest.mark.parametrize(("change", "what"), CHANGES.items(), ids=[change.__name__ for change in CHANGES])
def test_a_wrong_entry_is_found(world: World, change: Any, what: str) -> None:
    rewrite(world)
    assert world.verify(full=True).findings == []
    rewrite(world, change)
    for options in ({"full": True}, {"windows_read": 5_000}):
        (finding, *others) = of_addresses(world.verify(**options))
        assert not others
        assert finding.severity == "error"
        assert what in finding.what
        assert len(finding.what) < 1000
        assert finding.fix == f"sharded-eden index {world.seqs} {world.train}"
    assert cli.main(shlex.split(finding.fix)[1:]) == 0
    assert world.verify(full=True).findings == []


def test_an_entry_that_leads_to_another_contig_of_the_same_length_is_found(tmp_path: Path) -> None:
    world = World(tmp_path)
    contigs = {f"BCR__ECT-S0__CT1-{k}": random_sequence(6_000, k) for k in range(4)}
    oracle.write_sequence_dbs(world.seqs, contigs)
    write_windows(world.train, contigs)
    index_window_database(world.seqs, world.train)

    def exchange(runs: np.ndarray) -> None:
        for name in ("at", "overflow", "local"):
            runs[name][[0, 1]] = runs[name][[1, 0]]

    rewrite(world, exchange)
    for full in (False, True):
        (finding,) = verify(world.seqs, [world.train], full=full).findings
        assert "has another base 0 at its address than SQLite reads" in finding.what


def test_a_replaced_sample_is_found(world: World) -> None:
    path = sample_db(world.folder, "S1")
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    (finding,) = world.verify(full=True).findings
    assert (finding.check, finding.severity) == ("addresses", "warning")
    assert "1 sequence databases are not the files that were indexed, and are read by SQLite: 'S1'" in finding.what
    assert cli.main(shlex.split(finding.fix)[1:]) == 0
    assert world.verify(full=True).findings == []


def test_a_sample_that_was_changed_in_place_is_found(world: World) -> None:
    path = sample_db(world.folder, "S1")
    execute(path, "UPDATE sequences SET nt_sequence = replace(nt_sequence, 'A', 'C')")
    assert found(world.verify()) == {("addresses", "train.db.index")}


def test_an_index_of_another_window_database_is_found(world: World) -> None:
    shutil.copy2(index_path(world.val), index_path(world.train))
    (finding,) = world.verify().findings
    assert finding.severity == "warning"
    assert "it describes a window database of" in finding.what
    assert finding.fix == f"sharded-eden index {world.seqs} {world.train}"
    assert cli.main(shlex.split(finding.fix)[1:]) == 0
    assert world.verify().findings == []


@pytest.mark.parametrize(
    "meta", [{"stride": 51}, {"total_windows": 3}, {"tags": 7}, {"samples": None}, {"identity": "x"}]
)
def test_an_index_whose_metadata_do_not_fit_is_found(world: World, meta: dict[str, Any]) -> None:
    rewrite(world, **meta)
    for full in (False, True):
        (finding, *_) = of_addresses(world.verify(full=full))
        assert "sharded-eden index" in finding.fix


def test_a_truncated_index_and_a_damaged_block_are_found(world: World) -> None:
    path = index_path(world.train)
    whole = path.read_bytes()
    path.write_bytes(whole[:-500])
    (finding,) = world.verify().findings
    assert finding.severity == "warning"
    assert "not a whole index" in finding.what
    at = whole.index(b"runs.npy") + 400
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    (finding,) = world.verify().findings
    assert finding.severity == "error"
    assert "is damaged in its runs" in finding.what
    path.write_bytes(b"")
    assert found(world.verify()) == {("addresses", "train.db.index")}


def test_without_sequence_databases_runs_are_checked(world: World) -> None:
    rewrite(world, set_run("first_in_contig", 1))
    shutil.rmtree(world.seqs)
    world.seqs.mkdir()
    assert ("addresses", "train.db.index") in found(world.verify())


def test_json_and_the_printed_result(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["verify", str(world.seqs), str(world.train), str(world.val), "--full"]
    assert cli.main(line) == 0
    assert "compared with what SQLite reads" in capsys.readouterr().out
    rewrite(world, set_run("at", 1))
    assert cli.main([*line, "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    (finding,) = result["findings"]
    assert (finding["check"], finding["file"]) == ("addresses", str(index_path(world.train)))
    assert 0 < result["addresses_compared"] < result["windows"]
    os.remove(index_path(world.train))
    assert cli.main([*line, "--json"]) == 0
