"""`sharded-eden report`: the page, its numbers, and the page in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from browser import browser, open_page
from hypothesis import given
from hypothesis import strategies as st

import oracle
from sharded_eden import ShardedEdenDataset, Stream, cli, pack_window_database, precompute_window_database, write_report
from sharded_eden.errors import InputError, MissingExtra, UsageError
from sharded_eden.report.coverage import mean_coverage
from sharded_eden.report.figure import percent

HOSTILE = "</script><script>alert(1)</script><b>&amp;"
GENOMES = Path(__file__).resolve().parents[2] / "demo" / "genomes"


class Parsed(HTMLParser):
    """The text, the elements and the figures of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.plots: list[dict] = []
        self._in: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in.append(f"{tag} {dict(attrs).get('type', '')}")

    def handle_data(self, data: str) -> None:
        if self._in and self._in[-1].startswith("script application/json"):
            self.plots.append(json.loads(data))
        elif self._in and not self._in[-1].startswith(("script", "style")):
            self.text.append(data)

    def handle_endtag(self, tag: str) -> None:
        while self._in and not self._in.pop().startswith(tag):
            pass

    def count(self, tag: str, name: str | None = None) -> int:
        return sum(each == tag and (name is None or attrs.get("class") == name) for each, attrs in self.tags)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Two splits of three samples, one with a hostile tag; the training split was read in two passes by two ranks."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(5)
    contigs = {}
    for number, tag in enumerate(["BCR", "BCR", HOSTILE]):
        for i in range(20):
            letters = rng.choice(list("ACGTacgtN"), 400 + 60 * i, p=[0.2] * 4 + [0.04] * 4 + [0.04])
            contigs[f"{tag}__ECT-S{number}__CT1-{i}"] = "".join(letters)
    oracle.write_sequence_dbs(folder / "seqdb", contigs)
    for split, samples in (("train", ("S0", "S2")), ("val", ("S1",))):
        chosen = {each: len(bases) for each, bases in contigs.items() if oracle.sample_of(each) in samples}
        pl.DataFrame({"contig_id": list(chosen), "length": list(chosen.values())}).write_parquet(
            folder / f"{split}.parquet"
        )
        windows = folder / f"{split}_windows.db"
        precompute_window_database(folder / f"{split}.parquet", windows, window_size=64, stride=45)
        pack_window_database(windows)
    for rank in range(2):
        with ShardedEdenDataset.open(
            folder / "seqdb", folder / "train_windows.db", log_windows=True, log_dir=folder / "logs", rank=rank
        ) as dataset:
            stream = Stream(dataset)
            positions = np.arange(2 * len(stream) // 8 * 8).reshape(-1, 4)[rank::2]
            for batch in positions:
                stream.__getitems__(batch.tolist())
            if rank == 0:
                stream.__getitems__(range(2 * len(stream) // 8 * 8, 2 * len(stream)))
    return folder


def write(world: Path, out: Path, *more: str) -> Parsed:
    arguments = [
        "report",
        str(out),
        str(world / "seqdb"),
        str(world / "train_windows.db"),
        str(world / "val_windows.db"),
    ]
    assert cli.main([*arguments, *more]) == 0
    return Parsed(out.read_text())


def test_what_a_logged_run_read_is_said_in_words(world, tmp_path, capsys):
    page = write(world, tmp_path / "report.html", "--logs", str(world / "logs"))
    out = capsys.readouterr().out
    assert "train: Every window was read exactly twice." in out
    assert out.splitlines()[-1] == str(tmp_path / "report.html")
    text = " ".join(page.text)
    assert "train: Every window was read exactly twice." in text
    assert text.index("Every window was read") < text.index("Lengths of contigs"), "words come first"
    assert write_report(tmp_path / "r.html", world / "seqdb", world, logs=world / "logs").faults == []


def test_every_figure_has_words_and_a_table(world, tmp_path):
    page = write(world, tmp_path / "report.html", "--logs", str(world / "logs"))
    assert page.count("figure") == len(page.plots) >= 12
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    plots = [attrs for _, attrs in page.tags if attrs.get("class") == "plot"]
    assert len(plots) == len(page.plots) == page.count("table") == page.count("figcaption")
    for each in plots:
        assert each["role"] == "img"
        assert {each["aria-labelledby"], each["aria-describedby"]} <= ids
    for plot in page.plots:
        assert plot["data"]
        assert "color" not in json.dumps(plot), "colours come from the page, light or dark"


def test_the_file_asks_for_nothing_and_hostile_names_stay_text(world, tmp_path):
    page = write(world, tmp_path / "report.html", "--logs", str(world / "logs"))
    html = (tmp_path / "report.html").read_text()
    assert "<script>alert(1)" not in html
    sources = [
        attrs.get("src") or attrs.get("href") for tag, attrs in page.tags if tag in {"script", "link", "img", "iframe"}
    ]
    assert set(sources) <= {None, "data:,"}
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert len(html) < 10_000_000


def test_numbers_equal_those_of_the_databases(world, tmp_path):
    text = " ".join(write(world, tmp_path / "report.html").text)
    contigs: dict[str, str] = {}
    for database in (world / "seqdb").glob("*/*.sqlite"):
        connection = sqlite3.connect(database)
        contigs |= dict(connection.execute("SELECT contig_id, nt_sequence FROM sequences"))
        connection.close()
    letters = "".join(contigs.values())
    certain = [letters.upper().count(each) for each in "GCAT"]
    lower = sum(map(str.islower, letters)) / len(letters)
    assert f"3 samples, {len(contigs)} contigs, {len(letters):,} bases; 2 splits: train, val" in text
    assert f"GC is {sum(certain[:2]) / sum(certain):.1%}." in text
    assert f"{letters.upper().count('N') / len(letters):.1%} of the letters are not A, C, G or T" in text
    assert f"{lower:.1%} are lower case" in text
    for split in ("train", "val"):
        connection = sqlite3.connect(world / f"{split}_windows.db")
        (count,) = connection.execute("SELECT count(*) FROM window_mappings").fetchone()
        connection.close()
        assert f"{split}: {count:,} windows of 64 tokens" in text


def test_sequence_databases_alone(world, tmp_path):
    assert cli.main(["report", str(tmp_path / "report.html"), str(world / "seqdb")]) == 0
    page = Parsed((tmp_path / "report.html").read_text())
    assert "What is in the data" in page.text
    assert len(page.plots) == 5


@given(
    st.integers(1, 400),
    st.integers(1, 50),
    st.integers(1, 60),
    st.sets(st.integers(0, 30), max_size=20),
)
def test_coverage_equals_counting_bases(length, stride, usable, numbers):
    starts = np.array(sorted(number * stride for number in numbers if number * stride < length), dtype=np.int64)
    ends = np.minimum(starts + usable, length)
    counted = np.zeros(length)
    for start, end in zip(starts, ends, strict=True):
        counted[start:end] += 1
    mean = mean_coverage(starts, ends, length)
    assert mean.mean() == pytest.approx(counted.mean())
    if length <= 100:
        assert mean == pytest.approx(counted)


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (1, "100%"), (0.5, "50.0%"), (0.9996, "99.96%"), (1e-7, "0.000010%"), (None, "-")]
)
def test_a_share_is_0_or_100_percent_only_where_it_is(share, text):
    assert percent(share) == text


def test_wrong_requests(world, tmp_path, capsys, monkeypatch):
    out, seqdb = str(tmp_path / "report.html"), str(world / "seqdb")
    assert cli.main(["report", out, str(world / "train_windows.db")]) == 2
    assert "give the folder of sequence databases first" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path), seqdb]) == 2
    assert cli.main(["report", out, seqdb, str(world / "val_windows.db"), "--logs", str(tmp_path)]) == 1
    assert "holds no access log" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--logs needs the window databases that were read"):
        write_report(out, seqdb, logs=world / "logs")
    with pytest.raises(InputError, match=r"belongs to another window database: its window \d+ is window \d+ of "):
        write_report(out, seqdb, world / "val_windows.db", logs=world / "logs")
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(MissingExtra, match=re.escape("pip install '.[report]'")):
        write_report(out, seqdb)
    assert not Path(out).exists()


def test_logs_are_matched_by_their_windows_and_not_by_their_names(world, tmp_path):
    """As a data module names them: `validation` for val_windows.db, and `train` for all sources of a mixture."""
    logs = tmp_path / "logs"
    for windows, split in (("train", "train"), ("val", "train"), ("val", "validation")):
        with ShardedEdenDataset.open(
            world / "seqdb", world / f"{windows}_windows.db", log_windows=True, log_dir=logs, split=split
        ) as dataset:
            stream = Stream(dataset)
            stream.__getitems__(range(len(stream)))
            if split == "validation":
                stream.__getitems__(range(len(stream)))
    found = write_report(tmp_path / "report.html", world / "seqdb", world, logs=logs)
    said = {split: [each.text for each in each_split] for split, each_split in found.verdicts.items()}
    assert said.keys() == {"train", "val", "val (logs of train)"}
    assert "Every window was read exactly once." in said["train"]
    assert "Every window was read exactly once." in said["val (logs of train)"]
    assert "Every window was read exactly twice." in said["val"]
    assert found.faults == []


def test_window_databases_with_the_same_file_name_are_all_shown(world, tmp_path):
    for name, split in (("human", "train"), ("mouse", "val")):
        (tmp_path / name).mkdir()
        shutil.copy(world / f"{split}_windows.db", tmp_path / name / "train_windows.db")
    paths = tmp_path / "human" / "train_windows.db", tmp_path / "mouse" / "train_windows.db"
    for path in paths:
        with ShardedEdenDataset.open(world / "seqdb", path, log_windows=True, log_dir=tmp_path / "logs") as dataset:
            dataset.__getitems__(range(len(dataset)))
    found = write_report(tmp_path / "report.html", world / "seqdb", *paths, logs=tmp_path / "logs")
    assert found.verdicts.keys() == {"human/train", "mouse/train"}
    assert all("Every window was read exactly once." in {each.text for each in of} for of in found.verdicts.values())
    text = " ".join(Parsed((tmp_path / "report.html").read_text()).text)
    assert "2 splits: human/train, mouse/train" in text
    assert text.count("Coverage along the longest contigs: ") == 2


def test_logs_of_val_and_validation_are_added_up(world, tmp_path):
    for split, count in (("val", 3), ("validation", 5)):
        with ShardedEdenDataset.open(
            world / "seqdb", world / "val_windows.db", log_windows=True, log_dir=tmp_path / "logs", split=split
        ) as dataset:
            dataset.__getitems__(range(count))
    found = write_report(tmp_path / "report.html", world / "seqdb", world / "val_windows.db", logs=tmp_path / "logs")
    assert found.verdicts.keys() == {"val"}
    text = " ".join(Parsed((tmp_path / "report.html").read_text()).text)
    assert "8 reads of" in text
    assert "from 2 access logs" in text
    assert "come from some of the reads" in text


def test_bars_of_long_names_stay_apart(tmp_path):
    samples = [*(f"MGYS00000410_ERR12{number}_FASTA_contigs.min500" for number in ("34567", "98765")), "7"]
    oracle.write_sequence_dbs(tmp_path / "seqdb", {f"BCR__ECT-{name}__CT1-1": "ACGT" * 20 for name in samples})
    write_report(tmp_path / "report.html", tmp_path / "seqdb")
    page = Parsed((tmp_path / "report.html").read_text())
    (plot,) = [each for each in page.plots if each["layout"].get("barmode") == "stack"]
    assert len(set(plot["data"][0]["y"])) == len(samples)
    assert plot["layout"]["yaxis"]["type"] == "category", "numbers are names, too"
    assert "come from some of the reads" not in " ".join(page.text), "there are none"


@pytest.mark.slow
def test_the_page_in_chromium(world, tmp_path):
    out = tmp_path / "report.html"
    count = len(write(world, out, "--logs", str(world / "logs")).plots)
    with browser() as started:
        grounds = set()
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
            opened = open_page(started, out, width=width, scheme=scheme)
            page = opened.page
            assert opened.messages == []
            assert opened.requests == []
            drawn = page.evaluate(
                "[...document.querySelectorAll('.plot')].filter((plot) => plot.querySelector('.main-svg') "
                "&& plot.querySelectorAll('.trace, .point, .js-line').length "
                "&& plot.getBoundingClientRect().width > 200).length"
            )
            assert drawn == count
            for details in page.query_selector_all("summary"):
                details.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing overflows"
            assert (
                page.evaluate(
                    "Math.max(...[...document.querySelectorAll('figure')].map((f) => f.getBoundingClientRect().right))"
                )
                <= width
            )
            grounds.add((scheme, page.evaluate("getComputedStyle(document.body).backgroundColor")))
        assert len(grounds) == 2, "light and dark differ"
        page.emulate_media(color_scheme="light")
        page.wait_for_timeout(500)
        text_colour = page.evaluate("getComputedStyle(document.querySelector('.plot text')).fill")
        assert text_colour == "rgb(90, 100, 117)", "figures follow a change of the scheme"


@pytest.mark.slow
def test_a_logged_run_over_the_genomes_of_the_demo(tmp_path):
    arguments = ["build", str(GENOMES), "--out", str(tmp_path / "seqdb")]
    assert cli.main(arguments) == 0
    assert cli.main(["split", str(tmp_path / "seqdb"), "--out", str(tmp_path), "--by", "contig"]) == 0
    windows = tmp_path / "train_windows.db"
    precompute_window_database(tmp_path / "train_split.parquet", windows, window_size=1024, stride=1021)
    with ShardedEdenDataset.open(tmp_path / "seqdb", windows, log_windows=True, log_dir=tmp_path / "logs") as dataset:
        stream = Stream(dataset)
        for first in range(0, 2 * len(stream), 64):
            stream.__getitems__(range(first, min(first + 64, 2 * len(stream))))
    result = write_report(tmp_path / "report.html", tmp_path / "seqdb", windows, logs=tmp_path / "logs")
    said = [each.text for each in result.verdicts["train"]]
    assert result.faults == []
    assert "Every window was read exactly twice." in said
    assert any(text.startswith("The shuffle is global") for text in said)


def test_only_a_report_is_replaced(world, tmp_path):
    out = tmp_path / "train_windows.db"
    shutil.copy(world / "train_windows.db", out)
    before = out.read_bytes()
    with pytest.raises(UsageError, match=r"OUT\.html: .* exists and is a window database: give another name"):
        write_report(out, world / "seqdb")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt exists and is not a report"):
        write_report(tmp_path / "notes.txt", world / "seqdb")
    assert out.read_bytes() == before
