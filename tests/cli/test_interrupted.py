"""Ctrl-C, typed on a terminal while a command runs: a short message, no half-written file, and the same command goes on.

Each command is a real process with a terminal of its own, so that the kernel sends SIGINT to all processes of the command. It
is stopped when a sign shows that it is in the middle of its work: a file, or more than 0% in the progress bar.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import select
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sharded_eden import cli

BASES = bytes(b"ACGT"[value & 3] for value in range(256))
CTRL_C = b"\x03"
BAR = re.compile(rb" [1-9]\d?%")
TRIES = 10
"""How often a command that ends before it is stopped is started again."""


@dataclass(frozen=True)
class Ended:
    status: int
    said: str
    was_stopped: bool


def run_on_terminal(
    words: list[str], folder: Path, sign: Callable[[bytes], bool], stop: signal.Signals = signal.SIGINT
) -> Ended:
    """Run Python with a terminal, and type Ctrl-C (or send SIGKILL to all of its processes) when there is a sign."""
    master, slave = os.openpty()
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)
    environment = os.environ | {"TTY": os.ttyname(slave), "TERM": "xterm", "COLUMNS": "120", "TMPDIR": str(scratch)}
    on_terminal = ["sh", "-c", 'exec "$@" <"$TTY" >"$TTY" 2>&1', "sh", sys.executable, *words]
    process = subprocess.Popen(on_terminal, cwd=folder, env=environment, start_new_session=True)
    said, was_stopped, until = b"", False, time.monotonic() + 200
    try:
        while process.poll() is None or select.select([master], [], [], 0)[0]:
            assert time.monotonic() < until, said
            if select.select([master], [], [], 0.001)[0]:
                said += os.read(master, 65536)
            if not was_stopped and sign(said) and process.poll() is None:
                was_stopped = True
                if stop == signal.SIGINT:
                    os.write(master, CTRL_C)
                else:
                    os.killpg(process.pid, stop)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(slave)
        os.close(master)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode()).replace("^C", "").replace("\r", "\n")
    return Ended(process.returncode, plain, was_stopped)


def run_whole(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert cli.main([*shlex.split(line), "--quiet"]) == 0, line


def contents(folder: Path) -> dict[str, str]:
    """A hash of each file of a folder, of databases and tables by their rows; not of files that hold times of other files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name == "manifest.sqlite" or path.suffix in {".addresses", ".index"}:
            data = b""
        elif path.suffix == ".db":
            with closing(sqlite3.connect(path)) as database:
                tables = database.execute(
                    "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
                ).fetchall()
                rows = [database.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for (name,) in tables]
            data = repr((tables, rows)).encode()
        elif path.name == "contigs.parquet":
            data = repr(pl.read_parquet(path).sort("contig_id").rows()).encode()
        else:
            data = path.read_bytes()
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, and what each command takes from the one before."""
    folder = tmp_path_factory.mktemp("interrupted")
    choose = np.random.default_rng(17)
    (folder / "genomes").mkdir()
    for sample in range(8):
        contigs = (b">c%d\n%s\n" % (k, choose.bytes(2000).translate(BASES)) for k in range(500))
        (folder / f"genomes/s{sample:02}.fa").write_bytes(b"".join(contigs))
    with pytest.MonkeyPatch.context() as patch:
        run_whole("build genomes --out seqs --jobs 1", folder, patch)
        run_whole("split seqs --out splits --val 0.2 --test 0.2", folder, patch)
        run_whole("precompute splits windows --window-size 64 --stride 32", folder, patch)
    return folder


WINDOWS = "../data/windows"
BUILD, FETCH = "samples that are complete are kept", "files that are complete are kept"
AGAIN = "it begins again"
COMMANDS = {
    "build": ("build ../data/genomes --out new --jobs 1", "new/*/*.sqlite", BUILD),
    "build --jobs 2": ("build ../data/genomes --out new --jobs 2", "new/*/*.sqlite", BUILD),
    "split": ("split ../data/seqs --out new", "new/.*.partial", AGAIN),
    "precompute": (
        "precompute ../data/splits new --window-size 64 --stride 32 --pack",
        "new/.train*.partial",
        "window databases that are complete stay, and the command makes the others",
    ),
    "precompute --jobs 2": (
        "precompute ../data/splits new --window-size 64 --stride 32 --jobs 2",
        "new/.train*.partial",
        "window databases that are complete stay, and the command makes the others",
    ),
    "index": ("index ../data/seqs windows", "windows/.train*.index.partial", "indexes that are complete stay"),
    "pack": ("pack windows", "windows/.train*.partial", AGAIN),
    "fetch": ("fetch {url} new --max-bandwidth 20", "new/*/*.sqlite", FETCH),
    "export --to parquet": (
        f"export {WINDOWS}/val_windows.db new --sequences ../data/seqs --to parquet", ".new.partial", AGAIN
    ),
    "export --to indexed": (
        f"export {WINDOWS}/train_windows.db new --sequences ../data/seqs --to indexed", ".new.bin.partial", AGAIN
    ),
    "report": (f"report new.html ../data/seqs {WINDOWS}", "", AGAIN),
    "verify": (f"verify ../data/seqs {WINDOWS} --full", "", AGAIN),
    "verify --jobs 2": (f"verify ../data/seqs {WINDOWS} --full --jobs 2", "", AGAIN),
    "stats": (f"stats ../data/seqs {WINDOWS}", "", AGAIN),
    "bench": (f"bench ../data/seqs {WINDOWS}/val_windows.db --max-workers 1", "", AGAIN),
}  # fmt: skip
"""{name: (command line, a file that shows that it is in the middle, or none for the progress bar, end of the message)}."""
ONLY_READ = {"verify", "verify --jobs 2", "stats", "bench"}


@pytest.fixture
def here(data: Path, tmp_path: Path) -> Path:
    """An empty folder beside the data, with a copy of the window databases."""
    (tmp_path / "data").symlink_to(data)
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def prepare(name: str, data: Path, here: Path) -> None:
    """Remove what the command made; index and pack get window databases again."""
    for path in here.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if name in {"index", "pack"}:
        (here / "windows").mkdir()
        for path in (data / "windows").glob("*.db"):
            shutil.copy2(path, here / "windows")


def stopped(name: str, data: Path, here: Path, stop: signal.Signals = signal.SIGINT) -> Ended:
    line, pattern, _ = COMMANDS[name]
    words = ["-m", "sharded_eden", *shlex.split(line.format(url=(data / "seqs").as_uri()))]

    def sign(said: bytes) -> bool:
        return any(here.glob(pattern)) if pattern else BAR.search(said) is not None

    for _ in range(TRIES):
        prepare(name, data, here)
        ended = run_on_terminal(words, here, sign, stop)
        if ended.status != 0:
            assert ended.was_stopped, ended.said
            return ended
    pytest.skip(f"{name} ended {TRIES} times before it could be stopped")


def check_the_rest(name: str, data: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that files with final names are whole, and that a second run gives what a run without a stop gives."""
    line = COMMANDS[name][0].format(url=(data / "seqs").as_uri())
    shutil.rmtree(here / "tmp")
    kept = contents(here)
    run_whole(line, here, monkeypatch)
    second = contents(here)
    if name == "pack":  # an unpacked database is whole, too
        unpacked = contents(data / "windows")
        kept = {path: of for path, of in kept.items() if of != unpacked.get(Path(path).name)}
    prepare(name, data, here)
    run_whole(line, here, monkeypatch)
    whole = contents(here)
    grows = {"contigs.parquet"}
    final = {path: of for path, of in kept.items() if "partial" not in path and Path(path).name not in grows}
    assert final.items() <= whole.items()
    assert second == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_leaves_nothing_half_written_and_says_how_to_go_on(
    name: str, data: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = stopped(name, data, here)
    assert ended.status == 130
    kept = COMMANDS[name][2]
    message = f"interrupted: no file is half-written. To go on, run the same command again: {kept}"
    assert [line for line in ended.said.split("\n") if line.strip() and not BAR.search(line.encode())][-1] == message
    assert "Traceback" not in ended.said
    assert {path.name for path in (here / "tmp").iterdir()} <= {f"torchinductor_{getpass.getuser()}"}  # by torch, empty
    assert not [path for path in here.rglob("*") if "partial" in path.name]
    if name in ONLY_READ:
        assert list(here.iterdir()) == [here / "tmp"]
    else:
        check_the_rest(name, data, here, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index", "pack"])
def test_a_killed_command_leaves_no_half_written_file_under_its_final_name(
    name: str, data: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = stopped(name, data, here, signal.SIGKILL)
    assert ended.status == -signal.SIGKILL
    check_the_rest(name, data, here, monkeypatch)


def test_ctrl_c_while_modules_are_loaded(tmp_path: Path) -> None:
    words = ["-X", "importtime", "-m", "sharded_eden", "stats", "nowhere"]
    ended = run_on_terminal(words, tmp_path, lambda said: b"polars" in said)
    assert ended.status == 130
    assert "\ninterrupted. To go on, run the same command again\n" in ended.said.replace("\n\n", "\n")
    assert "Traceback" not in ended.said
