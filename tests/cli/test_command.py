"""What all commands share: examples that run, exit status, suggestions, types in words, colours."""

from __future__ import annotations

import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import worlds

from sharded_eden import cli
from sharded_eden.cli.reference import EXAMPLES

COMMANDS = typer.main.get_command(cli.app).commands
ELSEWHERE = {"fetch", "bench", "report"}
"""Examples that need a server, seconds of time or the extra report; their tests are elsewhere."""


def write_fasta(path: Path, seed: int) -> None:
    contigs = ["".join(random.Random(2 * seed + number).choices("ACGT", k=9_000)) for number in range(2)]
    path.write_text("".join(f">c{number}\n{text}\n" for number, text in enumerate(contigs)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("genomes", "plasmids"):
        (folder / name).mkdir()
    for number in range(20):
        write_fasta(folder / f"genomes/g{number}.fna", number)
    write_fasta(folder / "plasmids/p.fna", 50)
    bases = "".join(random.Random(99).choices("ACGT", k=9_000))
    (folder / "reads.jsonl").write_text(f'{{"record": "r", "sequence": "{bases}"}}\n')
    return folder


@pytest.mark.slow
def test_examples_run_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(folder)
    ran = []
    for name in EXAMPLES:
        for example in EXAMPLES[name]:
            words = [
                word.replace("reads.jsonl.zst", "reads.jsonl")
                for word in shlex.split(example.replace("--jobs 8", "--jobs 2"))
            ]
            assert words[0] == name
            if name in ELSEWHERE or "s3://" in example:
                with COMMANDS[name].make_context(name, words[1:]):  # the command line takes it
                    continue
            if "--by contig" in example:
                words[words.index("splits")] = "splits-by-contig"
            assert cli.main(words) == 0, (example, capsys.readouterr().err)
            ran.append(name)
    assert set(ran) == set(COMMANDS) - ELSEWHERE


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_purpose_examples_types_in_words_and_exit_status(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert COMMANDS[name].help
    for example in EXAMPLES[name]:
        assert f"\n    sharded-eden {example}\n" in out
    words = " ".join(out.split())
    assert re.search(r"Exit status: 0 done; 1 .*; 2 wrong use of the command; 130 stopped with Ctrl-C\.$", words)
    options = out[out.index("All commands:" if name == "doctor" else "Options:") : out.index("Examples:")]
    assert not re.search(r"<(int|str|float|path|list|Path)|\bNone\b", options)


def test_options_say_what_they_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", "--help"]) == 0
    out = capsys.readouterr().out
    for words in ("--out PATH", "--tag TEXT", "--jobs N", "--engine local|ray", "--sample NAME"):
        assert words in out
    assert "--force " in out


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        ("biuld genomes --out db", "build"),
        ("build genomes --out db --sampel-regex x", "--sample-regex"),
        ("build genomse --out db", "Did you mean genomes?"),
        ("split plasmid --out s", "Did you mean plasmids?"),
        ("precompute genomes/g1.fn w.db", "Did you mean genomes/g1.fna?"),
    ],
)
def test_what_is_mistyped_gets_a_suggestion(
    line: str, suggestion: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(shlex.split(line)) != 0
    assert suggestion in capsys.readouterr().err


def test_only_what_is_missing_gets_a_suggestion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A contig is missing, not the file that a word of the command line resembles."""
    monkeypatch.chdir(worlds.write(tmp_path))
    worlds.execute(worlds.sample_db(tmp_path, "S1"), "DELETE FROM sequences")
    (tmp_path / "ex.parquet").touch()
    assert cli.main(["export", "windows.db", "out", "--sequences", "seqs", "--to", "parquet"]) == 1
    error = capsys.readouterr().err
    assert "no such contig" in error
    assert "Did you mean" not in error


def test_paths_without_a_similar_name_get_no_suggestion(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for path in ("xyzzy", "nowhere/at/all"):
        assert cli.main(["split", path, "--out", "s"]) == 1
        assert "Did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "build genomes --out db --jobs 0",
        "build genomes --out db --sample A --sample-regex x",
        "split plasmids --out s --val 2",
        "precompute s w --window-size 0",
        "pack w.db --seq-length 64",
        "index plasmids",
        "bench plasmids w.db --seconds 0",
        "verify plasmids w.db --windows-read -1",
        "stats plasmids --sample 2",
        "export w.db out --sequences plasmids --to indexed --epochs 0",
        "report",
    ],
)
def test_wrong_use_is_status_2_in_every_command(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.lower().count("error") >= 1


@pytest.mark.slow
def test_no_color_leaves_out_colours(folder: Path) -> None:
    sequences, windows = folder / "colours", folder / "colours.db"
    env = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    env.pop("NO_COLOR", None)

    def run(*words: str | Path, **more: str) -> str:
        command = [sys.executable, "-m", "sharded_eden", *map(str, words)]
        return subprocess.run(command, env={**env, **more}, capture_output=True, text=True, check=True).stdout

    run("build", folder / "plasmids", "--out", sequences)
    run("split", sequences, "--out", folder / "colour-splits", "--val", "0", "--test", "0")
    run("precompute", folder / "colour-splits/train_split.parquet", windows, "--window-size", "64")
    colour = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|9[0-7])[;m]")
    assert colour.search(run("show", sequences, windows, "0"))
    assert not colour.search(run("show", sequences, windows, "0", NO_COLOR="1"))
