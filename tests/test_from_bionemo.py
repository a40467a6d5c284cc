"""`docs/from-bionemo.md`: its code runs and prints what the page shows, and every statement of its tables names a test."""

from __future__ import annotations

import ast
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import oracle
import sharded_eden
from sharded_eden import cli

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "from-bionemo.md").read_text()
TEST = r"(tests(?:_bridge)?/\S+\.py)::(test_\w+)"


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_statement_of_the_tables_names_a_test():
    section = PAGE[PAGE.index("## What is identical") : PAGE.index("## Checkpoints")]
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| what |")]
    assert len(rows) >= 15
    for row in rows:
        assert re.search(TEST, row), row


def test_the_tests_that_the_page_names_exist():
    named = re.findall(TEST, PAGE)
    assert len(named) >= 20
    for path, name in named:
        assert name in functions_of(ROOT / path), f"{path}::{name}"


def test_diffs_import_what_exists():
    added = re.findall(r"^\+(from (sharded_eden\S*) import (\w+))$", PAGE, flags=re.MULTILINE)
    assert len(added) == 3
    for _, module, name in added:
        if module == "sharded_eden":
            assert name in sharded_eden.__all__
        else:  # needs Megatron Bridge
            path = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
            assert f"class {name}(" in path.read_text()


def test_the_call_of_the_recipes_is_the_one_that_is_tested_under_bridge():
    """The same keywords, in the same order, as in tests_bridge/test_options.py, which needs Megatron Bridge."""

    def keywords(code: str) -> list[str | None]:
        calls = [
            node
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "ShardedEdenDatasetProvider"
        ]
        return [keyword.arg for keyword in calls[0].keywords]

    text = (ROOT / "tests_bridge" / "test_options.py").read_text()
    tested = text[text.index("def test_the_call_of_the_recipes") :]
    assert keywords(blocks("python")[0]) == keywords(tested[: tested.index("\ndef ")])


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_switch_runs_and_prints_what_the_page_shows(tmp_path):
    (command,) = (line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines())
    words = shlex.split(command)
    assert words[0] == "python"
    first, *others = blocks("python")[1:]
    subprocess.run([sys.executable, "-W", "error", "-c", first], cwd=tmp_path, check=True)
    made = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    # The first block makes the databases; what the others use of it are its names.
    again = first.replace("os.makedirs(", "os.makedirs('again/' + ").replace('connect(f"', 'connect(f"again/')
    code = "\n".join([again, *others])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(blocks("text"))


JOINED = """
SELECT w.window_idx, substr(s.nt_sequence, w.window_in_seq_idx * ? + 1, ?)
FROM windows.window_mappings AS w JOIN sequences AS s ON s.contig_id = w.sequence_id ORDER BY w.window_idx
"""


def test_the_queries_of_the_specification_read_what_is_written_here(tmp_path, monkeypatch):
    """By the sqlite3 module alone: tables, columns, file names, and SUBSTR over a JOIN with the attached window database."""
    monkeypatch.chdir(tmp_path)
    contigs = {f"c{k}": "ACGTTGCA" * (40 + k) for k in range(3)}
    Path("SAMPLE1.fa").write_text("".join(f">{name}\n{bases}\n" for name, bases in contigs.items()))
    for command in (
        "build SAMPLE1.fa --out db",
        "split db --out splits --val 0 --test 0",
        "precompute splits/train_split.parquet train_windows.db --window-size 64 --stride 50",
        "index db train_windows.db",
    ):
        assert cli.main(command.split()) == 0
    with closing(sqlite3.connect("db/SAMPLE1/glm_dataset_SAMPLE1.sqlite")) as database:
        columns = "SELECT name, type, pk FROM {}pragma_table_info('{}'{})"
        assert database.execute(columns.format("", "sequences", "")).fetchall() == [
            ("contig_id", "TEXT", 1),
            ("nt_sequence", "TEXT", 0),
        ]
        database.execute("ATTACH 'train_windows.db' AS windows")
        assert database.execute(columns.format("", "window_mappings", ", 'windows'")).fetchall() == [
            ("window_idx", "INTEGER", 1),
            ("sequence_id", "TEXT", 0),
            ("window_in_seq_idx", "INTEGER", 0),
        ]
        metadata = dict(database.execute("SELECT key, value FROM windows.metadata"))
        assert (metadata["window_size"], metadata["stride"]) == (64, 50)
        rows = database.execute(JOINED, (50, 64)).fetchall()
    expected = [
        bases[number * 50 : number * 50 + 64]
        for bases in contigs.values()
        for number in oracle.windows_of(len(bases), 64, 50)
    ]
    assert rows == list(enumerate(expected))


@pytest.mark.parametrize("page", ["nemo.md"])
def test_the_page_of_nemo_is_marked_historical(page):
    assert "Historical" in (ROOT / "docs" / page).read_text()[:200]
