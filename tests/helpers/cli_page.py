"""Writes docs/cli.md from the commands: `make cli-page`. `tests/test_manual.py` compares the page with the commands."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from sharded_eden.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

BEGINNING = """\
# Commands of sharded-eden

Generated from the commands by `make cli-page`. `sharded-eden COMMAND --help` prints the same.
`python -m sharded_eden` is the same program.

- Results go to stdout; progress, warnings and errors to stderr. Progress is a bar on a terminal,
  and a line a minute elsewhere.
- Exit status: 0 done, or nothing to do; 1 an error in the data or the machine (`verify`: findings); 2 wrong use of the
  command, such as an option that does not fit; 130 stopped with Ctrl-C. Each error is one message.
- Colours and bars appear only on terminals, and no colours if `NO_COLOR` is set.
- Output files appear under their names when they are complete. A command that failed or was stopped can be run again unchanged.
- A shell expands `*` before the command sees it: quote patterns.

The usual order: [`build`](#sharded-eden-build), [`split`](#sharded-eden-split), [`precompute`](#sharded-eden-precompute),
[`verify`](#sharded-eden-verify), then training. `bench` measures how fast a split loads, and `doctor` shows what is installed.
"""


def page() -> str:
    """Return the page as the commands describe themselves."""
    group = typer.main.get_command(app)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group), name="sharded-eden")
    for name, command in group.commands.items():  # Typer cuts the summaries in its list of commands
        summary = (command.help or "").split("\n\n")[0].replace("\n", " ")
        line = f"* [`{name}`](#sharded-eden-{name}): {summary}"
        text = re.sub(rf"^\* `{name}`: .*$", lambda _, line=line: line, text, flags=re.MULTILINE)
    text = text[text.index("**Usage**") :]
    element = r"(?<![`\w])[\w/(?]*(?:<\w+>(?:[\w/)]|\.(?=[\w.)]))*)+(?!`)"
    text = re.sub(element, lambda found: f"`{found[0]}`", text)  # Markdown would take it for an HTML element
    return BEGINNING + "\n" + "\n".join(line.rstrip() for line in text.splitlines()).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
