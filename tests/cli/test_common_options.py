"""`--json`, `--quiet` and `--verbose` of every command."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from sharded_eden import cli
from sharded_eden.cli.reference import KEYS, PRINTS_RESULT

LINES = {
    "build": "build genomes --out seqs --jobs 1",
    "split": "split seqs --out splits --val 0.3 --test 0.3",
    "precompute": "precompute splits windows --window-size 64 --stride 50 --pack",
    "pack": "pack windows",
    "index": "index seqs windows/train_windows.db",
    "verify": "verify seqs windows --full",
    "stats": "stats seqs windows/train_windows.db --by sample",
    "show": "show seqs windows/train_windows.db 1",
    "bench": "bench seqs windows/train_windows.db --max-workers 0 --seconds 0.01 --batch-size 2",
    "report": "report report.html seqs windows",
    "doctor": "doctor",
    "export": "export windows/train_windows.db train.parquet --sequences seqs --to parquet",
    "fetch": "fetch {url} copy",
}
"""Each command once, in an order in which they can run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    (folder / "genomes").mkdir()
    for name in "abcdef":
        letters = "".join(random.Random(name).choices("ACGT", k=900))
        (folder / f"genomes/{name}.fa").write_text(f">c\n{letters}\n")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def words(name: str, folder: Path) -> list[str]:
    for package, command in {"plotly": "report", "obstore": "fetch"}.items():
        if name == command:
            pytest.importorskip(package)
    return [word.format(url=(folder / "seqs").as_uri()) for word in LINES[name].split()]


def test_every_command_has_a_line_and_documented_keys() -> None:
    commands = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert LINES.keys() == KEYS.keys() == commands


@pytest.mark.parametrize("name", LINES)
def test_json_is_one_object_with_the_documented_keys(name: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main([*words(name, folder), "--json"]) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    result = json.loads(out)
    of_steps = {"step", "global_batch_size", "seed"} if name == "show" else set()
    assert set(result) == KEYS[name].keys() - of_steps
    assert "{" not in err


def test_json_of_other_forms(folder: Path, capsys: pytest.CaptureFixture) -> None:
    step = ["show", "seqs", "windows/train_windows.db", "--step", "0", "--global-batch-size", "3", "--json"]
    assert cli.main(step) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"step", "global_batch_size", "seed", "windows"}
    assert set(result) <= KEYS["show"].keys()
    assert len(result["windows"]) == 3
    pytest.importorskip("obstore")
    at = ["index", "--at", (folder / "seqs").as_uri(), "windows/train_windows.db", "--json"]
    assert cli.main(at) == 0
    assert [set(each) for each in json.loads(capsys.readouterr().out)["indexes"]] == [
        {"path", "url", "objects", "size_bytes"}
    ]


@pytest.mark.parametrize("name", LINES)
def test_quiet_prints_only_what_the_command_is_run_for(
    name: str, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a bar would be drawn
    assert cli.main([*words(name, folder), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert bool(out) == (name in PRINTS_RESULT)


def test_quiet_keeps_errors_and_leaves_out_warnings(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["split", "nowhere", "--out", "o", "--quiet"]) == 1
    assert capsys.readouterr().err.startswith("error: nowhere: no such folder")
    line = ["precompute", "splits/train_split.parquet", "w.db", "--window-size", "64", "--stride", "90"]
    assert cli.main([*line, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main([*line, "--force"]) == 0
    assert capsys.readouterr().err.startswith("warning: stride=90")


def test_verbose_says_what_a_report_of_a_fault_needs(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["stats", "seqs", "windows/train_windows.db", "--verbose", "--json"]) == 0
    out, err = capsys.readouterr()
    json.loads(out)
    for text in ("sharded-eden ", "Python ", "polars ", "(a window database, ", "took ", " MB of memory at most"):
        assert text in err
    assert cli.main(["split", "nowhere", "--out", "o", "-v"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert cli.main(["split", "nowhere", "--out", "o"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert cli.main(["stats", "seqs", "-q", "-v"]) == 2


def test_an_unexpected_error_says_where_it_happened_and_how_to_report_it(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(cli.split, "write_splits", fail)
    assert cli.main(["split", "seqs", "--out", "o"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: unexpected KeyError: 'x' (cli/")
    assert "--verbose" in err
    assert "Traceback" not in err
    assert cli.main(["split", "seqs", "--out", "o", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_bars_are_as_long_as_the_numbers_say(capsys: pytest.CaptureFixture) -> None:
    rates = [10.0, 5.0, 0.0, None]
    assert [cli.bench.bar(rate or 0.0, rates) for rate in rates] == ["#" * 30, "#" * 15, "", ""]
    assert cli.bench.bar(0.0, [0.0]) == ""


def test_progress_of_a_folder_names_split_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(cli.precompute, "progress_bar", lambda what: _Noting(notes))
    assert cli.main(["precompute", "splits", "packed", "--window-size", "64", "--stride", "50", "--pack"]) == 0
    assert set(notes) >= {f"{split}: {step}" for split in ("train", "val", "test") for step in ("contigs", "packing")}


class _Noting:
    """Progress that keeps what it is told."""

    def __init__(self, notes: list[str]) -> None:
        self.note = notes.append

    def __enter__(self) -> _Noting:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, done: int, total: int) -> None: ...
