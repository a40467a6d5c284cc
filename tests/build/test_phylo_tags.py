"""Lineage tags inside sequences: refused, removed, or kept in `contigs.parquet`, and used as tags of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import worlds

from sharded_eden import ShardedEdenDataset, build_sequence_dbs, cli
from sharded_eden.errors import InputError, UsageError
from sharded_eden.windows.precompute import precompute_window_database

BACTERIUM = "|d__Bacteria;p__Bacillota;c__;o__;f__;g__;s__|"
VIRUS = "|D__VIRUSES;;;;;;|"
RECORDS = [
    ("S1.a", BACTERIUM + "ACGT" * 10, BACTERIUM),
    ("S1.b", "ACGTN" * 10, None),
    ("S2.a", "AAAA" + VIRUS + "CCCC" + VIRUS + "GGGG", VIRUS),
    ("S2.b", "acgt" * 5 + BACTERIUM, BACTERIUM),
]


def bases_of(text: str) -> str:
    return text.replace(BACTERIUM, "").replace(VIRUS, "")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "og2.jsonl"
    path.write_text(
        "".join(json.dumps({"record": f"{name} of a file", "text": text}) + "\n" for name, text, _ in RECORDS)
    )
    return path


def build(inputs: Path, out: Path, **options: Any) -> pl.DataFrame:
    build_sequence_dbs([inputs], out, **{"sample_regex": r"(?P<sample>S\d)", **options})
    return pl.read_parquet(out / "contigs.parquet")


def sequences(out: Path) -> list[str]:
    return [
        sequence
        for sample in ("S1", "S2")
        for (sequence,) in worlds.query(
            out / sample / f"glm_dataset_{sample}.sqlite", "SELECT nt_sequence FROM sequences"
        )
    ]


@pytest.mark.parametrize("phylo_tags", ["strip", "keep"])
def test_tags_leave_the_sequences(inputs, tmp_path, phylo_tags):
    table = build(inputs, tmp_path / "out", phylo_tags=phylo_tags)
    assert sequences(tmp_path / "out") == [bases_of(text) for _, text, _ in RECORDS]
    assert table["length"].to_list() == [len(bases_of(text)) for _, text, _ in RECORDS]
    assert table["description"].to_list() == ["of a file"] * 4
    assert table["original_id"].to_list() == [name for name, _, _ in RECORDS]
    if phylo_tags == "strip":
        assert "phylo_tag" not in table.columns
    else:
        assert table["phylo_tag"].to_list() == [tag for _, _, tag in RECORDS]


@pytest.mark.parametrize("header", [">S1.a of a file\n", ">S1.a\n"])
def test_fasta(tmp_path, header):
    path = tmp_path / "og2.fasta"
    path.write_text(f"{header}{BACTERIUM}ACGT\nACGT\n")
    table = build(path, tmp_path / "out", phylo_tags="keep", sample_regex=None, sample="S1")
    assert worlds.query(tmp_path / "out/S1/glm_dataset_S1.sqlite", "SELECT nt_sequence FROM sequences") == [
        ("ACGTACGT",)
    ]
    assert table["phylo_tag"].to_list() == [BACTERIUM]


def test_tables_with_and_without_tags_are_merged(inputs, tmp_path):
    out = tmp_path / "out"
    plain = tmp_path / "plain.fa"
    plain.write_text(">x of no file\nACGT\n")
    build_sequence_dbs([plain], out, sample="S0")
    assert "phylo_tag" not in pl.read_parquet(out / "contigs.parquet").columns
    expected = [None, *(tag for _, _, tag in RECORDS)]
    assert build(inputs, out, phylo_tags="keep")["phylo_tag"].to_list() == expected
    plain.write_text(">y of no file\nACGTT\n")
    build_sequence_dbs([plain], out, sample="S3")
    table = pl.read_parquet(out / "contigs.parquet")
    assert table["phylo_tag"].to_list() == [*expected, None]
    assert table["description"].to_list() == ["of no file", *["of a file"] * 4, "of no file"]
    again = build(inputs, out, phylo_tags="keep")
    assert again.equals(table)


def test_refused_by_default_and_with_other_settings(inputs, tmp_path):
    with pytest.raises(InputError, match=r"position 1 holds '\|'.*phylogenetic tag: --phylo-tags strip"):
        build(inputs, tmp_path / "out")
    build(inputs, tmp_path / "out", phylo_tags="strip")
    with pytest.raises(UsageError, match="built with other settings"):
        build(inputs, tmp_path / "out", phylo_tags="keep")
    with pytest.raises(UsageError, match="--phylo-tags 'all' is not one of refuse, strip, keep"):
        build(inputs, tmp_path / "out", phylo_tags="all")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{BACTERIUM}ACGT{VIRUS}", "holds 2 different phylogenetic tags"),
        ("ACGT|d__Bacteria", r"position 5 holds '\|'"),
        ("AC|GT|A", r"position 3 holds '\|'"),
        (BACTERIUM, "has no sequence"),
        (f"{BACTERIUM}AC@GT", "position 3 holds '@'"),
    ],
)
def test_what_is_no_tag_is_an_error(tmp_path, text, words):
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({"record": "S1.a", "text": text}) + "\n")
    with pytest.raises(InputError, match=words):
        build(path, tmp_path / "out", phylo_tags="keep")


def test_the_table_of_contigs_gives_the_tags_back(inputs, tmp_path):
    out = tmp_path / "out"
    words = ["build", str(inputs), "--out", str(out), "--phylo-tags", "keep", "--sample-regex", r"(?P<sample>S\d)"]
    assert cli.main(words) == 0
    table = pl.read_parquet(out / "contigs.parquet")
    table.select("contig_id", "length").write_parquet(tmp_path / "split.parquet")
    precompute_window_database(tmp_path / "split.parquet", tmp_path / "windows.db", 128, 50, sequences=out)
    with ShardedEdenDataset(
        None, out, tmp_path / "windows.db", 128, tags=out / "contigs.parquet", tag_template="{phylo_tag}"
    ) as dataset:
        for window, (_, text, tag) in enumerate(RECORDS):
            row = dataset[window]
            expected = [1, *(tag or "None").encode(), 3, *bases_of(text).upper().encode(), 2]
            assert row["tokens"].tolist() == expected + [0] * (128 - len(expected))
            assert row["loss_mask"].sum() == len(bases_of(text))


def test_a_description_with_the_separator_gives_no_tag(tmp_path):
    """U+001F stands between tag and description while a table is made."""
    odd = "hello\x1fworld"
    for name in ("before", "kept", "after"):
        tagged = f">{name}.2 {odd}\n{BACTERIUM}ACGT\n" if name == "kept" else ""
        (tmp_path / f"{name}.fa").write_text(f">{name}.1 {odd}\nACGT\n{tagged}")
        build_sequence_dbs([tmp_path / f"{name}.fa"], tmp_path / "out", phylo_tags="keep" if tagged else "refuse")
    table = pl.read_parquet(tmp_path / "out" / "contigs.parquet")
    assert table["description"].to_list() == [odd] * 4
    assert dict(table.select("original_id", "phylo_tag").rows()) == {
        "before.1": None, "kept.1": None, "kept.2": BACTERIUM, "after.1": None,
    }  # fmt: skip
