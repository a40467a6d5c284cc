"""Every command that messages recommend is one that the command line takes, and all of them come from one module."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer

import sharded_eden
from sharded_eden.cli import app
from sharded_eden.format import commands
from sharded_eden.format.geometry import WindowGeometry

ROOT = Path(sharded_eden.__file__).parent
ODD = "-odd 'name' *.db"
"""A path that a shell or the command line could take for something else."""

GEOMETRY = WindowGeometry(window_size=64, stride=50, min_length=7, special_tokens=5, keep_tail=True)

CASES = {
    "build_command": [
        (commands.build_command(ODD), {"out": ODD, "force": False}),
        (commands.build_command("seqdb", force=True), {"out": "seqdb", "force": True}),
    ],
    "split_command": [
        (commands.split_command(), {"seqdb": "SEQDB", "out": "DIR", "by": "sample"}),
        (commands.split_command(ODD, ODD, by_contig=True), {"seqdb": ODD, "out": ODD, "by": "contig"}),
        (commands.split_command(group_similar=True), {"seqdb": "SEQDB", "out": "DIR", "group_similar": True}),
    ],
    "precompute_command": [
        (commands.precompute_command(ODD), {"split_file": "SPLIT.parquet", "windows_db": ODD, "pack": False}),
        (commands.precompute_command("w.db", pack=True), {"pack": True, "pack_seed": 42, "force": False}),
        (
            commands.precompute_command(
                "w.db",
                split=ODD,
                geometry=GEOMETRY,
                max_ambiguous=0.25,
                sequences=ODD,
                metadata={"total_packs": 3, "pack_seed": -7},
                force=True,
            ),
            {
                "split_file": ODD,
                "windows_db": "w.db",
                "window_size": 64,
                "stride": 50,
                "window_min_length_threshold": 7,
                "special_tokens": 5,
                "keep_tail": True,
                "max_ambiguous": 0.25,
                "sequences": ODD,
                "pack": True,
                "pack_seed": -7,
                "force": True,
            },
        ),
    ],
    "pack_command": [
        (commands.pack_command(ODD), {"windows_db": ODD, "seed": 42, "sequences": None}),
        (commands.pack_command("w.db", seed=-7, sequences=ODD), {"seed": -7, "sequences": ODD}),
        (commands.pack_command("w.db", seed="not a number"), {"seed": 42}),
    ],
    "verify_command": [
        (commands.verify_command(), {"sequence_dbs": "SEQDB", "windows_dbs": [], "full": False}),
        (
            commands.verify_command(ODD, ODD, "w.db", full=True),
            {"sequence_dbs": ODD, "windows_dbs": [ODD, "w.db"], "full": True},
        ),
    ],
    "stats_command": [
        (commands.stats_command(), {"paths": ["SEQDB", "WINDOWS.db"]}),
        (commands.stats_command(ODD, "w.db"), {"paths": [ODD, "w.db"]}),
    ],
    "bench_command": [
        (commands.bench_command(), {"sequence_dbs": "SEQDB", "windows_db": "WINDOWS.db"}),
        (commands.bench_command(ODD, ODD), {"sequence_dbs": ODD, "windows_db": ODD}),
    ],
    "report_command": [
        (commands.report_command(), {"out": "OUT.html", "sequence_dbs": "SEQDB", "logs": None}),
        (commands.report_command(logs=True), {"windows_dbs": ["WINDOWS.db"], "logs": "FOLDER"}),
    ],
    "pack_by_tokens_command": [
        (
            commands.pack_by_tokens_command(ODD, 1024),
            {
                "windows_db": ODD,
                "tokenizer": "tokenizer.json",
                "seq_length": 1024,
                "sequences": "SEQDB",
                "force": False,
            },
        ),
        (commands.pack_by_tokens_command("w.db", 64, force=True), {"force": True}),
    ],
    "index_command": [
        (commands.index_command(), {"seqdb": "SEQDB", "windows_dbs": ["WINDOWS.db"]}),
        (commands.index_command(ODD, ODD), {"seqdb": "./" + ODD, "windows_dbs": [ODD]}),
    ],
    "index_at_command": [
        (commands.index_at_command("s3://b/x"), {"at": "s3://b/x", "seqdb": "WINDOWS.db", "windows_dbs": []}),
    ],
    "fetch_command": [
        (commands.fetch_command("s3://b/x"), {"url": "s3://b/x", "folder": "DIR"}),
        (commands.fetch_command("s3://b/x", ODD, "w.db"), {"url": "s3://b/x", "folder": ODD, "windows": ["w.db"]}),
    ],
}
"""{function: commands that it makes, and what the command line makes of each}."""

NO_COMMANDS = {"quoted", "sibling"}


def parsed(command: str) -> dict[str, object]:
    """Return what the command line understands, without running it; paths as text."""
    name, *words = shlex.split(command)
    assert name == "sharded-eden"
    group = typer.main.get_command(app)
    with group.make_context(name, list(words)) as context:
        _, subcommand, rest = group.resolve_command(context, words)
        with subcommand.make_context(subcommand.name, rest, parent=context) as inner:
            return {key: plain(value) for key, value in inner.params.items()}


def plain(value: object) -> object:
    """Return paths as text without a leading `./`: Typer 0.19 makes paths of arguments later than newer versions do."""
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return str(value).removeprefix("./") if isinstance(value, (str, Path)) else value


def test_every_function_has_a_case():
    functions = {
        name
        for name, value in vars(commands).items()
        if inspect.isfunction(value) and value.__module__ == commands.__name__ and not name.startswith("_")
    }
    assert functions == CASES.keys() | NO_COMMANDS


@pytest.mark.parametrize(("command", "expected"), [case for cases in CASES.values() for case in cases])
def test_the_command_line_takes_it(command, expected):
    found = parsed(command)
    assert {name: plain(found[name]) for name in expected} == {name: plain(value) for name, value in expected.items()}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("sharded-eden build IN --out x --seqs y", "No such option"),
        ("sharded-eden prepare IN", "No such command"),
        ("sharded-eden pack", "Missing parameter"),
    ],
)
def test_a_wrong_command_is_refused(wrong, message):
    with pytest.raises(Exception, match=message):
        parsed(wrong)


def test_messages_write_no_commands_themselves():
    names = "|".join(typer.main.get_command(app).commands)
    literal = re.compile(rf"sharded-eden ({names})\b")
    found = []
    for path in ROOT.rglob("*.py"):
        if path == Path(commands.__file__):
            continue
        tree = ast.parse(path.read_text())
        documentation = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documentation
            and literal.search(node.value)
        ]
    assert found == []
