"""Reading FASTA: what is accepted, and the message of every error."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import dnaio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharded_eden.build import fasta
from sharded_eden.build.records import Record, default_sample_id, find_inputs, read_records
from sharded_eden.errors import EdenWarning, InputError, UsageError
from sharded_eden.format import schema

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FASTA = b">c1 first contig\nACGTN\nacgtn\n>c2\nRYSWKMBDHVU\n"
RESERVED = {"contigs.parquet", "manifest.sqlite"}
RECORDS = [Record("c1", "first contig", "ACGTNacgtn", 1), Record("c2", "", "RYSWKMBDHVU", 2)]


def bgzip(data: bytes, block: int = 4_000) -> bytes:
    """The blocked gzip format: SAM/BAM format specification, section 4.1."""
    out = b""
    for part in [*(data[i : i + block] for i in range(0, len(data), block)), b""]:
        deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
        packed = deflate.compress(part) + deflate.flush()
        out += b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + struct.pack("<H", len(packed) + 25)
        out += packed + struct.pack("<II", zlib.crc32(part), len(part))
    return out


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bgz": bgzip,
    ".fa.gz": bgzip,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
    ".bz2": bz2.compress,
}


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        list(read_records(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_plain_file(tmp_path: Path) -> None:
    assert list(read_records(write(tmp_path / "a.fa", FASTA))) == RECORDS


@pytest.mark.parametrize(
    "data",
    [
        FASTA.replace(b"\n", b"\r\n"),
        FASTA.rstrip(),
        b"\n  \n" + FASTA.replace(b"\n>", b"\n\n \t\n>") + b"\n\n",
        FASTA.replace(b"c1 first", b"c1\tfirst"),
        FASTA.replace(b">c1", b"> c1"),
    ],
)
def test_line_ends_and_white_space_do_not_matter(tmp_path: Path, data: bytes) -> None:
    assert list(read_records(write(tmp_path / "a.fa", data))) == RECORDS


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_compressed_file(tmp_path: Path, ending: str) -> None:
    assert list(read_records(write(tmp_path / f"a.fa{ending}", COMPRESSORS[ending](FASTA)))) == RECORDS


def test_compression_is_told_by_content_where_the_ending_does_not_say(tmp_path: Path) -> None:
    assert list(read_records(write(tmp_path / "a.fa", gzip.compress(FASTA)))) == RECORDS


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_truncated_file(tmp_path: Path, ending: str) -> None:
    letters = random.Random(1)
    data = b"".join(b">c%d\n%s\n" % (i, bytes(letters.choices(b"ACGT", k=2_000))) for i in range(5))
    whole = COMPRESSORS[ending](data)
    cuts = [*range(1, 30), 100, 1_000, len(whole) // 2, len(whole) - 30, len(whole) - 11]
    for cut in cuts:
        assert "truncated" in refusal(write(tmp_path / f"a.fa{ending}", whole[:-cut])), f"{cut} bytes cut off"


def test_bgzip_file_cut_between_two_blocks(tmp_path: Path) -> None:
    whole = bgzip(FASTA * 2_000)
    second = struct.unpack("<H", whole[16:18])[0] + 1
    assert "without the block that ends one" in refusal(write(tmp_path / "a.fa.gz", whole[:second]))


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_damaged_file(tmp_path: Path, ending: str) -> None:
    data = bytearray(COMPRESSORS[ending](b">c1\n" + bytes(random.Random(1).choices(b"ACGT", k=50_000))))
    data[len(data) // 2] ^= 0xFF
    refusal(write(tmp_path / f"a.fa{ending}", bytes(data)))


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst", ".bz2"])
def test_ending_that_lies_about_compression_does_no_harm(tmp_path: Path, ending: str) -> None:
    assert list(read_records(write(tmp_path / f"a.fa{ending}", FASTA))) == RECORDS


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b">c1\nACGT\n>c2\nACGT\nAC-T\n", ["record 2 (c2)", "position 7", "'-'"]),
        (b">c1\nAC GT\n", ["record 1 (c1)", "position 3", "' '"]),
        (b">c1\nACGTE\n", ["position 5", "'E'", "IUPAC"]),
        ("ACGTé\n".join([">c1\n", ""]).encode(), ["record 1 (c1)", "position 5", "'é'"]),
        (b">c1\nACGT\n>c2\n>c3\nA\n", ["record 2 (c2)", "no sequence"]),
        (b">c1\nACGT\n>c2\n", ["record 2 (c2)", "no sequence"]),
        (b">\nACGT\n", ["record 1", "no name"]),
        (b">c\x001\nACGT\n", ["record 1", "control characters"]),
        (b"", ["holds no record"]),
        (b"\n \n", ["holds no record"]),
        (b"@r1\nACGT\n+\nIIII\n", ["FASTQ", "line 1"]),
        (b"LOCUS NC_000913\n", ["is not FASTA", "line 1"]),
        (b">c1\nACGT\n>caf\xe9\nACGT\n", ["UTF-8"]),
    ],
)
def test_what_is_refused_names_file_record_and_position(tmp_path: Path, data: bytes, words: list[str]) -> None:
    message = refusal(write(tmp_path / "a.fa", data))
    for word in words:
        assert word in message


def test_every_iupac_letter_is_taken_in_either_case_and_no_other(tmp_path: Path) -> None:
    for letter in map(chr, range(33, 127)):
        if letter in "#>":  # comments and headers at the beginning of a line
            continue
        path = write(tmp_path / "a.fa", f">c\nA{letter}\n".encode())
        if letter.upper() in schema.NUCLEOTIDES:
            assert [record.sequence for record in read_records(path)] == [f"A{letter}"]
        else:
            assert repr(letter) in refusal(path)


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.fa")


def test_position_grows_to_the_size_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fa.gz", gzip.compress(FASTA * 10))
    seen: list[int] = []
    assert len(list(read_records(path, position=seen.append))) == 20
    assert seen == sorted(seen)
    assert seen[-1] == path.stat().st_size


def test_inputs_are_files_folders_and_patterns_each_file_once(tmp_path: Path) -> None:
    names = ["b.fa", "a.FASTA.gz", "sub/c.fna.zst", "sub/deep/d.fsa", "x.txt", "x.gz", ".hidden.fa", ".cache/e.fa"]
    for name in names:
        write(tmp_path / name, FASTA)
    found = find_inputs([tmp_path])
    assert [str(f.relative_to(tmp_path)) for f in found] == ["a.FASTA.gz", "b.fa", "sub/c.fna.zst", "sub/deep/d.fsa"]
    assert find_inputs([tmp_path / "x.txt"]) == [
        tmp_path / "x.txt"
    ]  # a file that is named is read, whatever its ending
    assert find_inputs([f"{tmp_path}/**/*.fsa"]) == [tmp_path / "sub/deep/d.fsa"]
    assert find_inputs([f"{tmp_path}/su*"]) == [tmp_path / "sub/c.fna.zst", tmp_path / "sub/deep/d.fsa"]
    with pytest.warns(EdenWarning, match=r"b\.fa is .*b\.fa"):
        again = find_inputs([tmp_path / "b.fa", tmp_path / "sub/../b.fa", tmp_path])
    assert [f.name for f in again] == ["b.fa", "a.FASTA.gz", "c.fna.zst", "d.fsa"]


def test_a_file_of_a_folder_that_needs_format_is_named(tmp_path: Path) -> None:
    for name in ("a.fa", "contigs.parquet", "skipped.parquet", "weights.bin", ".hidden.parquet"):
        write(tmp_path / "in" / name, FASTA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_inputs([tmp_path / "in"]) == [tmp_path / "in/a.fa"]
    for name in ("sub/b.parquet", "sub/c.BIN", "sub/c.idx", "sub/d.arrow"):
        write(tmp_path / "in" / name, FASTA)
    for sources in ([f"{tmp_path}/in"], [f"{tmp_path}/i*"]):
        with pytest.warns(EdenWarning, match=r"in/sub/b\.parquet and 2 more not read: .* only with --format$"):
            assert find_inputs(sources) == [tmp_path / "in/a.fa"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = [tmp_path / f"in/sub/{name}" for name in ("b.parquet", "c.BIN", "d.arrow")]
        assert find_inputs([tmp_path / "in", *named]) == [tmp_path / "in/a.fa", *named]
        assert find_inputs([tmp_path / "in"], format="parquet")[-1] == named[0]
    with pytest.raises(InputError, match=r"holds no file to read \(\.fa.*\)\. For b\.parquet, give its --format"):
        find_inputs([tmp_path / "in/sub"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no file to read \(\.fa[^)]*\)$"):
        find_inputs([tmp_path / "in", tmp_path / "empty"])


def test_inputs_that_stand_for_nothing(tmp_path: Path) -> None:
    write(tmp_path / "x.txt", b"")
    with pytest.raises(InputError, match=r"holds no file to read \(\.fa"):
        find_inputs([tmp_path])
    with pytest.raises(InputError, match=r"none\.fa: no such file"):
        find_inputs([tmp_path / "none.fa"])
    with pytest.raises(InputError, match="no file matches"):
        find_inputs([f"{tmp_path}/*.fa"])
    with pytest.raises(InputError, match="no input"):
        find_inputs([])


@pytest.mark.parametrize(
    ("name", "sample_id"),
    [
        ("SAMPLE1.fa", "SAMPLE1"),
        ("dir/my-genome__v2.fasta.gz", "my.genome_v2"),
        ("GCF_000005845.2_ASM584v2_genomic.fna.gz", "GCF_000005845.2_ASM584v2_genomic"),
        ("a b(1)_.fa", "a.b.1."),
        ("-x_.fa", "x"),
        ("reads.txt", "reads.txt"),
        ("ü.fa.zst", "UsageError"),
        ("___.fa", "UsageError"),
    ],
)
def test_default_sample_id(name: str, sample_id: str) -> None:
    if sample_id == "UsageError":
        with pytest.raises(UsageError, match="--sample NAME"):
            default_sample_id(name)
    else:
        assert default_sample_id(name) == sample_id


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1), st.integers(1, 10**9))
def test_default_sample_id_survives_the_round_trip(stem: str, ordinal: int) -> None:
    if not any(c.isascii() and c.isalnum() for c in stem) or re.sub("[^A-Za-z0-9]+", ".", stem).strip(".") in RESERVED:
        return
    sample_id = default_sample_id(f"{stem}.fa.gz")
    assert schema.extract_sample_id(schema.make_sequence_id("BCR", sample_id, ordinal)) == sample_id
    schema.check_sample_id(sample_id, "test")


LINES = st.lists(
    st.sampled_from([b">c1", b">c2 some words", b">c3>odd", b"ACGT", b"NNNNacgt", b"  ACGT ", b"", b"RYK\r"]),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(lines=LINES, block_bytes=st.integers(1, 40), ends=st.booleans())
def test_fasta_is_read_as_dnaio_reads_it(lines: list[bytes], block_bytes: int, ends: bool) -> None:
    data = b"\n".join([b">first", *lines]) + b"\n" * ends
    wanted = [(r.name, r.sequence) for r in dnaio.open(io.BytesIO(data), fileformat="fasta", open_threads=0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fasta, "BLOCK_BYTES", block_bytes)
        found = [(f"{name} {rest}".strip(), s) for name, rest, s, _, _ in fasta.fasta_entries(io.BytesIO(data), "a.fa")]
    assert found == [(" ".join(name.split()), sequence) for name, sequence in wanted]
