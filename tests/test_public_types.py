"""The public names have complete types: the program of a user who uses all of them passes `mypy --strict`, and runs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sharded_eden

pytest.importorskip("plotly")
PROGRAM = Path(__file__).parent / "helpers" / "every_public_name.py"
SOURCE = Path(sharded_eden.__file__).parents[1]


def test_the_program_uses_every_public_name() -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(PROGRAM.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "se"
    }
    assert used == set(sharded_eden.__all__)


@pytest.mark.slow
def test_the_program_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_types_of_the_program(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import sharded_eden\nn: int = sharded_eden.extract_sample_id(3)\n")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file",
        os.devnull,
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    env = {**os.environ, "MYPYPATH": str(SOURCE)}
    done = subprocess.run(
        [*command, str(PROGRAM), str(wrong)], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stdout.splitlines() if line.startswith((PROGRAM.name, str(PROGRAM)))]
    assert ours == [], done.stdout
    found = [line for line in done.stdout.splitlines() if line.startswith(("wrong.py", str(wrong)))]
    assert len(found) == 2, done.stdout + done.stderr
