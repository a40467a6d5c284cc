"""What all commands share: examples, exit status and types in words in their help; suggestions for mistyped paths."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

EXAMPLES = {
    "build": (
        "build genomes --out sequence_db_dir",
        "build reads.jsonl.zst --out sequence_db_dir --sample READS --text-field sequence",
        "build 'plasmids/*.fna' --out sequence_db_dir --tag PLASMID --jobs 8",
    ),
    "split": (
        "split sequence_db_dir --out splits --val 0.1 --test 0.1",
        "split sequence_db_dir --out splits --by contig",
    ),
    "precompute": (
        "precompute splits windows",
        "precompute splits/train_split.parquet train_windows.db --window-size 8192 --keep-tail --pack",
    ),
    "index": ("index sequence_db_dir windows", "index --at s3://bucket/sequence_db_dir windows"),
    "fetch": ("fetch s3://bucket/sequence_db_dir sequence_db_dir --windows windows/train_windows.db",),
    "export": (
        "export windows/train_windows.db train.parquet --sequences sequence_db_dir --to parquet",
        "export windows/train_windows.db train --sequences sequence_db_dir --to indexed --order stream",
    ),
    "pack": ("pack windows", "pack windows/train_windows.db --seed 7 --force"),
    "bench": ("bench sequence_db_dir windows/train_windows.db --max-workers 2",),
    "verify": (
        "verify sequence_db_dir windows",
        "verify sequence_db_dir windows --full --jobs 8 --json",
    ),
    "stats": ("stats sequence_db_dir windows", "stats sequence_db_dir --by sample --json"),
    "show": (
        "show sequence_db_dir windows/train_windows.db 17",
        "show sequence_db_dir windows/train_windows.db --step 100 --global-batch-size 8",
    ),
    "report": ("report report.html sequence_db_dir windows",),
    "doctor": ("doctor", "doctor sequence_db_dir --json"),
}
"""Command lines of each command, without the name of the program."""

FAILED = {
    "verify": "1 findings, or an error in the data or the machine",
    "doctor": "1 something needed is broken, or an error in the data or the machine",
}
"""What exit status 1 means, where it does not only mean an error."""

_WORDS: dict[Any, str] = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


def epilog(name: str) -> str:
    """Return the end of the help of a command: plain text that is also Markdown."""
    lines = "\n".join(f"    sharded-eden {line}" for line in EXAMPLES[name])
    failed = FAILED.get(name, "1 an error in the data or the machine")
    return (
        f"Examples:\n\n{lines}\n\nExit status: 0 done; {failed}; 2 wrong use of the\ncommand; 130 stopped with Ctrl-C."
    )


class Command(TyperCommand):
    """A command whose help names types in words and ends with examples as they are written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        types = get_type_hints(inspect.unwrap(self.callback)) if self.callback else {}
        for param in self.params:
            if param.param_type_name == "option" and param.metavar is None and param.name in types:
                param.metavar = _word(types[param.name])
            if param.param_type_name == "argument":
                vars(param)["display_type_rich"] = lambda ctx: (
                    None
                )  # newer Typer prints `<list[Path]>` after an argument

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the epilog without joining its lines."""
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")


def _word(type_: Any) -> str | None:
    """Return what an option takes; None for switches."""
    if (origin := get_origin(type_)) is Literal:
        return "|".join(map(str, get_args(type_)))
    if origin is not None:
        return next((_word(each) for each in get_args(type_) if each is not NoneType), None)
    return _WORDS.get(type_)


def similar_paths(words: Sequence[str], message: str) -> list[str]:
    """Return existing paths with names similar to those paths of a command line that a message calls missing."""
    found = []
    for word in words:
        path = Path(word)
        try:
            if not path.name or word not in message or path.exists() or not path.parent.is_dir():
                continue
            names = [each.name for each in path.parent.iterdir() if not each.name.startswith(".")]
        except (OSError, ValueError):
            continue
        found += [str(path.with_name(name)) for name in difflib.get_close_matches(path.name, names, n=1)]
    return found


def add_commands(app: typer.Typer, functions: Sequence[Any]) -> None:
    """Add functions to an application as commands."""
    for function in functions:
        app.command(cls=Command, epilog=epilog(function.__name__))(function)
