"""Input formats other than FASTA: what is accepted, and the message of every error."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_eden import build_sequence_dbs
from sharded_eden.build import fasta
from sharded_eden.build.formats import ReadOptions
from sharded_eden.build.records import Record, default_sample_id, find_inputs, read_records
from sharded_eden.build.source import Source, file_state
from sharded_eden.errors import EdenWarning, InputError, MissingExtra, UsageError

pa = pytest.importorskip("pyarrow")
pytest.importorskip("Bio")

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ROWS = [{"text": "ACGTN", "record": "r1 first one"}, {"text": "acgtryk", "record": "r2"}]
RECORDS = [Record("r1", "first one", "ACGTN", 1), Record("r2", "", "acgtryk", 2)]


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def genbank(*records: tuple[str, str]) -> bytes:
    from Bio.Seq import Seq
    from Bio.SeqIO import write
    from Bio.SeqRecord import SeqRecord

    text = io.StringIO()
    made = [
        SeqRecord(Seq(s), id=name, name=name.split(".")[0], description="a phage", annotations={"molecule_type": "DNA"})
        for name, s in records
    ]
    write(made, text, "genbank")
    return text.getvalue().encode()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(read_records(path, ReadOptions(**options)))
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("ending", "compress"), [("", bytes), (".gz", gzip.compress), (".zst", zstd.compress)], ids=["plain", "gz", "zst"]
)
def test_json_lines(tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
    path = put(tmp_path / f"data_metagenomics_train_chunk1.jsonl{ending}", compress(lines(ROWS)))
    assert list(read_records(path)) == RECORDS
    assert default_sample_id(path) == "data_metagenomics_train_chunk1"


def test_fields_by_other_names(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", lines([{"dna": "ACGT", "key": 7}]))
    assert list(read_records(path, ReadOptions(text_field="dna", id_field="key"))) == [Record("7", "", "ACGT", 1)]
    assert list(read_records(path, ReadOptions(text_field="dna"))) == [Record("", "", "ACGT", 1)]
    path = put(tmp_path / "b.jsonl", lines(ROWS))
    assert [record.name for record in read_records(path, ReadOptions(id_field=""))] == ["", ""]


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (b'{"text": "ACGT"}\n{"text": \n', {}, ["line 2", "is not JSON"]),
        (b"[1, 2]\n", {}, ["line 1", "is not a JSON object, but list"]),
        (b'{"dna": "ACGT"}\n', {}, ["no field 'text' or", "['dna']", "--text-field"]),
        (b'{"text": "ACGT"}\n', {"id_field": "key"}, ["no field 'key'", "--id-field"]),
        (b'{"text": 5}\n', {}, ["line 1", "'text' is not text, but int"]),
        (b'{"text": ""}\n', {}, ["record 1", "no sequence"]),
        (b'{"text": "AC-T", "record": "x"}\n', {}, ["record 1 (x)", "position 3", "'-'"]),
        (b'{"text": "|d__Bacteria;|ACGT", "record": "x"}\n', {}, ["position 1", "'|'", "phylogenetic tag"]),
        (b"\n\n", {}, ["holds no record (read as jsonl)"]),
        (b'\xff{"text": "A"}\n', {}, ["line 1"]),
    ],
)
def test_json_lines_that_are_refused(tmp_path: Path, data: bytes, options: dict, words: list[str]) -> None:
    message = refusal(put(tmp_path / "a.jsonl", data), **options)
    for word in words:
        assert word in message


def write_table(path: Path, frame: pl.DataFrame) -> None:
    if path.suffix in {".parquet", ".pq"}:
        frame.write_parquet(path, row_group_size=3)
    elif path.suffix == ".ipc":
        frame.write_ipc_stream(path)
    else:
        frame.write_ipc(path)


@pytest.mark.parametrize("ending", [".parquet", ".pq", ".arrow", ".feather", ".ipc"])
def test_tables(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t{ending}"
    choose = random.Random(1)
    frame = pl.DataFrame(
        {
            "id": [f"c{i}" for i in range(10)],
            "sequence": ["".join(choose.choices("ACGT", k=choose.randrange(1, 99))) for _ in range(10)],
            "other": range(10),
        }
    )
    write_table(path, frame)
    expected = [Record(name, "", s, i) for i, (name, s, _) in enumerate(frame.rows(), start=1)]
    assert list(read_records(path)) == expected
    assert list(read_records(path, ReadOptions(id_field="other")))[3].name == "3"
    assert "has no field 'dna'" in refusal(path, text_field="dna")
    write_table(path, frame.with_columns(sequence=pl.lit(None, dtype=pl.String)))
    assert "row 1: its field 'sequence' is not text, but NoneType" in refusal(path)
    path.write_bytes(path.read_bytes()[:50])
    assert "cannot be read as" in refusal(path)


def test_genbank(tmp_path: Path) -> None:
    data = genbank(("NC_1.1", "ACGTACGT" * 30), ("NC_2.1", "AC"))
    expected = [Record("NC_1.1", "a phage", "ACGTACGT" * 30, 1), Record("NC_2.1", "a phage", "AC", 2)]
    assert list(read_records(put(tmp_path / "a.gbk", data))) == expected
    assert list(read_records(put(tmp_path / "a.gb.gz", gzip.compress(data)))) == expected
    assert "not with LOCUS" in refusal(put(tmp_path / "b.gb", b">c1\nACGT\n"))
    without = b"".join(line for line in data.splitlines(True) if not line[:9].strip().isdigit())
    assert "no bases" in refusal(put(tmp_path / "c.gb", without)) or "no sequence" in refusal(tmp_path / "c.gb")


@pytest.mark.parametrize(("module", "name"), [("pyarrow", "a.parquet"), ("pyarrow", "a.arrow"), ("Bio", "a.gb")])
def test_a_missing_package_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    for loaded in [each for each in sys.modules if each == module or each.startswith(f"{module}.")]:
        monkeypatch.setitem(sys.modules, loaded, None)
    with pytest.raises(MissingExtra, match=r"'\.\[formats\]'"):
        list(read_records(put(tmp_path / name, b"x")))


def test_unknown_format() -> None:
    with pytest.raises(UsageError, match="--format 'fastq' is not one of fasta, jsonl"):
        ReadOptions(format="fastq")


def test_folders_hold_sequence_files_and_tables_only_on_demand(tmp_path: Path) -> None:
    for name in ("a.fa", "b.jsonl.gz", "c.gbff", "d.parquet", "out/contigs.parquet", "out/x.fa"):
        put(tmp_path / name, b"x")
    out = tmp_path / "out"
    with pytest.warns(EdenWarning, match=r"d\.parquet not read"):
        assert [path.name for path in find_inputs([tmp_path], out=out)] == ["a.fa", "b.jsonl.gz", "c.gbff"]
    assert [path.name for path in find_inputs([tmp_path], format="parquet", out=out)] == ["d.parquet"]


def contents(out: Path) -> dict[str, list[tuple[str, str]]]:
    found = {}
    for path in sorted(out.glob("*/*.sqlite")):
        with closing(sqlite3.connect(path)) as database:
            found[path.parent.name] = database.execute("SELECT * FROM sequences ORDER BY rowid").fetchall()
    return found


def test_records_without_names_are_numbered(tmp_path: Path) -> None:
    put(tmp_path / "in/a.jsonl", lines([{"text": "AC"}, {"text": "AC"}]))
    build_sequence_dbs([tmp_path / "in"], tmp_path / "db")
    assert contents(tmp_path / "db") == {"a": [("BCR__ECT-a__CT1-1", "AC"), ("BCR__ECT-a__CT1-2", "AC")]}
    assert pl.read_parquet(tmp_path / "db/contigs.parquet")["original_id"].to_list() == ["", ""]


def test_sample_regex(tmp_path: Path) -> None:
    path = put(tmp_path / "all.fa", b">S1_c1\nA\n>S2_c1 S9_\nC\n>S1_c2\nG\n")
    build_sequence_dbs([path], tmp_path / "db", sample_regex=r"^(?P<sample>[^_]+)_")
    assert contents(tmp_path / "db") == {
        "S1": [("BCR__ECT-S1__CT1-1", "A"), ("BCR__ECT-S1__CT1-2", "G")],
        "S2": [("BCR__ECT-S2__CT1-1", "C")],
    }
    assert build_sequence_dbs([path], tmp_path / "db", sample_regex=r"^(?P<sample>[^_]+)_").samples == 0
    for pattern, error, words in [
        (r"(?P<sample>X\d)", InputError, r"record 1 \(S1_c1\): --sample-regex .* finds no sample in its name"),
        (r"(?P<name>S\d)", UsageError, "has no group"),
        (r"(?P<sample>", UsageError, "is not a pattern"),
        (r"(?P<sample>.*)_", None, ""),
    ]:
        if error is not None:
            with pytest.raises(error, match=words):
                build_sequence_dbs([path], tmp_path / "new", sample_regex=pattern)
    put(path, b">a-b_1\nA\n")
    with pytest.raises(UsageError, match=r"record 1 \(a-b_1\), by --sample-regex.*does not survive"):
        build_sequence_dbs([path], tmp_path / "new", sample_regex=r"^(?P<sample>[^_]+)_")
    with pytest.raises(UsageError, match="exclude each other"):
        build_sequence_dbs([path], tmp_path / "new", sample_regex="(?P<sample>a)", sample="S")


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    data = gzip.compress(lines(ROWS))
    give(data)
    build_sequence_dbs(["-"], tmp_path / "db", format="jsonl", sample="S")
    expected = {"S": [("BCR__ECT-S__CT1-1", "ACGTN"), ("BCR__ECT-S__CT1-2", "acgtryk")]}
    assert contents(tmp_path / "db") == expected
    assert pl.read_parquet(tmp_path / "db/contigs.parquet")["source_file"].to_list() == ["-", "-"]
    give(data)
    assert build_sequence_dbs(["-"], tmp_path / "db", format="jsonl", sample="S").samples == 0
    give(b">c1\nACGT\n")
    with pytest.raises(UsageError, match=r"-: record 1 \(c1\): names no sample, .*--sample NAME"):
        build_sequence_dbs(["-"], tmp_path / "new")
    give(b">B__X-T__1\nACGT\n")
    build_sequence_dbs(["-"], tmp_path / "new")
    assert contents(tmp_path / "new") == {"T": [("B__X-T__1", "ACGT")]}


def test_pipes_are_refused_because_files_are_read_more_than_once(tmp_path: Path) -> None:
    """A pipe gives its bytes once: a second look at it would begin in the middle."""
    read_end, write_end = os.pipe()
    os.write(write_end, b">c1\nAC\n")
    os.close(write_end)
    os.mkfifo(tmp_path / "x.fa")
    for pipe in (f"/dev/fd/{read_end}", tmp_path / "x.fa", f"{tmp_path}/x*"):
        with pytest.raises(
            InputError, match=r"(/fd/\d+|/x\.fa): is .*a pipe, .*: COMMAND \| sharded-eden build - --out SEQDB"
        ):
            find_inputs([pipe])
    with pytest.raises(InputError, match=r"is .*a pipe, which can be read only once"):
        build_sequence_dbs([f"/dev/fd/{read_end}"], tmp_path / "db", sample="S")
    os.close(read_end)
    with pytest.raises(InputError, match=r"/dev/null: is neither a file nor a folder$"):
        find_inputs([os.devnull])


def test_a_file_is_hashed_once_and_whole(tmp_path: Path) -> None:
    import xxhash

    data = gzip.compress(b">c1\nACGT\n" * 5_000) + b"\0" * 100  # tape archives append zeros
    path = put(tmp_path / "a.fa.gz", data)
    expected = xxhash.xxh3_128(data).hexdigest()
    assert file_state(path).hash == expected
    with Source(path) as source:
        assert len(list(read_records(source))) == 5_000
        state = source.finish()
    assert (state.hash, state.size_bytes, state.path) == (expected, len(data), str(path.resolve()))
    assert state.looks_unchanged()
    put(path, data + b"x")
    assert not state.looks_unchanged()


@given(
    st.lists(
        st.tuples(st.text("abc>#", min_size=1), st.text("ACGTNacgt", min_size=1, max_size=80)), min_size=1, max_size=8
    ),
    st.integers(1, 30),
    st.integers(1, 20),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "\n", "# comment\n", "  \n"]),
)
def test_blocks_of_any_size_hold_the_same_records(
    tmp_path_factory: pytest.TempPathFactory, contigs: list, block: int, width: int, end: str, between: str
) -> None:
    path = tmp_path_factory.mktemp("blocks") / "a.fa"
    text = ""
    for name, sequence in contigs:
        text += (
            f">n{name}{end}" + "".join(sequence[i : i + width] + end for i in range(0, len(sequence), width)) + between
        )
    path.write_bytes(text.encode())
    expected = [Record(f"n{name}", "", s, i) for i, (name, s) in enumerate(contigs, start=1)]
    whole = fasta.BLOCK_BYTES
    fasta.BLOCK_BYTES = block
    try:
        assert list(read_records(path)) == expected
    finally:
        fasta.BLOCK_BYTES = whole
