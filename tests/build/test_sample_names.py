"""Which sample a record goes to, by the name of its folder and by a field."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from sharded_eden.build.build import build_sequence_dbs
from sharded_eden.build.fields import Pairs, sample_at
from sharded_eden.build.records import default_sample_id
from sharded_eden.cli import main
from sharded_eden.errors import InputError, UsageError


def contents(out: Path) -> dict[str, list[tuple[str, str]]]:
    return {
        path.parent.name: worlds.query(path, "SELECT contig_id, nt_sequence FROM sequences ORDER BY rowid")
        for path in sorted(out.glob("*/*.sqlite"))
    }


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def download(tmp_path: Path) -> Path:
    for accession, bases in (("GCF_1.2", "ACGT"), ("GCA-3.fa", "GGT")):
        (tmp_path / "data" / accession).mkdir(parents=True)
        (tmp_path / "data" / accession / "genomic.fna").write_text(f">chr1\n{bases}\n")
    return tmp_path / "data"


@pytest.mark.parametrize("jobs", [1, 2])
def test_folder(download, tmp_path, jobs):
    out = tmp_path / "out"
    build_sequence_dbs([download], out, sample_from="folder", jobs=jobs)
    expected = {
        "GCA.3.fa": [("BCR__ECT-GCA.3.fa__CT1-1", "GGT")],
        "GCF_1.2": [("BCR__ECT-GCF_1.2__CT1-1", "ACGT")],
    }
    assert contents(out) == expected
    again = build_sequence_dbs([download], out, sample_from="folder", jobs=jobs)
    assert (again.samples, again.unchanged) == (0, 2)
    with pytest.raises(
        UsageError, match=r"both stand for sample 'genomic', by the name of the file. Rename one of them"
    ):
        build_sequence_dbs([download], tmp_path / "other")


def test_folder_of_a_relative_path(download, tmp_path, monkeypatch):
    monkeypatch.chdir(download / "GCF_1.2")
    assert default_sample_id("genomic.fna", "folder") == "GCF_1.2"
    assert default_sample_id("../GCA-3.fa/./genomic.fna", "folder") == "GCA.3.fa"
    with pytest.raises(
        UsageError, match=r"^/genomic.fna: the name of the folder gives no sample ID. Give one: --sample"
    ):
        default_sample_id("/genomic.fna", "folder")


def test_two_files_of_one_folder(download, tmp_path):
    (download / "GCF_1.2" / "cds_from_genomic.fna").write_text(">cds1\nAC\n")
    words = r"GCF_1.2/cds_from_genomic.fna and .*GCF_1.2/genomic.fna both stand for sample 'GCF_1.2', by the name of the folder"
    with pytest.raises(UsageError, match=words):
        build_sequence_dbs([download], tmp_path / "out", sample_from="folder")
    build_sequence_dbs([download / "*" / "genomic.fna"], tmp_path / "out", sample_from="folder")
    assert list(contents(tmp_path / "out")) == ["GCA.3.fa", "GCF_1.2"]


def test_two_folders_of_one_name(tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent / "S1").mkdir(parents=True)
        (tmp_path / parent / "S1" / "genomic.fna").write_text(">x\nACGT\n")
    with pytest.raises(UsageError, match=r"a/S1/genomic.fna and .*b/S1/genomic.fna both stand for sample 'S1'"):
        build_sequence_dbs([tmp_path / "a", tmp_path / "b"], tmp_path / "out", sample_from="folder")


def test_records_that_name_their_sample_keep_it(download, tmp_path):
    (download / "GCF_1.2" / "genomic.fna").write_text(">BCR__ECT-S9__CT1-1\nACGT\n")
    build_sequence_dbs([download], tmp_path / "out", sample_from="folder")
    assert contents(tmp_path / "out")["S9"] == [("BCR__ECT-S9__CT1-1", "ACGT")]


RECORDS = [("S1", "AC"), ("S2", "GG"), ("S1", "TTT")]
EXPECTED = {
    "S1": [("BCR__ECT-S1__CT1-1", "AC"), ("BCR__ECT-S1__CT1-2", "TTT")],
    "S2": [("BCR__ECT-S2__CT1-1", "GG")],
}


@pytest.mark.parametrize("jobs", [1, 2])
def test_field_of_json(tmp_path, jobs):
    one = lines(tmp_path / "one.jsonl", *({"text": text, "organism": sample} for sample, text in RECORDS[:2]))
    two = lines(tmp_path / "two.jsonl", *({"organism": sample, "text": text} for sample, text in RECORDS[2:]))
    for _ in range(2):
        result = build_sequence_dbs([one, two], tmp_path / "out", sample_field="organism", jobs=jobs)
        assert contents(tmp_path / "out") == EXPECTED
    assert (result.samples, result.unchanged) == (0, 2)


def test_path_in_json(tmp_path):
    path = lines(tmp_path / "a.jsonl", *({"text": text, "meta": {"id": {"s": sample}}} for sample, text in RECORDS))
    build_sequence_dbs([path], tmp_path / "out", sample_field="meta.id.s")
    assert contents(tmp_path / "out") == EXPECTED
    lines(path, {"text": "AC", "meta.s": "whole", "meta": {"s": "part"}})
    build_sequence_dbs([path], tmp_path / "whole", sample_field="meta.s")
    assert list(contents(tmp_path / "whole")) == ["whole"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_column(tmp_path, kind, dictionary):
    column = pa.array([sample for sample, _ in RECORDS])
    column = column.dictionary_encode() if dictionary else column
    table = pa.table({"sample.of": column, "sequence": [text for _, text in RECORDS]})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    build_sequence_dbs([path], tmp_path / "out", sample_field="sample.of")
    assert contents(tmp_path / "out") == EXPECTED
    with pytest.raises(
        InputError, match=rf"a.{kind}: has no columns 's', but \['sample.of', 'sequence'\]. .*--sample-field"
    ):
        build_sequence_dbs([path], tmp_path / "new", sample_field="s")


@pytest.mark.parametrize(
    ("record", "field", "words"),
    [
        ({"text": "AC"}, "s", "line 2: has no field 's', which --sample-field names as the sample"),
        ({"text": "AC", "s": {}}, "s.t", r"line 2: has no field 's\.t'"),
        ({"text": "AC", "s": "x"}, "s.t", r"line 2: has no field 's\.t'"),
        ({"text": "AC", "s": None}, "s", "line 2: its field 's'.* is not text, but None"),
        ({"text": "AC", "s": 562}, "s", "line 2: its field 's'.* is not text, but 562"),
        ({"text": "AC", "s": {"t": "x"}}, "s", "line 2: its field 's'.* is not text, but an object"),
        ({"text": "AC", "s": ""}, "s", "line 2: its field 's'.* is empty"),
    ],
)
def test_field_that_names_no_sample(tmp_path, record, field, words):
    first: object = "S1"
    for name in reversed(field.split(".")):
        first = {name: first}
    path = lines(tmp_path / "a.jsonl", {"text": "ACGT", **first}, record)
    with pytest.raises(InputError, match=words):
        build_sequence_dbs([path], tmp_path / "out", sample_field=field)
    assert contents(tmp_path / "out") == {}


def test_two_fields_of_one_name(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "AC", "s": "A", "s": "B"}\n')
    with pytest.raises(InputError, match=r"line 1: has 2 fields 's'"):
        build_sequence_dbs([tmp_path / "a.jsonl"], tmp_path / "out", sample_field="s")


def test_column_without_a_value(tmp_path):
    pl.DataFrame({"text": ["AC", "GT"], "s": ["S1", None]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet: row 2: its field 's'.* is not text, but None"):
        build_sequence_dbs([tmp_path / "a.parquet"], tmp_path / "out", sample_field="s")
    pl.DataFrame({"text": ["AC"], "s": [{"t": "S1"}]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"its field 's' is neither text nor an integer.*--sample-field"):
        build_sequence_dbs([tmp_path / "b.parquet"], tmp_path / "out", sample_field="s")


def test_samples_with_names_that_are_not_allowed(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"text": "AC", "s": "Homo-sapiens"})
    with pytest.raises(UsageError, match=r"record 1, by --sample-field: .*does not survive in a sequence ID"):
        build_sequence_dbs([path], tmp_path / "out", sample_field="s")
    lines(path, {"text": "AC", "id": "BCR__ECT-S1__CT1-1", "s": "S2"})
    with pytest.raises(UsageError, match=r"its ID names sample 'S1', --sample-field gives 'S2'"):
        build_sequence_dbs([path], tmp_path / "out", sample_field="s")


def test_files_without_fields(tmp_path):
    (tmp_path / "a.fa").write_text(">x\nAC\n")
    lines(tmp_path / "b.jsonl", {"text": "AC", "s": "S1"})
    with pytest.raises(
        InputError, match=r"a.fa: --sample-field 's' names a field, which only jsonl, parquet, arrow have"
    ):
        build_sequence_dbs([tmp_path / "a.fa", tmp_path / "b.jsonl"], tmp_path / "out", sample_field="s")


def test_options_that_exclude_each_other(download, tmp_path):
    options = {
        "--sample": {"sample": "S"},
        "--sample-from folder": {"sample_from": "folder"},
        "--sample-field": {"sample_field": "s"},
        "--sample-regex": {"sample_regex": "(?P<sample>a)"},
    }
    names = list(options)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            with pytest.raises(UsageError, match=f"{one} and {other} exclude each other"):
                build_sequence_dbs([download], tmp_path / "out", **options[one], **options[other])
    with pytest.raises(UsageError, match=r"--sample-from 'dir' is not one of file, folder"):
        build_sequence_dbs([download], tmp_path / "out", sample_from="dir")
    with pytest.raises(UsageError, match=r"--sample-field must name a field"):
        build_sequence_dbs([download], tmp_path / "out", sample_field="")


def test_another_option_than_before_is_another_build(download, tmp_path):
    (download / "GCF_1.2" / "genomic.fna").rename(download / "GCF_1.2" / "GCF_1.2.fna")
    build_sequence_dbs([download / "GCF_1.2"], tmp_path / "out")
    with pytest.raises(UsageError, match=r"built with other settings.*sample_from"):
        build_sequence_dbs([download / "GCF_1.2"], tmp_path / "out", sample_from="folder")


def test_commands(download, tmp_path, capsys):
    assert main(["build", str(download), "--out", str(tmp_path / "out"), "--sample-from", "folder"]) == 0
    assert list(contents(tmp_path / "out")) == ["GCA.3.fa", "GCF_1.2"]
    path = lines(tmp_path / "a.jsonl", {"text": "AC", "s": "S1"})
    assert main(["build", str(path), "--out", str(tmp_path / "out"), "--sample-field", "s"]) == 0
    assert "S1" in contents(tmp_path / "out")
    assert main(["build", str(path), "--out", str(tmp_path / "out"), "--sample-from", "dir"]) == 2


NAMES = st.text("ab.", min_size=1, max_size=3)
OBJECTS = st.recursive(st.text("xy", min_size=1), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=8)


@given(st.dictionaries(NAMES, OBJECTS, min_size=1, max_size=3), NAMES)
def test_path_equals_the_plain_meaning(record, path):
    """A whole name comes first; otherwise each part of the path leads one object further."""
    expected: object = record.get(path)
    if expected is None:
        expected = record
        for part in path.split("."):
            expected = expected.get(part) if isinstance(expected, dict) else None
    pairs = json.loads(json.dumps(record), object_pairs_hook=Pairs)
    if isinstance(expected, str):
        assert sample_at(pairs, path, "x") == expected
    else:
        with pytest.raises(InputError):
            sample_at(pairs, path, "x")
