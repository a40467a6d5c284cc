"""Runs the blocks of a page of the manual in order, and compares what they print with what the page shows.

- `console`: lines that begin with `$ ` run in a shell; the lines below each are its output.
- `python`: all blocks of a page share their names, as in one notebook; a `text` block below one is its output.
- A comment before a block leaves it out: `<!-- not run: REASON -->`, or `<!-- run by: TEST -->`.

White space is compared as one space. Decimal fractions may differ by a twentieth. Three dots match any text.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from sharded_eden import EdenWarning

BLOCK = re.compile(
    r"(?:<!-- (?P<reason>(?:not run|run by): [^>]+) -->\n+)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
FRACTION = re.compile(r"(\d[\d,]*\.\d+)")
TOLERANCE = 0.05


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    reason: str | None
    """Why it is not run here."""


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page that have a language."""
    return [Block(m["language"], m["text"], m["reason"]) for m in BLOCK.finditer(page.read_text())]


def run(page: Path, folder: Path) -> None:
    """Run all blocks of a page in a folder, which must be the current one."""
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = [block for block in blocks_of(page) if block.reason is None]
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block.language == "console":
            for command, output in commands_of(block.text):
                compare(_shell(command, folder), output, command)
        elif block.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", EdenWarning)
                exec(compile(block.text, page.name, "exec"), names)
            compare(
                printed.getvalue(), after.text if after is not None and after.language == "text" else "", block.text
            )


def commands_of(text: str) -> list[tuple[str, str]]:
    """Return the commands of a console block and the output below each."""
    parts = re.split(r"^\$ ", text, flags=re.M)
    assert not parts[0].strip(), parts[0]
    found = []
    for part in parts[1:]:
        lines = part.splitlines(keepends=True)
        count = 1
        while lines[count - 1].endswith("\\\n"):
            count += 1
        found.append(("".join(lines[:count]), "".join(lines[count:])))
    return found


def _shell(command: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or "exit status" in command, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def compare(printed: str, shown: str, where: str) -> None:
    """Compare output with what the page shows; a page may leave an output out."""
    if not shown.strip():
        return
    is_same = re.fullmatch(_pattern(shown), " ".join(printed.split()), flags=re.S)
    theirs = [] if is_same is None else [float(value.replace(",", "")) for value in is_same.groups()]
    ours = [float(value.replace(",", "")) for value in FRACTION.findall(shown)]
    close = [abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) for a, b in zip(theirs, ours, strict=is_same is not None)]
    is_right = is_same is not None and all(close)
    assert is_right, f"{where}\nprinted:\n{printed}\nthe page shows:\n{shown}"


def _pattern(shown: str) -> str:
    words = " ".join(shown.split()).split("...")
    parts = (FRACTION.split(word) for word in words)
    return ".*?".join(
        "".join(r"(\d[\d,]*\.\d+)" if k % 2 else re.escape(text) for k, text in enumerate(part)) for part in parts
    )
