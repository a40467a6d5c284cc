"""From numbers to Markdown and JSON: ratios first, absolute figures small beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Table:
    """One table of a result."""

    title: str
    note: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [f"### {self.title}", "", *([self.note, ""] if self.note else [])]
        lines += ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


@dataclass
class Result:
    """The result of one part of the benchmarks."""

    name: str
    title: str
    tables: list[Table]
    data: dict[str, Any]
    """Everything that was measured, for JSON."""


def ratio(value: float) -> str:
    """Return a ratio with three digits: `0.98`, `1.63`, `41.2`, `9,120`."""
    if value >= 100:
        return f"{value:,.0f}x"
    return f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"


def small(text: str) -> str:
    """Return text in small print."""
    return f"<sub>{text}</sub>"


def rate(windows_per_second: float) -> str:
    """Return a rate in small print."""
    digits = 0 if windows_per_second >= 10 else 1
    return small(f"{windows_per_second:,.{digits}f}/s")


def verdict(value: float, target: float, *, at_most: bool = False) -> str:
    """Return a ratio and its target."""
    reached = value <= target if at_most else value >= target
    sign = "at most" if at_most else "at least"
    return f"{'**' if reached else ''}{ratio(value)}{'**' if reached else ''} {small(f'{sign} {target:,g}')}"


def write(result: Result, machine: dict[str, str], quick: bool, folder: Path) -> str:
    """Write `<name>.md` and `<name>.json`; return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    where = "; ".join(f"{name} {value}" for name, value in machine.items())
    text = f"## {result.title}\n\n" + ("A quick run on less data: for a look, not to be quoted.\n\n" if quick else "")
    text += "\n".join(table.markdown() for table in result.tables)
    text += f"\n{small(where)}\n"
    (folder / f"{result.name}.md").write_text(text)
    (folder / f"{result.name}.json").write_text(
        json.dumps({"machine": machine, "quick": quick, **result.data}, indent=1, default=str) + "\n"
    )
    return text
