"""Names that look like patterns, URLs or variables, or are not UTF-8: `split`, `precompute` and `pack` take them literally."""

from __future__ import annotations

import os
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import oracle
from sharded_eden import cli, pack_window_database, precompute_window_database, write_splits
from sharded_eden.windows.split_files import sequence_db_dir_of

NAMES = [
    "a[1]", "a*", "a?b", "{x}", "~x", "~", "$HOME", "a b", "a%20b", "a#b", "a?mode=rw", "é", "-n", "s3:", "a'b", "a\nb",
    os.fsdecode(b"\xff[1]"),
]  # fmt: skip
"""Names, each with the name of another file that it would match as a pattern."""
NEIGHBOURS = {"a[1]": "a1", "a*": "ab", "a?b": "axb", "{x}": "x"}


def contigs(bases: int) -> dict[str, str]:
    return {f"BCR__ECT-S{k}__CT1-1": "ACGT" * (bases // 4) for k in range(3)}


@pytest.fixture(params=NAMES, ids=[str(name.encode(errors="surrogateescape"))[2:-1] for name in NAMES])
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of sequence databases with an unusual name and contigs of 300 bases; the other folder has contigs of 100."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    oracle.write_sequence_dbs(tmp_path / request.param, contigs(300))
    if request.param in NEIGHBOURS:
        oracle.write_sequence_dbs(tmp_path / NEIGHBOURS[request.param], contigs(100))
    return request.param


def rows(path: Path) -> tuple[int, list[int], list[str]]:
    with closing(sqlite3.connect(f"file:/proc/self/fd/{os.open(path, os.O_RDONLY)}?mode=ro", uri=True)) as database:
        count = database.execute("SELECT count(*) FROM window_mappings").fetchone()[0]
        lengths = [length for (length,) in database.execute("SELECT length FROM contig_lengths")]
        tables = [table for (table,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    return count, lengths, tables


def test_the_functions(name: str) -> None:
    out = Path("out") / name
    for _ in range(2):  # the second run reads the splits of the first
        write_splits(name, out, val=0, test=0)
    split, windows = out / "train_split.parquet", out / f"{name}.db"
    if not name.endswith("]") or "\udcff" not in name:
        assert sequence_db_dir_of(split) == Path(name).absolute()
    for _ in range(2):
        result = precompute_window_database(split, windows, 100, 97)
        assert result.bases == 900
    copy = out / f"{name}.parquet"
    split.rename(copy)
    assert precompute_window_database(copy, windows, 100, 97).bases == 900
    pack_window_database(windows, lengths=copy)
    count, lengths, tables = rows(windows)
    assert (count, lengths) == (9, [300] * 3)
    assert "packs" in tables
    assert {path.name for path in out.iterdir()} <= {copy.name, windows.name, f"{windows.name}.index"}


def test_the_commands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(Path(name).absolute())
    assert cli.main(["split", path, "--out", f"{path}-splits", "--val", "0", "--test", "0"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (command,) = [line.removeprefix("Next: ") for line in out.split("\n") if line.startswith("Next: ")][:1]
    if name.isprintable():
        assert cli.main(shlex.split(command)[1:]) == 0
    windows = Path(f"{path}-splits/train_windows.db")
    assert cli.main(["precompute", f"{path}-splits/train_split.parquet", str(windows)]) == 0
    assert cli.main(["precompute", f"{path}-splits", f"{path}-windows"]) == 0
    assert cli.main(["pack", str(windows)]) == 0
    assert rows(windows)[:2] == (3, [300] * 3)
    assert rows(Path(f"{path}-windows/train_windows.db"))[:2] == (3, [300] * 3)
    assert capsys.readouterr().err == ""
