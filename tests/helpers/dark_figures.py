"""Writes the dark variant of the flow figure, docs/flow-dark.svg: the same drawing with other colours."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"

DARK = {
    "#222": "#e6edf3", "#fff": "#0d1117", "#666": "#9da7b3", "#555": "#9da7b3", "#eef3fa": "#16263a", "#4c78a8": "#6ea8e0",
    "#fff4e6": "#3a2a12", "#f58518": "#f0a04b",
}  # fmt: skip


def dark(figure: str) -> str:
    """Return a figure in dark colours; every colour must have one."""
    return re.sub(r'"(#[0-9a-f]{3,6})"', lambda found: f'"{DARK[found[1]]}"', figure)


if __name__ == "__main__":
    (DOCS / "flow-dark.svg").write_text(dark((DOCS / "flow.svg").read_text()))
