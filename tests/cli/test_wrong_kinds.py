"""Every command names what it was given in the place of something else."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest
import worlds

from sharded_eden import ShardedEdenDataset, cli
from sharded_eden.errors import UsageError

SEQDB, WINDOWS = "a folder of sequence databases", "a window database"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = worlds.write(tmp_path_factory.mktemp("kinds"))
    for name in ("db", "splits"):
        (folder / name).mkdir()
    shutil.copy(folder / "windows.db", folder / "db" / "train_windows.db")
    pl.DataFrame({"contig_id": ["A__ECT-S__C"], "length": [9]}).write_parquet(folder / "splits" / "train_split.parquet")
    return folder


@pytest.mark.parametrize(
    ("command", "found", "expected"),
    [
        ("split windows.db --out o", WINDOWS, SEQDB),
        ("split db --out o", "a folder of window databases", SEQDB),
        ("split splits --out o", "a folder of split files", SEQDB),
        ("precompute seqs o", SEQDB, "a folder of split files"),
        ("precompute windows.db o", WINDOWS, "a Parquet file"),
        ("pack seqs", SEQDB, f"{WINDOWS} or a folder of window databases"),
        ("pack splits", "a folder of split files", f"{WINDOWS} or a folder of window databases"),
        ("pack splits/train_split.parquet", "a Parquet file", f"{WINDOWS} or a folder of window databases"),
        ("index seqs seqs", SEQDB, f"{WINDOWS} or a folder of window databases"),
    ],
)
def test_commands_name_what_they_were_given(folder, monkeypatch, capsys, command, found, expected):
    monkeypatch.chdir(folder)
    assert cli.main(command.split()) == 2
    assert f" is {found}; expected {expected}" in capsys.readouterr().err
    assert not (folder / "o").exists()


@pytest.mark.parametrize("command", ["bench", "verify"])
def test_commands_that_measure_and_check_exit_with_2(folder, monkeypatch, capsys, command):
    """Swapped arguments are a wrong command line. Status 1 of `verify` means that it found something."""
    monkeypatch.chdir(folder)
    assert cli.main([command, "windows.db", "seqs"]) == 2
    assert f"SEQDB: windows.db is {WINDOWS}; expected {SEQDB}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("database", "found"),
    [
        ("windows.db", WINDOWS),
        ("seqs/{0}/glm_dataset_{0}.sqlite", "a sequence database"),
        ("other.db", "a SQLite database"),
    ],
)
def test_build_names_a_database(folder, monkeypatch, capsys, database, found):
    monkeypatch.chdir(folder)
    path = database.format(next((folder / "seqs").glob("*/*.sqlite")).parent.name)
    with closing(sqlite3.connect("other.db")) as other:
        other.execute("CREATE TABLE IF NOT EXISTS t (x)")
    assert cli.main(["build", path, "--out", "o"]) == 1
    assert f"{path}: is {found}; expected a file of sequences" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["split s3://a/b --out o", "precompute s3://a/b o", "precompute splits s3://a/b"])
def test_a_url_is_quoted_as_it_was_given(folder, monkeypatch, capsys, command):
    monkeypatch.chdir(folder)
    assert cli.main(command.split()) == 2
    assert "'s3://a/b' is a URL" in capsys.readouterr().err
    assert not (folder / "s3:").exists()


@pytest.mark.parametrize(
    ("windows", "found"),
    [("seqs", SEQDB), ("db", "a folder of window databases"), ("splits", "a folder of split files")],
)
def test_opening_names_what_it_was_given(folder, windows, found):
    with pytest.raises(UsageError, match=f"window_db_path: .* is {found}; expected {WINDOWS}"):
        ShardedEdenDataset.open(folder / "seqs", folder / windows)
