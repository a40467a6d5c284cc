"""Writes docs/cli.md from the commands: `make cli-page`. `tests/test_manual.py` compares the page with the commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from sharded_eden.cli import app
from sharded_eden.cli.help import COMMON, summary
from sharded_eden.cli.reference import GROUPS, KEYS

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

BEGINNING = """\
# Commands of sharded-eden

Generated from the commands by `make cli-page`. `sharded-eden COMMAND --help` prints the same.
`python -m sharded_eden` is the same program.

- Results go to standard output; progress, warnings and errors to standard error. Progress is a bar on a terminal, and a line
  a minute elsewhere.
- `--json` prints the result of any command as one JSON object; nothing else goes to standard output. The keys are listed with
  each command. New keys may be added; these stay ([stability](stability.md)).
- `--quiet` (`-q`) prints no progress, no warnings and no summary, only errors. The commands that are run for what they print
  (`verify`, `stats`, `show`, `bench`, `doctor`) still print it, and so does `--json`.
- `--verbose` (`-v`) adds what a report of a fault needs to standard error: versions, the files and their kinds, log messages,
  times, memory, and the traceback of an error.
- `--help` (`-h`) of a command lists its options, everyday ones first.
- Exit status: 0 done, or nothing to do; 1 an error in the data or the machine (`verify`: findings); 2 wrong use of the
  command, such as an option that does not fit; 130 stopped with Ctrl-C. Each error is one message. A mistyped command, option
  or path gets a suggestion.
- Progress bars and colours appear only on terminals, and no colours if `NO_COLOR` is set.
- Output files appear under their names when they are complete. A command that failed or was stopped can be run again unchanged.
- `sharded-eden --install-completion` sets up completion of commands and options with Tab for the current shell (bash, zsh,
  fish, PowerShell), from the next terminal on. `eval "$(sharded-eden --show-completion)"` does so in this terminal only.
- A shell expands `*` before the command sees it: quote patterns.

The usual order: [`build`](#sharded-eden-build), [`split`](#sharded-eden-split), [`precompute`](#sharded-eden-precompute),
[`verify`](#sharded-eden-verify), then training. `bench` measures how fast a split loads, and `doctor` shows what is installed.
"""


def page() -> str:
    """Return the page as the commands describe themselves."""
    group = typer.main.get_command(app)
    parts = [BEGINNING]
    with typer.Context(group) as context:
        for heading, names in GROUPS.items():
            parts.append(f"**{heading}**\n")
            parts += [f"* [`{name}`](#sharded-eden-{name}): {summary(group.commands[name])}" for name in names]
            parts.append("")
        for name in group.list_commands(context):
            parts += _command(name, group.commands[name], context)
    return "\n".join(line.rstrip() for part in parts for line in part.split("\n")).strip() + "\n"


def _command(name: str, command: Any, context: typer.Context) -> Iterator[str]:
    """Yield the section of a command."""
    yield f"## `sharded-eden {name}`\n"
    yield f"{_plain(command.help)}\n"
    yield "```console"
    yield f"$ sharded-eden {name} {' '.join(command.collect_usage_pieces(context))}"
    yield "```\n"
    for heading, records in command.sections(context):
        if heading == COMMON:
            continue  # they are the same for all commands
        yield f"**{heading}**:\n"
        yield from (f"* `{option}`: {_plain(words)}" for option, words in records)
        yield ""
    if legend := command.legend(context):
        yield f"{legend}\n"
    yield f"{command.epilog}\n"
    yield "Keys of `--json`:\n"
    yield from (f"* `{key}`: {meaning}" for key, meaning in KEYS[name].items())
    yield ""


def _plain(text: str) -> str:
    """Return text in which Markdown finds no HTML element."""
    element = r"(?<![`\w])[\w/(?]*(?:<\w+>(?:[\w/)]|\.(?=[\w.)]))*)+(?!`)"
    return re.sub(element, lambda found: f"`{found[0]}`", text)


if __name__ == "__main__":
    PAGE.write_text(page())
