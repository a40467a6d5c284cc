"""`build --skip-bad`: bad records are left out and listed, all others are built as without them."""

from __future__ import annotations

import gzip
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from sharded_eden import build_sequence_dbs, cli
from sharded_eden.build import fasta as fasta_module
from sharded_eden.build import records, sample, source
from sharded_eden.build.skipped import REASONS, BadRecord
from sharded_eden.errors import DatabaseError, InputError, UsageError


def contents(out: Path) -> dict[str, list[tuple[str, str]]]:
    return {
        path.parent.name: worlds.query(path, "SELECT contig_id, nt_sequence FROM sequences ORDER BY rowid")
        for path in sorted(out.glob("*/*.sqlite"))
    }


def skipped(out: Path) -> list[tuple[str, int, str, str | None, str]]:
    table = pl.read_parquet(out / "skipped.parquet")
    rows = table.select("source_file", "record", "name", "sample", "reason").rows()
    assert all(f"{Path(file).name}: " in problem for (file, *_), problem in zip(rows, table["problem"], strict=True))
    return [(Path(file).name, *rest) for file, *rest in rows]


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


FASTA = ">a\nACGT\n>b\nACXT\n>c\n>d\x07 d\nAC\n>a\nGG\n>f\nTT\n> \nA\n>e\nGGG\n"


def test_each_reason_in_fasta(tmp_path, capsys):
    (tmp_path / "S.fa").write_text(FASTA)
    assert cli.main(["build", str(tmp_path / "S.fa"), "--out", str(tmp_path / "out")]) == 1
    capsys.readouterr()
    assert cli.main(["build", str(tmp_path / "S.fa"), "--out", str(tmp_path / "out"), "--skip-bad"]) == 0
    shown = capsys.readouterr().out
    assert "records (duplicate 1, empty 1, letters 1, name 2), listed in" in shown
    assert "S.fa: record 2 (b): position 3 holds 'X'" in shown
    assert contents(tmp_path / "out") == {
        "S": [("BCR__ECT-S__CT1-1", "ACGT"), ("BCR__ECT-S__CT1-2", "TT"), ("BCR__ECT-S__CT1-3", "GGG")]
    }
    assert skipped(tmp_path / "out") == [
        ("S.fa", 2, "b", "S", "letters"),
        ("S.fa", 3, "c", "S", "empty"),
        ("S.fa", 4, "d\\x07", "S", "name"),
        ("S.fa", 5, "a", "S", "duplicate"),
        ("S.fa", 7, "", "S", "name"),
    ]
    table = pl.read_parquet(tmp_path / "out/contigs.parquet")
    assert table["original_id"].to_list() == ["a", "f", "e"]
    assert cli.main(["verify", str(tmp_path / "out")]) == 0


def test_an_id_that_was_given_to_an_earlier_record_is_taken(tmp_path):
    (tmp_path / "S.fa").write_text(
        ">a\nAC\n>BCR__ECT-S__CT1-1\nGG\n>b\nT\n>BCR__ECT-S__CT1-9\nC\n>BCR__ECT-S__CT1-9\nA\n"
    )
    build_sequence_dbs([tmp_path / "S.fa"], tmp_path / "out", skip_bad=True)
    assert [text for _, text in contents(tmp_path / "out")["S"]] == ["AC", "T", "C"]
    assert [(row[1], row[4]) for row in skipped(tmp_path / "out")] == [(2, "duplicate"), (5, "duplicate")]


def test_an_id_that_is_taken_before_it_is_given_stays_an_error(tmp_path):
    (tmp_path / "S.fa").write_text(">BCR__ECT-S__CT1-2\nGG\n>b\nT\n")
    with pytest.raises(InputError, match=r"'BCR__ECT-S__CT1-2' is taken"):
        build_sequence_dbs([tmp_path / "S.fa"], tmp_path / "out", skip_bad=True)
    assert contents(tmp_path / "out") == {}


def test_json(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        {"record": "S1.a", "text": "AC"},
        {"record": "S1.b", "text": 5},
        {"record": "S1.c"},
        {"record": {"x": 1}, "text": "AC"},
        {"record": "T1.d", "text": "AC"},
        {"record": "S2.e", "text": "|d__A||d__B|AC"},
        {"record": "S2.f", "text": "GG"},
    )
    options = {"sample_regex": r"(?P<sample>S\d)", "phylo_tags": "keep"}
    with pytest.raises(InputError, match=r"line 2: its field 'text' is not text, but int"):
        build_sequence_dbs([path], tmp_path / "out", **options)
    result = build_sequence_dbs([path], tmp_path / "out", skip_bad=True, **options)
    assert result.skipped == {"field": 3, "sample": 1, "tag": 1}
    assert result.skipped_parquet == tmp_path / "out/skipped.parquet"
    assert {name: [text for _, text in found] for name, found in contents(tmp_path / "out").items()} == {
        "S1": ["AC"],
        "S2": ["GG"],
    }
    assert [row[1:] for row in skipped(tmp_path / "out")] == [
        (2, "", None, "field"),
        (3, "", None, "field"),
        (4, "", None, "field"),
        (5, "T1.d", None, "sample"),
        (6, "S2.e", None, "tag"),
    ]


def test_table(tmp_path):
    pl.DataFrame({"text": ["AC", None, "A-", "GG"], "s": ["S1", "S1", "S2", None]}).write_parquet(
        tmp_path / "a.parquet"
    )
    build_sequence_dbs([tmp_path / "a.parquet"], tmp_path / "out", skip_bad=True, sample_field="s")
    assert contents(tmp_path / "out") == {"S1": [("BCR__ECT-S1__CT1-1", "AC")]}
    assert [(row[1], row[4]) for row in skipped(tmp_path / "out")] == [(2, "field"), (3, "letters"), (4, "field")]


def test_documents_of_megatron(tmp_path):
    texts = [b"ACGT", b"\x00AC\x00", b"A\x01C", b"GGT"]
    header = b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + b"\x01" + np.array([4, 5], "<u8").tobytes()
    lengths = np.array([len(text) for text in texts], "<i4")
    offsets = np.cumsum(lengths, dtype="<i8") - lengths
    (tmp_path / "a.bin").write_bytes(b"".join(texts))
    (tmp_path / "a.idx").write_bytes(
        header + lengths.tobytes() + offsets.tobytes() + np.arange(5, dtype="<i8").tobytes()
    )
    build_sequence_dbs([tmp_path / "a.bin"], tmp_path / "out", skip_bad=True)
    assert [text for _, text in contents(tmp_path / "out")["a"]] == ["ACGT", "AC", "GGT"]
    assert [row[1] for row in skipped(tmp_path / "out")] == [3]


@pytest.mark.parametrize("ends", ["\n", ""])
def test_records_that_are_too_long(tmp_path, monkeypatch, ends):
    for module in (fasta_module, sample, source):
        monkeypatch.setattr(module, "MAX_CONTIG_BASES", 600_000)
    long, odd = "A" * 700_000, "C" * 280_000 + "-" + "C" * 280_000
    text = f">a\nAC\n>b\n{long}\n{long}\n>c\nGG\n>d\n{odd}\nACGT\n>e\nTT{ends}"
    (tmp_path / "S.fa").write_text(text)
    with pytest.raises(InputError, match=r"record 2 \(b\).*more .*than SQLite holds"):
        build_sequence_dbs([tmp_path / "S.fa"], tmp_path / "out")
    build_sequence_dbs([tmp_path / "S.fa"], tmp_path / "out", skip_bad=True)
    assert [text for _, text in contents(tmp_path / "out")["S"]] == ["AC", "GG", "TT"]
    assert [row[1:] for row in skipped(tmp_path / "out")] == [(2, "b", "S", "long"), (4, "d", "S", "letters")]


@pytest.mark.parametrize("at", range(fasta_module.BLOCK_BYTES - 3, fasta_module.BLOCK_BYTES + 4))
def test_a_bad_letter_at_the_edge_of_a_block(tmp_path, at):
    """A line longer than a block is divided; the '>' inside it begins no record."""
    (tmp_path / "S.fa").write_text(">" + "a\n" + "A" * (at - 3) + ">X" + "C" * 400_000 + "\nACGT\n>e\nTT\n")
    build_sequence_dbs([tmp_path / "S.fa"], tmp_path / "out", skip_bad=True)
    assert contents(tmp_path / "out") == {"S": [("BCR__ECT-S__CT1-1", "TT")]}
    assert [row[1:] for row in skipped(tmp_path / "out")] == [(1, "a", "S", "letters")]


def test_what_stays_an_error(tmp_path):
    good = gzip.compress(b">a\nACGT\n>b\nAXGT\n" * 100)
    (tmp_path / "cut.fa.gz").write_bytes(good[:-20])
    (tmp_path / "bad.fa").write_text(">a\nXX\n>b\nZZ\n")
    (tmp_path / "cut.jsonl").write_text('{"text": "AC"}\n{"text": "A')
    pl.DataFrame({"dna": ["AC"]}).write_parquet(tmp_path / "a.parquet")
    for name, words in [
        ("cut.fa.gz", "truncated"),
        ("bad.fa", r"bad.fa: all of its 2 records are bad. The first: .*position 1 holds 'X'"),
        ("cut.jsonl", "line 2: is not JSON"),
        ("a.parquet", "has no field 'text'"),
    ]:
        with pytest.raises(InputError, match=words):
            build_sequence_dbs([tmp_path / name], tmp_path / "out", skip_bad=True)
        assert contents(tmp_path / "out") == {}
    assert not (tmp_path / "out/skipped.parquet").exists()


def test_a_file_none_of_whose_records_names_a_sample_stays_an_error(tmp_path, capsys):
    good, bad = tmp_path / "good.fa", tmp_path / "bad.fa"
    good.write_text(">X1\nAC\n>Y\nAC\n")
    bad.write_text(">a\nAC\n>b\nA!\n>c\nAC\n")
    options = ["--out", str(tmp_path / "out"), "--skip-bad", "--sample-regex", r"X(?P<sample>.)"]
    assert cli.main(["build", str(good), str(bad), *options]) == 1
    message = capsys.readouterr().err
    assert "bad.fa: all of its 3 records are bad. The first: " in message
    assert "record 1 (a): --sample-regex 'X(?P<sample>.)' finds no sample in its name" in message
    assert cli.main(["build", str(good), *options]) == 0
    assert contents(tmp_path / "out") == {"1": [("BCR__ECT-1__CT1-1", "AC")]}


def mixed(folder: Path) -> list[Path]:
    """One file a sample, and two files that share samples; each with bad records."""
    folder.mkdir(exist_ok=True)
    for number in range(3):
        (folder / f"D{number}.fa").write_text(f">a\nACG{'T' * number}\n>b\nA-\n>a\nC\n")
    ids = [(f"BCR__ECT-M{i % 2}__CT1-{i}", "ACGT"[: i + 1]) for i in range(4)]
    text = "".join(f">{name}\n{bases}\n" for name, bases in ids)
    (folder / "P0.fa").write_text(text + ">x\nA?\n")
    (folder / "P1.fa").write_text(text.replace("CT1-3", "CT1-7") + ">BCR__ECT-M0__CT1-9\n\n")
    return sorted(folder.glob("*.fa"))


def state(out: Path) -> tuple[object, ...]:
    tables = [pl.read_parquet(out / name).rows() for name in ("contigs.parquet", "skipped.parquet")]
    return contents(out), tables, sorted(path.name for path in out.iterdir())


def test_the_same_in_any_order_of_tasks_and_runs(tmp_path):
    files = mixed(tmp_path / "in")
    build_sequence_dbs(files, tmp_path / "one", skip_bad=True)
    expected = state(tmp_path / "one")
    assert Counter(row[4] for row in skipped(tmp_path / "one")) == {"letters": 4, "duplicate": 6, "empty": 1}
    assert {row[3] for row in skipped(tmp_path / "one")} == {None, "D0", "D1", "D2", "M0", "M1"}
    build_sequence_dbs(files, tmp_path / "two", skip_bad=True, jobs=2)
    assert state(tmp_path / "two") == expected
    again = build_sequence_dbs(files, tmp_path / "two", skip_bad=True)
    assert (again.samples, again.unchanged, sum(again.skipped.values())) == (0, 5, 11)
    assert state(tmp_path / "two") == expected
    for part in ([files[1]], [*files[3:]], files):
        build_sequence_dbs(part, tmp_path / "three", skip_bad=True)
    assert state(tmp_path / "three") == expected
    build_sequence_dbs(files[3:], tmp_path / "three", skip_bad=True, force=True)
    assert state(tmp_path / "three") == expected


def test_the_same_after_a_crash(tmp_path, monkeypatch):
    files = mixed(tmp_path / "in")
    build_sequence_dbs(files, tmp_path / "one", skip_bad=True)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sharded_eden.build.job.update_skipped_table", fail)
        with pytest.raises(KeyboardInterrupt):
            build_sequence_dbs(files, tmp_path / "two", skip_bad=True)
    assert len(contents(tmp_path / "two")) > 0
    build_sequence_dbs(files, tmp_path / "two", skip_bad=True)
    assert state(tmp_path / "two") == state(tmp_path / "one")


def test_samples_built_without_the_option_are_kept(tmp_path):
    files = mixed(tmp_path / "in")
    files[0].write_text(">a\nACGT\n")
    with pytest.raises(InputError, match=r"inputs or samples were refused"):
        build_sequence_dbs(files, tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["D0"]
    result = build_sequence_dbs(files, tmp_path / "out", skip_bad=True)
    assert (result.samples, result.unchanged) == (4, 1)
    assert build_sequence_dbs(files, tmp_path / "out", skip_bad=True).samples == 0
    with pytest.raises(UsageError, match=r"built with other settings.*skip_bad.*--force"):
        build_sequence_dbs(files, tmp_path / "out")


def test_rows_go_when_their_reason_goes(tmp_path):
    path = tmp_path / "S.fa"
    path.write_text(">a\nAC\n>b\nX\n")
    build_sequence_dbs([path], tmp_path / "out", skip_bad=True)
    path.write_text(">a\nAC\n>b\nG\n")
    with pytest.raises(UsageError, match=r"has changed"):
        build_sequence_dbs([path], tmp_path / "out", skip_bad=True)
    assert len(skipped(tmp_path / "out")) == 1
    result = build_sequence_dbs([path], tmp_path / "out", skip_bad=True, force=True)
    assert (result.skipped, result.skipped_parquet) == ({}, None)
    assert not (tmp_path / "out/skipped.parquet").exists()


def test_a_damaged_table(tmp_path):
    files = mixed(tmp_path / "in")
    build_sequence_dbs(files, tmp_path / "out", skip_bad=True)
    (tmp_path / "out/skipped.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatabaseError, match=r"skipped.parquet: cannot be read .*--force builds all again"):
        build_sequence_dbs(files, tmp_path / "out", skip_bad=True)


def test_the_error_passes_between_processes():
    error = pickle.loads(pickle.dumps(BadRecord("words", "long", "chr1")))
    assert (str(error), error.reason, error.name) == ("words", "long", "chr1")
    assert isinstance(error, InputError)


LETTERS = st.text("ACGTNacgtryX-*", max_size=4)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", ""]), LETTERS), min_size=1, max_size=8))
def test_reading_equals_reading_each_record_alone(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("skip")
    alone, reasons = [], {}
    for ordinal, (name, text) in enumerate(rows, start=1):
        path = folder / "one.fa"
        path.write_text(f">{name}\n{text}\n")
        try:
            alone += [record._replace(ordinal=ordinal) for record in records.read_records(path)]
        except BadRecord as error:
            reasons[ordinal] = error.reason
    path = folder / "all.fa"
    path.write_text("".join(f">{name}\n{text}\n" for name, text in rows))
    left_out: dict[int, str] = {}
    reading = records.read_records(path, skip=lambda _, ordinal, error: left_out.update({ordinal: error.reason}))
    if alone:
        assert list(reading) == alone
    else:
        with pytest.raises(InputError, match=r"records are bad"):
            list(reading)
    assert left_out == reasons
    assert set(reasons.values()) <= set(REASONS)
