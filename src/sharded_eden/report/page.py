"""Sections of figures -> one HTML page that works offline.

Input: sentences and figures. Output: HTML. Plotly's script is part of the page, and a content security policy forbids every
request. Colours follow `prefers-color-scheme`; the layout is one column on a phone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from sharded_eden.errors import MissingExtra
from sharded_eden.report.figure import Figure, number
from sharded_eden.report.verdicts import Verdict

MARKS = {"good": ("✓", "As promised"), "note": ("•", "Note"), "fault": ("✕", "Fault")}


@dataclass(kw_only=True)
class Section:
    """A part of the page."""

    title: str
    verdicts: Sequence[Verdict] = ()
    figures: Sequence[Figure] = ()
    text: str = ""


@dataclass(kw_only=True)
class Page:
    """The whole page."""

    title: str
    subtitle: str
    sections: list[Section] = field(default_factory=list)
    footer: str = ""


def html_of(page: Page) -> str:
    """Return the page as HTML.

    Raises:
        MissingExtra: Plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtra("plotly", "report") from error
    library = get_plotlyjs().replace("</script", "<\\/script")
    body = "\n".join(_section(section, number_) for number_, section in enumerate(page.sections))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(page.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header><h1>{escape(page.title)}</h1><p class="subtitle">{escape(page.subtitle)}</p></header>
{body}
<footer>{escape(page.footer)}</footer>
</main>
<script>{library}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _section(section: Section, place: int) -> str:
    parts = [f'<section aria-labelledby="s{place}"><h2 id="s{place}">{escape(section.title)}</h2>']
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.verdicts:
        items = "".join(_verdict(each) for each in section.verdicts)
        parts.append(f'<ul class="verdicts">{items}</ul>')
    if section.figures:
        figures = "\n".join(_figure(figure, f"{place}-{k}") for k, figure in enumerate(section.figures))
        parts.append(f'<div class="figures">{figures}</div>')
    return "\n".join([*parts, "</section>"])


def _verdict(verdict: Verdict) -> str:
    mark, name = MARKS[verdict.level]
    return (
        f'<li class="{verdict.level}"><span class="mark" role="img" aria-label="{name}">{mark}</span>'
        f"<span>{escape(verdict.text)}</span></li>"
    )


def _figure(figure: Figure, key: str) -> str:
    wide = ' class="wide"' if figure.is_wide else ""
    return f"""<figure{wide}>
<h3 id="t{key}">{escape(figure.title)}</h3>
<figcaption id="c{key}">{escape(figure.text)}</figcaption>
<div class="plot" role="img" aria-labelledby="t{key}" aria-describedby="c{key}" style="height:{figure.height}px"></div>
<script type="application/json">{figure.plot}</script>
<details><summary>Data as a table</summary><div class="scroll" tabindex="0" role="region" aria-labelledby="t{key}">
{"".join(_table(figure))}
</div></details>
</figure>"""


def _table(figure: Figure) -> Iterator[str]:
    yield "<table><thead><tr>"
    yield from (f'<th scope="col">{escape(column)}</th>' for column in figure.columns)
    yield "</tr></thead><tbody>"
    for row in figure.rows:
        first, *others = row
        yield (
            f'<tr><th scope="row">{_cell(first)}</th>'
            + "".join(f"<td>{_cell(value)}</td>" for value in others)
            + "</tr>"
        )
    yield "</tbody></table>"


def _cell(value: Any) -> str:
    return escape(number(value))


POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #ffffff; --text: #1d2430; --soft: #5a6475; --line: #dfe3ea;
  --good: #1a7f4b; --note: #5a6475; --fault: #b3261e; --fault-ground: #fdeceb;
  --c1: #2166ac; --c2: #d6702a; --c3: #2b8a5a; --c4: #8a56b8; --c5: #b8456f; --c6: #6b7d1e; --c7: #157f95; --c8: #7a6248; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161d; --card: #1b212b; --text: #e6eaf1; --soft: #a3adbd;
  --line: #323b49; --good: #5fca93; --note: #a3adbd; --fault: #ff8a80; --fault-ground: #3a2021;
  --c1: #6cb0f2; --c2: #f2a05c; --c3: #62c78f; --c4: #c196ea; --c5: #f08bae; --c6: #b9c95a; --c7: #5cc4d8; --c8: #c9ab8a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.25rem; margin: 40px 0 12px; }
h3 { font-size: 1rem; margin: 0; }
.subtitle, figcaption, footer { color: var(--soft); }
.subtitle { margin: 6px 0 0; }
footer { margin-top: 40px; font-size: 0.875rem; }
.verdicts { list-style: none; margin: 0 0 16px; padding: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.verdicts li { display: flex; gap: 12px; padding: 9px 16px; border-top: 1px solid var(--line); }
.verdicts li:first-child { border-top: 0; }
.mark { flex: none; width: 1.2em; text-align: center; font-weight: 700; }
.good .mark { color: var(--good); } .note .mark { color: var(--note); } .fault .mark { color: var(--fault); }
.verdicts .fault { background: var(--fault-ground); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 16px;
  align-items: start; }
figure { margin: 0; min-width: 0; padding: 16px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
figure.wide { grid-column: 1 / -1; }
figcaption { font-size: 0.875rem; margin: 4px 0 8px; }
.plot { width: 100%; min-width: 0; overflow: hidden; }
details { border-top: 1px solid var(--line); margin-top: 8px; padding-top: 8px; font-size: 0.875rem; }
summary { cursor: pointer; color: var(--soft); }
.scroll { overflow-x: auto; margin-top: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; } thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 400; }
@media (max-width: 560px) { main { padding: 20px 12px 32px; } figure { padding: 12px; } h1 { font-size: 1.4rem; } }
@media print { details { display: none; } figure { break-inside: avoid; } }
"""

SCRIPT = """
(function () {
  "use strict";
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const narrow = window.matchMedia("(max-width: 560px)");
  function layout(own) {
    const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true };
    return Object.assign({}, own, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
      font: { color: colour("soft"), family: "system-ui, sans-serif", size: narrow.matches ? 11 : 12 },
      colorway: [1, 2, 3, 4, 5, 6, 7, 8].map((k) => colour("c" + k)),
      margin: { l: 8, r: 12, t: 8, b: 8 }, dragmode: false,
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("text") } },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", traceorder: "normal" },
      xaxis: Object.assign({}, own.xaxis, axis, { nticks: narrow.matches ? 5 : undefined }),
      yaxis: Object.assign({}, own.yaxis, axis),
    });
  }
  function draw() {
    for (const plot of document.querySelectorAll(".plot")) {
      const spec = JSON.parse(plot.nextElementSibling.textContent);
      Plotly.react(plot, spec.data, layout(spec.layout), { responsive: true, displayModeBar: false });
    }
    document.documentElement.dataset.drawn = "yes";
  }
  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  narrow.addEventListener("change", draw);
})();
"""
