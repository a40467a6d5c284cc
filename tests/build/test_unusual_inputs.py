"""Inputs that are ambiguous, truncated or hostile."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from backports import zstd

from sharded_eden import build_sequence_dbs
from sharded_eden.build.formats import ReadOptions
from sharded_eden.build.records import find_inputs, read_records
from sharded_eden.errors import EdenWarning, InputError, UsageError
from sharded_eden.format.parquet_batches import BATCH_BYTES, LONGEST_BATCH_BYTES, MOST_ROWS, batch_limit

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("Bio")


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read(path: Path, **options) -> list[tuple[str, str, str]]:
    return [record[:3] for record in read_records(path, ReadOptions(**options))]


def refusal(path: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


# ---- line ends, byte order marks, text ----


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            b">a first\rACGTACGT\rACGT\r>b second\rGGGGCC\r>c unix\nTTTTAA\n",
            [("a", "first", "ACGTACGTACGT"), ("b", "second", "GGGGCC"), ("c", "unix", "TTTTAA")],
        ),
        (b">a\rACGTACGT\nGGGG\n", [("a", "", "ACGTACGTGGGG")]),
        (b">a\r\nAC\r\r\nGT\n\r>b\rTT", [("a", "", "ACGT"), ("b", "", "TT")]),
        (b"\xef\xbb\xbf>a\nAC\n", [("a", "", "AC")]),
    ],
)
@pytest.mark.parametrize("block", [1, 2, 3, 5, 1 << 18])
def test_every_line_end_ends_a_line_of_fasta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, expected: list, block: int
) -> None:
    from sharded_eden.build import fasta

    monkeypatch.setattr(fasta, "BLOCK_BYTES", block)
    assert read(put(tmp_path / "a.fa", data)) == expected


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_line_end_ends_a_line_of_json_and_genbank(tmp_path: Path, end: bytes, mark: bytes) -> None:
    lines = mark + end.join([b'{"text": "AC", "id": "a"}', b"", b'{"text": "GT", "id": "b"}'])
    assert read(put(tmp_path / "a.jsonl", lines)) == [("a", "", "AC"), ("b", "", "GT")]
    data = mark + (genbank("A.1", "ACGT") + genbank("B.1", "GGG")).replace(b"\n", end)
    assert [(name, s) for name, _, s in read(put(tmp_path / "a.gb", data))] == [("A.1", "ACGT"), ("B.1", "GGG")]


@pytest.mark.parametrize("ending", [".fa", ".jsonl", ".gb"])
def test_utf16_is_named(tmp_path: Path, ending: str) -> None:
    assert "is UTF-16" in refusal(put(tmp_path / f"a{ending}", ">a\nACGT\n".encode("utf-16")))


def test_a_header_that_is_not_utf8_is_named_with_record_and_line(tmp_path: Path) -> None:
    data = b"# comment \xe9\n>a\nACGT\n>b caf\xe9\nACGT\n"
    message = refusal(put(tmp_path / "a.fa.gz", gzip.compress(data)))
    assert "record 2, line 4" in message
    assert "byte 0xe9 at character 7" in message
    assert "line 2: is not text in UTF-8: byte 0xff" in refusal(
        put(tmp_path / "a.jsonl", b'{"text": "A"}\n{"id": "\xff"}\n')
    )


@pytest.mark.parametrize("line", [b"A" * 500_000 + b"!", b"!" + b"A" * 500_000])
def test_messages_do_not_repeat_the_file(tmp_path: Path, line: bytes) -> None:
    refusal(put(tmp_path / "a.fa", b">c\n" + line + b"\n"))
    refusal(put(tmp_path / "b.fa", line + b"\n"))
    refusal(put(tmp_path / "c.fa", b">" + line + b"\x1b[2J\n"))
    refusal(put(tmp_path / "d.jsonl", b'{"' + line + b'": 1}\n'))
    refusal(put(tmp_path / "e.gb", line + b"\n"))


def test_names_in_messages_are_safe_for_a_terminal(tmp_path: Path) -> None:
    for data in (b">a\x1b[2Jb\nACGT\n", b">a \x1b[2Jb\nACXT\n", b">\xc2\x9b31m\nACGT\n"):
        assert refusal(put(tmp_path / "a.fa", data)).isprintable()
    assert refusal(put(tmp_path / "a.jsonl", b'{"text": "A", "id": "a\x1bb"}\n')).isprintable()


def test_an_odd_character_in_a_long_line_takes_linear_time(tmp_path: Path) -> None:
    seconds = []
    for megabytes in (8, 32):
        path = put(tmp_path / "a.fa", b">c\n" + b"A" * (megabytes << 20) + b"!\n")
        started = time.perf_counter()
        assert f"position {(megabytes << 20) + 1} holds '!'" in refusal(path)
        seconds.append(time.perf_counter() - started)
    assert seconds[1] < 10 * seconds[0] + 0.5
    assert "holds other characters than bases" in refusal(put(tmp_path / "b.fa", b">c\n!" + b"A" * (65 << 20)))


def test_bytes_after_gzip_data_are_not_called_truncated(tmp_path: Path) -> None:
    whole = gzip.compress(b">c\nACGT\n")
    for tail in (b"x", b"\0\0x", b">c2\nACGT\n", b"garbage" * 9):
        message = refusal(put(tmp_path / "a.fa.gz", whole + tail))
        assert "bytes that are not gzip" in message
        assert "truncated" not in message
    assert "truncated" in refusal(put(tmp_path / "a.fa.gz", whole + whole[:9]))
    assert read(put(tmp_path / "a.fa.gz", whole + b"\0" * 99)) == [("c", "", "ACGT")]


RECORDS = [b">a\nACGT\n", b">b\nGGGG\n", b">c\nTTTT\n"]


@pytest.mark.parametrize(("ending", "compress"), [("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_damaged_stream_behind_the_first_is_an_error(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"a.fa.{ending}"
    first, second, third = map(compress, RECORDS)
    assert read(put(path, first + second + third)) == [("a", "", "ACGT"), ("b", "", "GGGG"), ("c", "", "TTTT")]
    for at in range(len(second)):
        changed = bytearray(second)
        changed[at] ^= 0x10
        try:
            assert len(read(put(path, first + bytes(changed) + third))) == 3, at
        except InputError:
            continue
    for tail in (RECORDS[1], b"x", b"garbage" * 9):
        assert "damaged (stream 1 is followed by bytes that begin no other)" in refusal(put(path, first + tail))
    for size in range(1, len(second)):
        assert "truncated" in refusal(put(path, first + second[:size])), size
    big = b">a\n" + b"ACGT" * 700_000 + b"\n"  # more than one block, in and out
    assert read(put(path, compress(big) + second))[0][2] == "ACGT" * 700_000


def test_padding_between_the_streams_of_xz(tmp_path: Path) -> None:
    path = tmp_path / "a.fa.xz"
    first, second = map(lzma.compress, RECORDS[:2])
    for zeros in (4, 8, 1 << 18):
        for data in (first + b"\0" * zeros + second, first + b"\0" * zeros + second + b"\0" * zeros):
            assert [name for name, _, _ in read(put(path, data))] == ["a", "b"]
    for data in (first + b"\0" * 3 + second, first + b"\0" * 5):
        assert "no multiple of 4" in refusal(put(path, data))
    assert "begin no other" in refusal(put(tmp_path / "a.fa.bz2", bz2.compress(RECORDS[0]) + b"\0" * 4))


def test_zstandard_that_begins_with_a_skippable_frame(tmp_path: Path) -> None:
    whole = zstd.compress(RECORDS[0])
    for magic in (0x50, 0x5F):
        skippable = bytes([magic]) + b"\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"\x09\0\0\0"
        assert read(put(tmp_path / "a.fa.zst", skippable + whole)) == [("a", "", "ACGT")]
        assert read(put(tmp_path / "a.fa", skippable + whole + skippable + zstd.compress(RECORDS[1])))[1][0] == "b"


# ---- GenBank ----


def genbank(name: str, sequence: str, length: int | None = None) -> bytes:
    from Bio.Seq import Seq
    from Bio.SeqIO import write
    from Bio.SeqRecord import SeqRecord

    text = io.StringIO()
    record = SeqRecord(
        Seq(sequence), id=name, name=name.split(".", maxsplit=1)[0], annotations={"molecule_type": "DNA"}
    )
    write(record, text, "genbank")
    data = text.getvalue()
    if length is not None:
        data = data.replace(f"{len(sequence)} bp", f"{length} bp".rjust(len(f"{len(sequence)} bp")), 1)
    return data.encode()


@pytest.mark.filterwarnings("ignore:Expected sequence length")
def test_genbank_files_that_are_cut_short(tmp_path: Path) -> None:
    whole = genbank("A.1", "ACGTACGT" * 30) + genbank("B.1", "GGCC" * 40)
    assert len(read(put(tmp_path / "a.gb", whole))) == 2
    lines = whole.splitlines(keepends=True)
    complete = {0, len(whole), len(genbank("A.1", "ACGTACGT" * 30))}
    for count in range(1, len(lines)):
        cut = b"".join(lines[:count])
        if len(cut) not in complete:
            refusal(put(tmp_path / "a.gb", cut))
    for cut in (3, 5, 20, 90):
        refusal(put(tmp_path / "a.gb", whole[:-cut]))
    first, second = lines.index(b"//\n"), len(lines)
    refusal(put(tmp_path / "a.gb", b"".join(lines[:first] + lines[first + 1 : second])))  # no // between two records
    del lines[first - 1]  # a line of bases
    assert "bases, its LOCUS line says 240" in refusal(put(tmp_path / "a.gb", b"".join(lines)))
    assert "its LOCUS line says 9" in refusal(put(tmp_path / "b.gb", genbank("A.1", "ACGTA", 9)))


# ---- names ----


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("c1", "c1"), (b"c1 x", "c1"), (b"\xc3\xa9", "é"), (7, "7"), (None, ""),
        (b"\xff", None), (1.5, None), (float("nan"), None), ([1], None), (["a"], None), ({"a": 1}, None), (True, None),
        (datetime(2026, 1, 1), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".jsonl"])
def test_names_are_text_or_integers(tmp_path: Path, ending: str, value: object, name: str | None) -> None:
    path = tmp_path / f"a{ending}"
    if ending == ".jsonl":
        if isinstance(value, (bytes, datetime)):
            pytest.skip("not in JSON")
        path.write_text(json.dumps({"text": "ACGT", "id": value}) + "\n")
    else:
        write_table(path, pa.table({"text": ["ACGT"], "id": [value]}))
    if name is not None:
        assert [found for found, _, _ in read(path)] == [name]
        return
    message = refusal(path)
    assert "row 1" in message or "line 1" in message
    assert "'id'" in message


def write_table(path: Path, table) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_tables_with_two_columns_of_one_name(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    text = pa.array(["ACGT"])
    write_table(path, pa.Table.from_arrays([text, text], names=["text", "text"]))
    assert "has 2 fields 'text'" in refusal(path)
    write_table(path, pa.Table.from_arrays([text, text, text], names=["text", "id", "id"]))
    assert "has 2 fields 'id'" in refusal(path)
    assert read(path, id_field="") == [("", "", "ACGT")]


def test_json_with_two_fields_of_one_name(tmp_path: Path) -> None:
    assert "has 2 fields 'text'" in refusal(put(tmp_path / "a.jsonl", b'{"text": "A", "text": "C"}\n'))
    assert read(put(tmp_path / "a.jsonl", b'{"text": "A", "x": {"y": 1, "y": 2}}\n')) == [("", "", "A")]


@pytest.mark.parametrize(
    "line", [b'{"text": "A", "id": "a \\ud800"}', b'{"text": "A", "id": "\\ud800"}', b"[" * 200_000]
)
def test_json_that_no_database_can_hold(tmp_path: Path, line: bytes) -> None:
    path = put(tmp_path / "a.jsonl", line + b"\n")
    refusal(path)
    with pytest.raises(InputError):
        build_sequence_dbs([path], tmp_path / "db")
    assert not (tmp_path / "db").exists()


def test_a_time_that_python_cannot_express_is_no_name(tmp_path: Path) -> None:
    table = pa.table({"text": ["ACGT"], "id": pa.array([2**62], pa.timestamp("s"))})
    write_table(tmp_path / "a.arrow", table)
    assert "row 1: cannot be read" in refusal(tmp_path / "a.arrow")


# ---- binary formats ----


def test_feather_version_1_is_named(tmp_path: Path) -> None:
    assert "Feather version 1" in refusal(put(tmp_path / "a.feather", b"FEA1" + b"\0" * 60 + b"FEA1"))


MUTATE = """
import random, sys
from sharded_eden.build.records import read_records
from sharded_eden.errors import InputError
path, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
whole = open(path, "rb").read()
copy = f"{path}.{first}.{path.rsplit('.', 1)[1]}"
for seed in range(first, last):
    choose = random.Random(seed)
    data = bytearray(whole)
    for _ in range(choose.randrange(1, 6)):
        at = choose.randrange(len(data))
        data[at] = choose.choice([0, 1, 127, 128, 255, choose.randrange(256)])
    if choose.random() < 0.1:
        del data[choose.randrange(len(data)):]
    open(copy, "wb").write(data)
    try:
        for _ in read_records(copy):
            pass
    except InputError:
        pass
print("done", flush=True)
"""


@pytest.mark.parametrize(
    ("ending", "mutations"),
    [
        ("arrow", 300),
        ("parquet", 100),
        pytest.param("arrow", 5_000, marks=pytest.mark.slow),
        pytest.param("ipc", 5_000, marks=pytest.mark.slow),
        pytest.param("parquet", 3_000, marks=pytest.mark.slow),
    ],
)
def test_damaged_tables_neither_crash_nor_raise_other_errors(tmp_path: Path, ending: str, mutations: int) -> None:
    path = tmp_path / f"a.{ending}"
    table = pa.table({"text": ["ACGT" * i for i in range(1, 40)], "id": [f"c{i}" for i in range(1, 40)]})
    if ending == "ipc":
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    elif ending == "parquet":
        pq.write_table(table, path, row_group_size=13)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    done = subprocess.run(
        [sys.executable, "-c", MUTATE, str(path), "0", str(mutations)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


# ---- files that grow ----

BOMB = """
import resource, sys
from sharded_eden.build import fasta, formats, source
limit = 50_000_000
fasta.MAX_CONTIG_BASES = source.MAX_CONTIG_BASES = limit
source.MAX_LINE = formats.MAX_LINE = limit
from sharded_eden.build.records import read_records
from sharded_eden.errors import InputError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    list(read_records(sys.argv[1]))
except Exception as error:
    print("InputError" if isinstance(error, InputError) else type(error).__name__, error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(
    ("name", "start", "part", "end"),
    [
        ("a.fa.gz", b">c\n", b"A" * 1_000_000, b"\n"),
        ("b.fa.gz", b">c\n", b"A" * 999_999 + b"\n", b""),
        ("c.jsonl.gz", b'{"text": "', b"A" * 1_000_000, b'"}\n'),
        ("d.fa.gz", b">", b"x" * 1_000_000, b"\nA\n"),
    ],
)
def test_decompression_stops_at_the_limit(tmp_path: Path, name: str, start: bytes, part: bytes, end: bytes) -> None:
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(400):
            file.write(part)
        file.write(end)
    done = subprocess.run([sys.executable, "-c", BOMB, tmp_path / name], capture_output=True, text=True, check=False)
    message, megabytes = done.stdout.splitlines()
    assert message.startswith("InputError"), done.stdout
    assert int(megabytes) < 260
    assert resource  # used by the program above


TABLE_BOMB = """
import resource, sys
from itertools import islice
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
from sharded_eden.build.records import read_records
for record in islice(read_records(sys.argv[1]), 5):
    pass
print(len(record.sequence), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.parametrize("long_field", ["text", "id"])
def test_a_value_that_many_rows_of_parquet_share_is_kept_once(tmp_path: Path, long_field: str) -> None:
    rows, long = 100_000, "ACGT" * 225_000
    names = pa.array([f"c{i}" for i in range(rows)])
    fields = {"text": pa.array(["ACGT"] * rows), "id": names}
    shared = [f"BCR__ECT-S__{'d' * 100} {long}"] if long_field == "id" else [long]
    fields[long_field] = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(shared))
    pq.write_table(pa.table(fields), tmp_path / "S.parquet", compression="zstd")
    assert (tmp_path / "S.parquet").stat().st_size < 2_000_000  # stands for 90 GB
    done = subprocess.run(
        [sys.executable, "-c", TABLE_BOMB, tmp_path / "S.parquet"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    length, megabytes = map(int, done.stdout.split())
    assert length == (900_000 if long_field == "text" else 4)
    assert megabytes < 2_000


def test_how_many_rows_of_parquet_are_decoded_at_once(tmp_path: Path) -> None:
    path, long = tmp_path / "S.parquet", "ACGT" * 25_000
    table = pa.table(
        {"text": [long + "ACGTN"[i] for i in range(5)], "id": [b"0001", b"0002", b"0003", b"0004", b"0005"]}
    )
    pq.write_table(table, path, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY", "id": "PLAIN"})
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(0)]
    stored = groups[0].column(0).total_uncompressed_size
    assert stored < 2 * len(long)  # of 5: each repeats the one before it
    most, is_shared = batch_limit(table.schema.field("text"), groups, "S")
    assert (most * stored <= LONGEST_BATCH_BYTES < (most + 1) * stored, is_shared) == (True, False)
    assert batch_limit(table.schema.field("id"), groups, "S") == (MOST_ROWS, True)
    assert batch_limit(pa.field("id", pa.binary(BATCH_BYTES // 3)), groups, "S") == (3, False)
    with pytest.raises(InputError, match="'id' is neither text nor an integer, but list"):
        batch_limit(pa.field("id", pa.list_(pa.string())), groups, "S")
    assert [r.sequence for r in read_records(path)] == table["text"].to_pylist()


# ---- folders, links, URLs, paths ----


def test_linked_folders_are_read_and_loops_end(tmp_path: Path) -> None:
    put(tmp_path / "store/B/b.fa", b">b\nA\n")
    put(tmp_path / "in/A/a.fa", b">a\nA\n")
    (tmp_path / "in/B").symlink_to("../store/B")
    assert [file.name for file in find_inputs([tmp_path / "in"])] == ["a.fa", "b.fa"]
    (tmp_path / "in/A/loop").symlink_to("..")
    with pytest.warns(EdenWarning, match=r"in/A/loop is .*in"):
        assert [file.name for file in find_inputs([tmp_path / "in"])] == ["a.fa", "b.fa"]


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.fa").symlink_to("gone.fa")
    for given in (tmp_path / "in", tmp_path / "in/x.fa", f"{tmp_path}/in/*.fa"):
        with pytest.raises(InputError, match=r"x\.fa: is a link to gone\.fa that leads nowhere"):
            find_inputs([given])
    (tmp_path / "in/x.fa").unlink()
    os.mkfifo(tmp_path / "in/x.fa")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        find_inputs([tmp_path / "in"])


def test_files_given_twice_are_named(tmp_path: Path) -> None:
    put(tmp_path / "a.fa", b">a\nA\n")
    (tmp_path / "b.fa").symlink_to("a.fa")
    with pytest.warns(EdenWarning, match=r"read once: .*b\.fa is .*a\.fa"):
        assert find_inputs([tmp_path]) == [tmp_path / "a.fa"]


@pytest.mark.parametrize(
    "url", ["s3://bucket/a.fa", "https://x.org/a.fa", "gs://b/*.fa", "file:///tmp/a.fa", "s3:/b/a.fa"]
)
def test_urls_are_refused_by_name(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="is a URL"):
        build_sequence_dbs([url], tmp_path / "db")
    with pytest.raises(UsageError, match="is a URL"):
        build_sequence_dbs([put(tmp_path / "a.fa", b">a\nA\n")], url)
    with pytest.raises(UsageError, match="is a URL"):
        build_sequence_dbs([tmp_path / "a.fa"], tmp_path / "db", scratch=url)
