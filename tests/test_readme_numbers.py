"""Every figure in the tables of the README is in `benchmarks/results/`, in the row and column that the README names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
if not RESULTS.is_dir():
    pytest.skip("only in a checkout", allow_module_level=True)

README = (ROOT / "README.md").read_text()
CONDITIONS = {"4 kb", "5 Mb", "2 kb", "150 Mb", "2.2 kb", "100 million"}
"""What was measured, not what came out."""

SHORT, LONG, CHROMOSOME = "short contigs", "contigs of 5 Mb", "contigs of 150 Mb"
SHORT_BUILT, LONG_BUILT = "short contigs (mean 4 kb), 40 samples, by build", "contigs of 5 Mb, 40 samples, by build"
FASTEST = "over the fastest peer, batches of 32"

SOURCES = {
    "One read per window": [
        ("0.98", "cold", SHORT_BUILT, "requests a window"),
        ("1.00", "cold", LONG_BUILT, "requests a window"),
        ("2.54", "cold", SHORT_BUILT, "sqlite"),
        ("10.95", "cold", LONG_BUILT, "sqlite"),
    ],
    "Fast, with a global shuffle": [
        ("3.06", "loading", FASTEST, CHROMOSOME),
        ("5.07", "loading", FASTEST, LONG),
        ("1.32", "cold", SHORT_BUILT, "index, stream over flat"),
        ("1.97", "cold", LONG_BUILT, "index, stream over flat"),
    ],
    "Almost no padding": [
        ("41.9%", "packing", "log-normal contigs", "useful, padded"),
        ("99.90%", "packing", "log-normal contigs", "useful, packed"),
    ],
    "Opens at once": [
        ("0.023", "scale", "nothing in the page cache: time", "measured"),
        ("0.246", "scale", "nothing in the page cache: growth of the private memory", "measured"),
    ],
    "sharded-eden, with an index, through a `Stream`": [
        ("24,986", "cold", SHORT_BUILT, "index, stream"),
        ("31,587", "cold", LONG_BUILT, "index, stream"),
    ],
    "flat file, one `pread` per window": [
        ("19,085", "cold", SHORT_BUILT, "flat"),
        ("16,290", "cold", LONG_BUILT, "flat"),
    ],
    "flat file, all windows of a batch announced first": [
        ("52,885", "cold", SHORT_BUILT, "flat, ahead"),
        ("40,619", "cold", LONG_BUILT, "flat, ahead"),
    ],
} | {
    row: [(figure, "loading", of, shape) for figure, shape in zip(figures, (SHORT, LONG, CHROMOSOME), strict=True)]
    for row, of, figures in (
        ("sharded-eden, with an index", "ours, batches", ("32,402", "30,389", "28,261")),
        ("flat memory-mapped file with the same encoder", "flat memory map, batches", ("53,967", "45,058", "44,018")),
        ("LitData, its own shuffled loop", "litdata, its own shuffled loop", ("8,618", "8,110", "8,638")),
        ("Streaming, single items", "mosaicml-streaming, single items", ("3,588", "3,882", "3,664")),
        ("SQL `substr()` and lists of token ids, single items", "naive, byte tokenizer", ("667", "179", "3.8")),
    )
}


def cells_of(name: str, row: str, column: str) -> list[str]:
    """Return the cells of all tables of a file of results that have this row and this column."""
    found, head = [], []
    for line in (RESULTS / f"{name}.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            head = []
        elif not head:
            head = cells
        elif cells[0] == row and column in head:
            found.append(cells[head.index(column)])
    return found


def rows_of_the_readme() -> dict[str, str]:
    """Return {first cell: the other cells} of the tables whose figures were measured."""
    parts = README.split("## Install")[0] + README.split("## Speed")[1].split("## With")[0]
    lines = [
        line
        for line in parts.splitlines()
        if line.startswith("| ") and not line.startswith(("| why", "| cold", "| warm"))
    ]
    return {line.split("|")[1].strip(): line.split("|", 2)[2] for line in lines}


def test_every_figure_has_a_source():
    rows = rows_of_the_readme()
    assert len(rows) == 5 + 3 + 5
    conditions = "|".join(sorted(map(re.escape, CONDITIONS), key=len, reverse=True))
    for row, text in rows.items():
        figures = re.findall(r"\d[\d,.]*%?", re.sub(conditions, "", text))
        assert {figure.rstrip(",.") for figure in figures} == {source[0] for source in SOURCES.get(row, [])}, row


@pytest.mark.parametrize("row", SOURCES)
def test_figures_are_those_of_the_results(row):
    for figure, name, of, column in SOURCES[row]:
        cells = cells_of(name, of, column)
        assert any(re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d%])", cell) for cell in cells), (figure, cells)


def test_the_readme_is_short_and_begins_with_one_screen():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert sum(line.startswith("| ") for line in lines[:25]) == 1 + 5
