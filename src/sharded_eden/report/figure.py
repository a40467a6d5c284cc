"""A figure of the report: its title, what it shows in words, the same data as a table, and its Plotly description.

Plotly is imported on first use. Colours come from the page (light or dark), so traces name none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sharded_eden.errors import MissingExtra

MAX_NAME = 36


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure."""

    title: str
    text: str
    """What it shows, in a sentence or two: the caption, and the text alternative."""
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    """Its data."""
    plot: str
    """Plotly's JSON: data and layout."""
    is_wide: bool = False
    height: int = 320


def graph_objects() -> Any:
    """Return the module `plotly.graph_objects`.

    Raises:
        MissingExtra: Plotly is not installed.
    """
    try:
        import plotly.graph_objects as objects
    except ImportError as error:
        raise MissingExtra("plotly", "report") from error
    return objects


def plot_of(traces: Sequence[Any], *, x: str, y: str, **layout: Any) -> str:
    """Return a figure as JSON that can stand in a <script> element.

    Args:
        traces: Plotly traces.
        x: title of the x axis.
        y: title of the y axis.
        layout: further settings of Plotly's layout.
    """
    objects = graph_objects()
    figure = objects.Figure(data=list(traces))
    figure.update_layout(xaxis_title_text=x, yaxis_title_text=y, **layout)
    found = figure.to_plotly_json()
    found["layout"].pop("template", None)
    plain = json.loads(figure.__class__(data=found["data"]).to_json())["data"]
    text = json.dumps({"data": plain, "layout": found["layout"]}, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def label(name: str) -> str:
    """Return a name for a legend or an axis: short, and without what Plotly takes for markup."""
    half = MAX_NAME // 2
    short = name if len(name) <= MAX_NAME else f"{name[:half]}…{name[-half + 1 :]}"
    return escape("".join(each if each.isprintable() else "?" for each in short), quote=False)


def labels(names: Iterable[str]) -> list[str]:
    """Return a label for each bar; those of different names differ, as Plotly adds up bars with the same label."""
    found: list[str] = []
    for name in names:
        short, again = label(name), 1
        text = short
        while text in found:
            again += 1
            text = f"{short} ({again})"
        found.append(text)
    return found


def number(value: Any) -> str:
    """Return a value of a table: 1,234, 0.123, 12.3%."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def percent(share: float | None) -> str:
    """Return a share: 12.3%, with more digits near 0 and 1, so that neither is stated unless it is exact."""
    if share is None:
        return "-"
    if share in {0, 1}:
        return f"{share:.0%}"
    texts = [f"{share:.{digits}%}" for digits in (1, 2, 3, 4, 6, 9, 12)]
    return next((text for text in texts if float(text[:-1]) not in {0, 100}), texts[-1])
