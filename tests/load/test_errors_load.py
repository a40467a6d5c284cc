"""Every documented error of opening and reading, with its message; and unusual databases that are not errors."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import worlds
from worlds import CONTIGS, STRIDE, T, as_lists, expected

from sharded_eden import Stream
from sharded_eden.errors import DatabaseError, EdenError, GeometryMismatch, MissingDatabase, MissingSequence, UsageError
from sharded_eden.windows.index import index_window_database

SAMPLES = ("S0", "S1", "S2.X")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return worlds.write(tmp_path)


def words_of(kind: type[EdenError], folder: Path, **options: object) -> str:
    """The message of the error that opening raises."""
    with pytest.raises(kind) as caught:
        worlds.dataset(folder, **options).close()
    assert type(caught.value) is kind
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def check_all(folder: Path, **options: object) -> None:
    """Every item equals that of the reference implementation."""
    with worlds.dataset(folder, **options) as dataset:
        for i in range(len(dataset)):
            assert as_lists(dataset[i]) == expected(folder, i)


# ---- folders and files ----


def test_no_folder_of_sequence_databases(folder):
    shutil.rmtree(folder / "seqs")
    words = words_of(MissingDatabase, folder)
    assert words.startswith(f"{folder}/seqs: no such folder")
    assert f"sharded-eden build INPUT --out {folder}/seqs" in words
    with pytest.raises(FileNotFoundError):
        worlds.dataset(folder)


def test_a_folder_without_databases(folder):
    for sample in SAMPLES:
        worlds.sample_db(folder, sample).unlink()
    (folder / "seqs" / "stray.txt").touch()
    words = words_of(MissingDatabase, folder)
    assert f"No SQLite sequence databases found in {folder}/seqs" in words
    assert "glm_dataset_<sample>.sqlite in 3 folders" in words
    assert f"sharded-eden build INPUT --out {folder}/seqs" in words


@pytest.mark.parametrize("stands_there", ["nothing", "a folder"])
def test_no_window_database(folder, stands_there):
    (folder / "windows.db").unlink()
    if stands_there == "a folder":
        (folder / "windows.db").mkdir()
    words = words_of(MissingDatabase, folder)
    assert words.startswith(f"{folder}/windows.db: no such window database")
    assert f"sharded-eden precompute SPLIT.parquet {folder}/windows.db" in words


def test_the_database_of_a_sample_is_missing(folder):
    worlds.sample_db(folder, "S1").unlink()
    words = words_of(MissingDatabase, folder)
    assert words.startswith(f"{folder}/windows.db names contig 'BCR__ECT-S1__CT1-1' of sample 'S1'")
    assert f"{folder}/seqs/S1 holds no glm_dataset_S1.sqlite" in words
    assert f"sharded-eden build INPUT --out {folder}/seqs" in words
    assert f"sharded-eden split {folder}/seqs --out DIR" in words


def test_an_index_names_the_samples_that_are_missing(folder, monkeypatch):
    index_window_database(folder / "seqs", folder / "windows.db")
    with monkeypatch.context() as patch:
        patch.setattr("sharded_eden.load.dataset.check_samples", lambda *_: pytest.fail("the index has every sample"))
        worlds.dataset(folder).close()
    hidden = worlds.sample_db(folder, "S1").rename(folder / "S1.sqlite")
    assert "of sample 'S1'" in words_of(MissingDatabase, folder)
    assert index_window_database(folder / "seqs", folder / "windows.db").without_address
    assert "of sample 'S1'" in words_of(MissingDatabase, folder)
    hidden.rename(worlds.sample_db(folder, "S1"))
    worlds.dataset(folder).close()


def test_missing_samples_are_found_whatever_the_tags_before_and_after(tmp_path):
    """The check seeks in an index; no other contig may hide a sample."""
    names = [
        ("A", "X"),
        ("B", "Y"),
        ("B", "Y_q"),
        ("B", "Y.z"),
        ("B_x", "Z"),
        ("B-", "W"),
        ("b", "V"),
        ("zz", "U"),
        ("Ü", "T"),
    ]
    contigs = {f"{tag}__E-{sample}__C-{k}": "ACGT" for tag, sample in names for k in range(3)}
    contigs = {i.replace("E-Y.z", "E-Y-z"): s for i, s in contigs.items()}
    for _, sample in names:
        folder = worlds.write(tmp_path / sample, contigs)
        worlds.dataset(folder).close()
        worlds.sample_db(folder, sample).unlink()
        assert f"of sample {sample!r}" in words_of(MissingDatabase, folder)


def test_all_tags_are_found_by_leaping(tmp_path):
    folder = worlds.write(
        tmp_path, {f"{tag}__E-X__{k}": "ACGT" for tag in ("B", "B_x", "Bx", "b", "BC") for k in range(3)}
    )
    with worlds.dataset(folder, use_control_tags=True) as dataset:
        assert list(dataset.ctrl_ids_map) == ["bc", "b", "b_x", "bx"]


def test_several_databases_need_ids_that_name_samples(folder):
    worlds.execute(folder / "windows.db", "UPDATE window_mappings SET sequence_id = 'chr1' WHERE window_idx = 2")
    words = words_of(DatabaseError, folder)
    assert words.startswith(f"{folder}/windows.db: sequence ID 'chr1' names no sample")
    assert "BCR__ECT-SAMPLE1__CT1-1" in words


@pytest.mark.parametrize("content", [b"contig_id,length\n" * 100, b"\0" * 4096, b"x"], ids=["text", "zeros", "a byte"])
@pytest.mark.parametrize("which", ["windows", "sequences"])
def test_not_an_sqlite_database(folder, which, content):
    path = folder / "windows.db" if which == "windows" else worlds.sample_db(folder, "S1")
    path.write_bytes(content)
    words = words_of(DatabaseError, folder)
    assert words.startswith(f"{path}: ")
    assert "it is not an SQLite database" in words or "cut short" in words


def test_an_empty_file_has_no_tables(folder):
    worlds.sample_db(folder, "S1").write_bytes(b"")
    words = words_of(DatabaseError, folder)
    assert words == (
        f"{worlds.sample_db(folder, 'S1')}: expected a table sequences(contig_id, nt_sequence), found none. "
        f"Rebuild: sharded-eden build INPUT --out {folder}/seqs --force"
    )
    (folder / "windows.db").write_bytes(b"")
    words = words_of(DatabaseError, folder)
    assert words.startswith(
        f"{folder}/windows.db: not a window database: expected a table metadata(key, value), found none"
    )


# ---- damage ----

LONG = {
    "BCR__ECT-S0__CT1-1": worlds.random_sequence(9000, 1),
    "BCR__ECT-S0__CT1-2": "ACGT",
    "BCR__ECT-S1__CT1-1": worlds.random_sequence(300, 2),
}


def sizes_to_cut_to(size: int) -> Iterator[int]:
    yield from (1, 50, 99, 100, 101, 512, 1000)
    for page in range(4096, size + 1, 4096):
        yield from (page - 4095, page - 2000, page - 1)
        if page < size:
            yield page


def error_of_reading_all(folder: Path, wanted: list[dict[str, list[float]]], **options: object) -> str:
    """Open a dataset and read what can be read, which must be right; return the first error, or no text."""
    first = ""
    try:
        with worlds.dataset(folder, **options) as dataset:
            for i, item in enumerate(wanted):
                try:
                    found = as_lists(dataset[i])
                except DatabaseError as error:
                    first = first or str(error)
                else:
                    assert found == item
    except DatabaseError as error:
        first = str(error)
    return first


@pytest.mark.parametrize("io", ["mmap", "read"])
@pytest.mark.parametrize("which", ["windows", "sequences"])
def test_a_file_cut_short_is_an_error_and_never_padding(tmp_path, which, io):
    """SQLite itself reads zeros after the end of a page that was cut."""
    folder = worlds.write(tmp_path, LONG)
    wanted = [expected(folder, i) for i in range(len(worlds.rows_of(folder)))]
    path = folder / "windows.db" if which == "windows" else worlds.sample_db(folder, "S0")
    whole = path.read_bytes()
    sizes = list(sizes_to_cut_to(len(whole)))
    assert len(sizes) > 20
    for size in sizes:
        path.write_bytes(whole[:size])
        assert error_of_reading_all(folder, wanted, io=io).startswith(f"{path}: ")
    path.write_bytes(whole)
    check_all(folder, io=io)


@pytest.mark.parametrize("read_with", ["blob", "substr"])
def test_a_page_of_zeros_is_an_error_and_never_padding(tmp_path, read_with):
    folder = worlds.write(tmp_path, LONG)
    path = worlds.sample_db(folder, "S0")
    whole = path.read_bytes()
    wanted = [expected(folder, i) for i in range(len(worlds.rows_of(folder)))]
    for page in range(4096, len(whole), 4096):
        path.write_bytes(whole[:page] + bytes(4096) + whole[page + 4096 :])
        assert error_of_reading_all(folder, wanted, read_with=read_with).startswith(f"{path}: ")


def test_what_cannot_be_read_does_not_spoil_what_can(tmp_path):
    folder = worlds.write(tmp_path, LONG)
    path = worlds.sample_db(folder, "S0")
    whole = path.read_bytes()
    first_overflow_page = whole.index(LONG["BCR__ECT-S0__CT1-1"][-4000:-3900].encode()) // 4096 - 1
    path.write_bytes(whole[: first_overflow_page * 4096] + bytes(4096) + whole[(first_overflow_page + 1) * 4096 :])
    rows = worlds.rows_of(folder)
    healthy = [rows.index(("BCR__ECT-S0__CT1-2", 0)), rows.index(("BCR__ECT-S1__CT1-1", 1))]
    dataset = worlds.dataset(folder)
    for _ in range(2):
        with pytest.raises(DatabaseError, match="damaged or cut short"):
            dataset[rows.index(("BCR__ECT-S0__CT1-1", 170))]
        assert [as_lists(dataset[i]) for i in healthy] == [expected(folder, i) for i in healthy]
    with pytest.raises(DatabaseError, match="damaged or cut short"), dataset:  # and not what closing adds to it
        dataset[rows.index(("BCR__ECT-S0__CT1-1", 170))]


@pytest.mark.parametrize("character", ["\0", "\1", "\n", "\r", "\t", "\x7f", "é", "\U0001f9ec"])
@pytest.mark.parametrize("form", ["blob", "substr", "utf16"])
def test_characters_that_are_no_letters(tmp_path, form, character):
    """Encoded, a zero would be padding that counts in the loss."""
    folder = worlds.write(tmp_path, {"BCR__ECT-S0__CT1-1": "A" * 90, "BCR__ECT-S1__CT1-1": "A" * 90})
    path = worlds.sample_db(folder, "S0")
    if form == "utf16":
        rewrite(path, SHAPES["utf-16le"])
    worlds.execute(path, ("UPDATE sequences SET nt_sequence = ?", ("A" * 30 + character + "A" * 60,)))
    with worlds.dataset(folder, read_with="auto" if form == "utf16" else form) as dataset:
        with pytest.raises(DatabaseError) as caught:
            dataset[0]
        assert str(caught.value).startswith(f"{path}: contig 'BCR__ECT-S0__CT1-1' cannot be encoded near base")
        assert dataset[1]["tokens"].tolist()[2:63] == [65] * 61


@pytest.mark.parametrize("value", [None, 12345, 1.5], ids=["null", "integer", "real"])
@pytest.mark.parametrize("read_with", ["blob", "substr"])
def test_a_sequence_that_is_no_text(folder, read_with, value):
    path = worlds.sample_db(folder, "S1")
    path.unlink()
    worlds.execute(
        path,
        "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence)",
        ("INSERT INTO sequences VALUES ('BCR__ECT-S1__CT1-1', ?)", (CONTIGS["BCR__ECT-S1__CT1-1"],)),
        ("INSERT INTO sequences VALUES ('Meta__ECT-S1__CT1-1', ?)", (value,)),
    )
    rows = worlds.rows_of(folder)
    with worlds.dataset(folder, read_with=read_with) as dataset:
        for _ in range(2):
            with pytest.raises(DatabaseError) as caught:
                dataset[rows.index(("Meta__ECT-S1__CT1-1", 0))]
            assert str(caught.value).startswith(f"{path}: nt_sequence of contig 'Meta__ECT-S1__CT1-1' is not text")
            window = rows.index(("BCR__ECT-S1__CT1-1", 0))  # the handle that failed does not spoil the next contig
            assert as_lists(dataset[window]) == expected(folder, window)


def test_sequences_kept_as_blobs_are_bytes_like_any_other(folder):
    for sample in SAMPLES:
        worlds.execute(worlds.sample_db(folder, sample), "UPDATE sequences SET nt_sequence = CAST(nt_sequence AS BLOB)")
    wanted = worlds.write(folder / "text")
    for read_with in ("blob", "substr"):
        with worlds.dataset(folder, read_with=read_with) as dataset:
            assert all(as_lists(dataset[i]) == expected(wanted, i) for i in range(len(dataset)))


# ---- the window database ----


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("DROP TABLE metadata", r"expected a table metadata\(key, value\), found none"),
        ("DROP TABLE window_mappings", r"window_mappings\(sequence_id, window_idx, window_in_seq_idx\), found none"),
        (
            "ALTER TABLE metadata RENAME COLUMN key TO name",
            r"expected a table metadata.*, found metadata\(name, value\)",
        ),
        ("ALTER TABLE window_mappings RENAME COLUMN window_idx TO i", r"found window_mappings\(i, sequence_id"),
        ("DELETE FROM metadata WHERE key = 'stride'", r"the table metadata lacks stride"),
        ("DELETE FROM metadata", r"the table metadata lacks window_size and stride"),
        (
            "UPDATE metadata SET value = 'wide' WHERE key = 'window_size'",
            r"metadata window_size='wide' is not an integer",
        ),
        ("UPDATE metadata SET value = 50.5 WHERE key = 'stride'", r"metadata stride=50.5 is not an integer"),
        ("UPDATE metadata SET value = x'41' WHERE key = 'stride'", r"metadata stride=b'A' is not an integer"),
        (
            "UPDATE metadata SET value = 0 WHERE key = 'stride'",
            r"its metadata contradicts itself: stride must be at least 1",
        ),
        ("INSERT INTO metadata VALUES ('total_windows', 'all')", r"metadata total_windows='all' is not an integer"),
        (
            "CREATE TABLE copy AS SELECT * FROM metadata; DROP TABLE metadata; ALTER TABLE copy RENAME TO metadata; "
            "INSERT INTO metadata VALUES ('stride', 7)",
            r"metadata holds the key 'stride' more than once: 50 and 7",
        ),
    ],
)
def test_not_a_window_database(folder, statement, found):
    worlds.execute(folder / "windows.db", *statement.split(";"))
    words = words_of(DatabaseError, folder)
    assert words.startswith(f"{folder}/windows.db: ")
    assert re.search(found, words)
    assert f"sharded-eden precompute SPLIT.parquet {folder}/windows.db" in words


def test_foreign_tables_are_named(folder):
    worlds.sample_db(folder, "S0").unlink()
    worlds.execute(worlds.sample_db(folder, "S0"), "CREATE TABLE sequences (id, seq, notes)")
    words = words_of(DatabaseError, folder)
    assert words == (
        f"{worlds.sample_db(folder, 'S0')}: expected a table sequences(contig_id, nt_sequence), found sequences(id, seq, notes)"
        f". Rebuild: sharded-eden build INPUT --out {folder}/seqs --force"
    )


def test_a_sequence_database_in_place_of_the_window_database(folder):
    shutil.copy(worlds.sample_db(folder, "S0"), folder / "windows.db")
    assert f"{folder}/windows.db: not a window database but a sequence database" in words_of(DatabaseError, folder)


@pytest.mark.parametrize(
    ("options", "built", "asked", "command"),
    [
        ({"stride": 51}, "stride=50", "stride=51", "--window-size 64 --stride 51 --window-min-length-threshold 5"),
        ({"seq_length": 65}, "window_size=64", "seq_length=65", "--window-size 65 --stride 50"),
        ({"window_min_length_threshold": 6}, "window_min_length_threshold=5", "window_min_length_threshold=6",
         "--window-size 64 --stride 50 --window-min-length-threshold 6"),
        ({"window_min_length_threshold": 0}, "window_min_length_threshold=5", "window_min_length_threshold=0",
         "--window-size 64 --stride 50"),
        ({"stride": 51, "seq_length": 65}, "window_size=64, stride=50", "seq_length=65, stride=51",
         "--window-size 65 --stride 51"),
        ({"stride": None, "seq_length": 2000}, "window_size=64", "seq_length=2000", "--window-size 2000 --stride 1800"),
    ],
)  # fmt: skip
def test_another_geometry(tmp_path, options, built, asked, command):
    folder = worlds.write(tmp_path, threshold=5)
    worlds.dataset(folder).close()  # None accepts what the database has
    worlds.dataset(folder, window_min_length_threshold=5).close()
    words = words_of(GeometryMismatch, folder, **options)
    assert words.startswith(f"{folder}/windows.db: mismatch: it was built with {built}; the dataset asks for {asked}")
    size = options.get("seq_length", 64)
    assert f"sharded-eden precompute SPLIT.parquet {folder}/windows.{size}.db --window-size {size} " in words
    assert command in words
    assert words.endswith("--window-min-length-threshold 5") or "threshold" in str(options)


def test_the_command_that_rebuilds_keeps_what_does_not_disagree(folder):
    worlds.execute(folder / "windows.db", "INSERT INTO metadata VALUES ('keep_tail', 1), ('special_tokens', 5)")
    words = words_of(GeometryMismatch, folder, stride=40)
    assert words.endswith("--window-size 64 --stride 40 --keep-tail --special-tokens 5")


@pytest.mark.parametrize("total", [10, 12, 0, -1, 2**40])
def test_totals_that_disagree(folder, total):
    worlds.execute(folder / "windows.db", ("INSERT INTO metadata VALUES ('total_windows', ?)", (total,)))
    words = words_of(DatabaseError, folder)
    assert words.startswith(f"{folder}/windows.db: {total} windows should be numbered 0 to {total - 1}")
    assert "the table holds 0 to 10. It is incomplete" in words
    assert f"sharded-eden precompute SPLIT.parquet {folder}/windows.db --window-size 64 --stride 50" in words


@pytest.mark.parametrize("window_idx", [0, 5])
def test_a_gap_in_the_numbering(folder, window_idx):
    worlds.execute(folder / "windows.db", f"DELETE FROM window_mappings WHERE window_idx = {window_idx}")
    words = words_of(DatabaseError, folder)
    assert words.startswith(f"{folder}/windows.db: 10 windows should be numbered 0 to 9")
    assert "It is incomplete. Rebuild: sharded-eden precompute SPLIT.parquet" in words


def test_a_gap_that_the_totals_hide_is_an_error_where_it_is_met(folder):
    worlds.execute(
        folder / "windows.db",
        "INSERT INTO metadata VALUES ('total_windows', 11)",
        "DELETE FROM window_mappings WHERE window_idx = 5",
    )
    with worlds.dataset(folder) as dataset:
        assert as_lists(dataset[4]) == expected(folder, 4)
        with pytest.raises(DatabaseError) as caught:
            dataset[5]
        assert str(caught.value).startswith(f"{folder}/windows.db: window 5 of 11 is missing")
        assert "sharded-eden precompute SPLIT.parquet" in str(caught.value)


def test_an_index_that_is_there_twice_is_refused_and_hides_no_gap(folder):
    """Without a primary key, a table may hold one index twice and lack another while all totals are right."""
    rows, metadata = worlds.rows_of(folder), worlds.query(folder / "windows.db", "SELECT * FROM metadata")
    (folder / "windows.db").unlink()
    worlds.execute(
        folder / "windows.db",
        "CREATE TABLE metadata (key TEXT, value INTEGER)",
        "CREATE TABLE window_mappings (window_idx INTEGER, sequence_id TEXT, window_in_seq_idx INTEGER)",
        *(("INSERT INTO metadata VALUES (?, ?)", row) for row in metadata),
        *(("INSERT INTO window_mappings VALUES (?, ?, ?)", (i, *row)) for i, row in enumerate(rows)),
        "UPDATE window_mappings SET window_idx = 3 WHERE window_idx = 5",
    )
    with worlds.dataset(folder) as dataset:
        whole = dataset.__getitems__([4, 4, 10, 0, 4])
        assert [as_lists(item) for item in whole] == [expected(folder, i) for i in (4, 4, 10, 0, 4)]
        for indices in ([5], [3], [3, 5], [5, 3], [3, 4, 5]):
            with pytest.raises(DatabaseError, match=r"window 5 of 11 is missing|window 3 is in the table 2 times"):
                dataset.__getitems__(indices)


@pytest.mark.parametrize("totals", [False, True])
def test_an_empty_window_database_opens_and_cannot_be_streamed(tmp_path, totals):
    folder = worlds.write(tmp_path, threshold=65, totals=totals)
    with worlds.dataset(folder, use_control_tags=True) as dataset:
        assert len(dataset) == dataset.length == dataset.distinct_sequences == 0
        assert list(dataset) == []
        assert dict(dataset.ctrl_ids_map) == {}
        assert isinstance(dataset.fingerprint, int)
        for index in (0, -1):
            with pytest.raises(IndexError, match="0 windows"):
                dataset[index]
        with pytest.raises(UsageError) as caught:
            Stream(dataset)
        assert str(caught.value).startswith(f"{folder}/windows.db holds no window")
        assert "--window-min-length-threshold" in str(caught.value)


# ---- contigs that contradict their windows ----


@pytest.mark.parametrize("read_with", ["blob", "substr"])
def test_a_contig_is_missing(folder, read_with):
    path = worlds.sample_db(folder, "S0")
    worlds.execute(path, "DELETE FROM sequences WHERE contig_id = 'BCR__ECT-S0__CT1-1'")
    window = worlds.rows_of(folder).index(("BCR__ECT-S0__CT1-1", 1))
    with worlds.dataset(folder, read_with=read_with, split="validation") as dataset:
        with pytest.raises(MissingSequence) as caught:
            dataset[window]
        assert str(caught.value) == (
            f"validation split, window {window}: contig 'BCR__ECT-S0__CT1-1' must have at least 114 bases; {path} has no such "
            f"contig. {folder}/windows.db belongs to other sequence databases. Make the splits and windows of these again: "
            f"sharded-eden split {folder}/seqs --out DIR, then sharded-eden precompute SPLIT.parquet {folder}/windows.db "
            "--window-size 64 --stride 50 --force"
        )
        after = worlds.rows_of(folder).index(("BCR__ECT-S0__CT1-2", 0))
        assert as_lists(dataset[after]) == expected(folder, after)


@pytest.mark.parametrize("read_with", ["blob", "substr"])
def test_a_contig_is_shorter_than_its_window(folder, read_with):
    path = worlds.sample_db(folder, "S0")
    worlds.execute(path, "UPDATE sequences SET nt_sequence = substr(nt_sequence, 1, 113) WHERE contig_id LIKE '%CT1-1'")
    rows = worlds.rows_of(folder)
    with worlds.dataset(folder, read_with=read_with) as dataset:
        assert as_lists(dataset[rows.index(("BCR__ECT-S0__CT1-1", 0))]) == expected(folder, 0)
        for k, needed in ((1, 114), (2, 164)):
            with pytest.raises(
                MissingSequence, match=rf"must have at least {needed} bases; {path} has 113 bases of it"
            ):
                dataset[rows.index(("BCR__ECT-S0__CT1-1", k))]


def test_a_threshold_says_how_long_a_first_window_must_be(tmp_path):
    folder = worlds.write(tmp_path, threshold=20)
    worlds.execute(
        worlds.sample_db(folder, "S0"), "UPDATE sequences SET nt_sequence = 'ACGT' WHERE contig_id LIKE '%CT1-2'"
    )
    window = worlds.rows_of(folder).index(("BCR__ECT-S0__CT1-2", 0))
    with worlds.dataset(folder) as dataset, pytest.raises(MissingSequence, match=r"at least 20 bases; .* has 4 bases"):
        dataset[window]


@pytest.mark.parametrize("window_in_seq_idx", [4, 10**9, -1])
@pytest.mark.parametrize("read_with", ["blob", "substr"])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_window_outside_of_its_contig(folder, recorded, read_with, window_in_seq_idx):
    """Such a row would hold no base at all, or bases from the wrong end."""
    if recorded:
        worlds.execute(
            folder / "windows.db",
            "CREATE TABLE contig_lengths (first_window_idx INTEGER PRIMARY KEY, length INTEGER NOT NULL)",
            "INSERT INTO contig_lengths VALUES (0, 200)",
        )
    worlds.execute(
        folder / "windows.db",
        f"UPDATE window_mappings SET window_in_seq_idx = {window_in_seq_idx} WHERE window_idx = 0",
    )
    with (
        worlds.dataset(folder, read_with=read_with) as dataset,
        pytest.raises(MissingSequence, match="has 200 bases of it"),
    ):
        dataset[0]


# ---- unusual databases that are read ----

SHAPES = {
    "without rowid": "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT NOT NULL) WITHOUT ROWID",
    "utf-16le": "PRAGMA encoding = 'UTF-16le'",
    "utf-16be": "PRAGMA encoding = 'UTF-16be'",
    "view": "CREATE TABLE parts (contig_id TEXT PRIMARY KEY, head TEXT, rest TEXT)",
}


def rewrite(path: Path, shape: str) -> None:
    """Write a sequence database again, in another shape."""
    rows = worlds.query(path, "SELECT contig_id, nt_sequence FROM sequences")
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute(shape)
    if "parts" in shape:
        connection.executemany("INSERT INTO parts VALUES (?, ?, ?)", [(i, s[:7], s[7:]) for i, s in rows])
        connection.execute("CREATE VIEW sequences AS SELECT contig_id, head || rest AS nt_sequence FROM parts")
    else:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT NOT NULL)"
        )
        connection.executemany("INSERT INTO sequences VALUES (?, ?)", rows)
    connection.commit()
    connection.close()


OBSTACLES = {
    "without rowid": "sequences is a WITHOUT ROWID table",
    "utf-16le": "its encoding is UTF-16le",
    "utf-16be": "its encoding is UTF-16be",
    "view": "sequences is a view",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_databases_that_rule_blob_reads_out_are_served_the_same_bytes(folder, shape):
    for sample in SAMPLES:
        rewrite(worlds.sample_db(folder, sample), SHAPES[shape])
    check_all(folder)
    check_all(folder, read_with="substr")
    words = words_of(DatabaseError, folder, read_with="blob")
    assert words == (
        f"{worlds.sample_db(folder, 'S0')}: BLOB reads were requested, but {OBSTACLES[shape]}. Leave read_with at 'auto'"
    )


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
def test_a_window_database_in_utf16(folder, encoding):
    metadata, rows = worlds.query(folder / "windows.db", "SELECT * FROM metadata"), worlds.rows_of(folder)
    (folder / "windows.db").unlink()
    worlds.execute(
        folder / "windows.db",
        f"PRAGMA encoding = '{encoding}'",
        "CREATE TABLE metadata (key TEXT PRIMARY KEY, value INTEGER NOT NULL)",
        "CREATE TABLE window_mappings (window_idx INTEGER PRIMARY KEY, sequence_id TEXT, window_in_seq_idx INTEGER)",
        "CREATE INDEX idx_sequence_id ON window_mappings(sequence_id)",
        *(("INSERT INTO metadata VALUES (?, ?)", row) for row in metadata),
        *(("INSERT INTO window_mappings VALUES (?, ?, ?)", (i, *row)) for i, row in enumerate(rows)),
    )
    with worlds.dataset(folder, use_control_tags=True) as dataset:
        assert set(dataset.ctrl_ids_map) == {"bcr", "meta", "tcr"}
    check_all(folder)


def test_a_window_database_without_its_index_is_scanned_and_says_so(folder, caplog):
    worlds.execute(folder / "windows.db", "DROP INDEX idx_sequence_id")
    check_all(folder)
    assert f"{folder}/windows.db has no index on sequence_id" in caplog.text
    caplog.clear()
    check_all(worlds.write(folder / "indexed"))
    assert not caplog.records


@pytest.mark.parametrize("page_size", [512, 65536])
def test_any_page_size(tmp_path, page_size):
    folder = worlds.write(tmp_path, LONG)
    for path in (folder / "windows.db", worlds.sample_db(folder, "S0"), worlds.sample_db(folder, "S1")):
        worlds.execute(path, f"PRAGMA page_size = {page_size}", "VACUUM")
        assert worlds.query(path, "PRAGMA page_size") == [(page_size,)]
    check_all(folder)


# ---- files beside a database ----


def open_wal(path: Path, *statements: str) -> sqlite3.Connection:
    """Commit statements that are in the write-ahead log only, and keep it there."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    assert path.with_name(path.name + "-wal").stat().st_size > 0
    return connection


@pytest.mark.parametrize("linked", [False, True], ids=["file", "link"])
@pytest.mark.parametrize("io", ["mmap", "read"])
def test_rows_in_a_write_ahead_log_are_seen(folder, io, linked):
    sequences, windows = worlds.sample_db(folder, "S0"), folder / "windows.db"
    if linked:
        for path in (sequences, windows):
            real = folder / "store" / path.name
            real.parent.mkdir(exist_ok=True)
            shutil.move(path, real)
            path.symlink_to(real)
    writers = [
        open_wal(sequences.resolve(), "UPDATE sequences SET nt_sequence = lower(replace(nt_sequence, 'A', 'N'))"),
        open_wal(
            windows.resolve(),
            "INSERT INTO window_mappings SELECT 11, sequence_id, window_in_seq_idx FROM window_mappings WHERE window_idx = 0",
        ),
    ]
    try:
        assert worlds.query(sequences, "SELECT count(*) FROM sequences WHERE nt_sequence GLOB '*[aA]*'") == [(0,)]
        with worlds.dataset(folder, io=io) as dataset:
            assert len(dataset) == 12
            assert ord("A") not in dataset[0]["tokens"].tolist()
            assert len(list(dataset.db_connections["S0"].execute("SELECT * FROM windows.window_mappings"))) == 12
            check_all(folder, io=io)
    finally:
        for writer in writers:
            writer.close()


def test_a_transaction_cut_off_halfway_is_no_data(folder):
    """The file holds half a transaction, which only the journal beside it can undo."""
    path = worlds.sample_db(folder, "S0")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA cache_size = 1")
    writer.execute("BEGIN")
    writer.execute("UPDATE sequences SET nt_sequence = 'TTTT'")
    writer.executemany("INSERT INTO sequences VALUES (?, ?)", [(f"x{i}", "A" * 5000) for i in range(50)])
    crashed = folder / "crashed"
    shutil.copytree(folder / "seqs", crashed / "seqs")
    shutil.copy(folder / "windows.db", crashed)
    writer.execute("ROLLBACK")
    writer.close()
    assert list((crashed / "seqs" / "S0").glob("*-journal"))
    words = words_of(DatabaseError, crashed)
    assert words.startswith(
        f"{worlds.sample_db(crashed, 'S0')}: a program was stopped while writing it; open it once with sqlite3"
    )
    assert len(worlds.query(worlds.sample_db(crashed, "S0"), "SELECT * FROM sequences")) == 2
    check_all(crashed)


# ---- permissions ----


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder whose parents anybody may enter, which those of `tmp_path` are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def as_nobody(function: Callable[[], object]) -> str:
    """Run a function in a child process without privileges; return what it returns, or the error, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            text = str(function())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def make_read_only(folder: Path) -> None:
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o555)


@pytest.mark.parametrize("io", ["mmap", "read"])
def test_read_only_folders_are_enough(public, io):
    worlds.write(public)
    for sample in SAMPLES:  # databases whose write-ahead log was closed in good order
        worlds.execute(worlds.sample_db(public, sample), "PRAGMA journal_mode = WAL")
    make_read_only(public)
    before = sorted(public.rglob("*"))
    wanted = [expected(public, i) for i in range(11)]

    def read() -> bool:
        with worlds.dataset(public, io=io) as dataset:
            joined = list(
                dataset.db_connections["S0"].execute("SELECT count(*) FROM sequences, windows.window_mappings")
            )
            return joined == [(22,)] and [as_lists(dataset[i]) for i in range(11)] == wanted

    try:
        assert as_nobody(read) == "True"
    finally:
        os.chmod(public, 0o755)
    assert [path for path in sorted(public.rglob("*")) if path.suffix not in {".sqlite-shm", ".sqlite-wal"}] == before


def test_a_write_ahead_log_in_a_read_only_folder(public):
    """Without write permission SQLite may be unable to read the log; that must be an error."""
    folder = worlds.write(public)
    path = worlds.sample_db(folder, "S0")
    writer = open_wal(path, "UPDATE sequences SET nt_sequence = replace(nt_sequence, 'A', 'N')")
    copy = public / "copy"
    shutil.copytree(folder / "seqs", copy / "seqs")
    shutil.copy(folder / "windows.db", copy)
    writer.close()
    worlds.sample_db(copy, "S0").with_name("glm_dataset_S0.sqlite-shm").unlink()
    make_read_only(copy)
    words = as_nobody(lambda: as_lists(worlds.dataset(copy)[0]))
    assert words.startswith(
        f"DatabaseError: {worlds.sample_db(copy, 'S0')}: it cannot be opened; look at its permissions"
    )
    assert "where there is a -wal" in words


def test_a_database_that_may_not_be_read(public):
    folder = worlds.write(public)
    worlds.sample_db(folder, "S1").chmod(0)
    words = as_nobody(lambda: worlds.dataset(folder))
    assert words.startswith(
        f"DatabaseError: {worlds.sample_db(folder, 'S1')}: it cannot be opened; look at its permissions"
    )


def test_a_log_folder_that_may_not_be_written(public):
    folder = worlds.write(public)
    words = as_nobody(lambda: worlds.dataset(folder, log_windows=True, log_dir=folder / "log")[0])
    assert words == f"UsageError: {folder}/log: the window access log cannot be written (Permission denied)"


# ---- names ----

ODD_NAMES = [
    "with spaces", "hash#mark", "question?mark", "per%20cent%", "quote'\"", "größe-ß-基因", "semi;colon&and=equals",
    "new\nline", "back\\slash", "[brackets]*", os.fsdecode(b"not utf-8 \xff"),
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_paths_with_odd_characters(tmp_path, name):
    folder = tmp_path / name
    worlds.write(tmp_path / "plain")
    shutil.move(tmp_path / "plain", folder)
    os.rename(folder / "windows.db", folder / f"{name}.db")
    options = {"seq_length": T, "stride": STRIDE}
    with worlds.ShardedEdenDataset(None, folder / "seqs", folder / f"{name}.db", **options) as dataset:
        shutil.copytree(folder, tmp_path / "again")
        os.rename(tmp_path / "again" / f"{name}.db", tmp_path / "again" / "windows.db")
        for i in range(11):
            assert as_lists(dataset[i]) == expected(tmp_path / "again", i)
        statement = "SELECT count(*) FROM sequences JOIN windows.window_mappings ON contig_id = sequence_id"
        assert sum(connection.execute(statement).get for connection in dataset.db_connections.values()) == 11


def test_samples_with_odd_names(tmp_path):
    contigs = {
        f"BCR__ECT-{name}__CT1-1": "ACGT" * (5 + k) for k, name in enumerate(["a b", "ü", "x#y", "p%41", "q?z", "a.b"])
    }
    check_all(worlds.write(tmp_path, contigs))


@pytest.mark.parametrize("form", ["relative", "two slashes", "text", "dots"])
def test_paths_in_any_form(folder, monkeypatch, form):
    monkeypatch.chdir(folder)
    base = {"relative": "", "two slashes": f"/{folder}/", "text": f"{folder}/", "dots": f"{folder}/seqs/../"}[form]
    with worlds.ShardedEdenDataset(None, base + "seqs", base + "windows.db", T, stride=STRIDE) as dataset:
        assert as_lists(dataset[0]) == expected(folder, 0)
        assert dataset.db_connections["S0"].execute("SELECT count(*) FROM windows.window_mappings").get == 11


def test_unknown_ways_of_reading(folder):
    assert words_of(UsageError, folder, io="nfs") == "io must be 'auto', 'mmap' or 'read', not 'nfs'"
    assert words_of(UsageError, folder, read_with="sql") == "read_with must be 'auto', 'blob' or 'substr', not 'sql'"


def test_a_row_without_room(folder):
    folder = worlds.write(folder / "tiny", window_size=3, stride=1)
    words = words_of(UsageError, folder, seq_length=3, stride=1)
    assert words.startswith("seq_length=3 leaves no room for a base beside 2 header tokens and EOS")
    with worlds.dataset(folder, seq_length=3, stride=1, include_sep=False) as dataset:
        assert dataset[0]["tokens"].tolist() == [1, ord(CONTIGS["BCR__ECT-S0__CT1-1"][0]), 2]


def test_lower_case_is_shown_as_upper_case_by_both_readers(tmp_path):
    sequence = worlds.random_sequence(300, 1, "acgtryswkmbdhvnACGTU")
    folder = worlds.write(tmp_path, {"BCR__ECT-S0__CT1-1": sequence, "BCR__ECT-S1__CT1-1": sequence.lower()})
    for read_with in ("blob", "substr"):
        check_all(folder, read_with=read_with)
        with worlds.dataset(folder, read_with=read_with) as dataset:
            half = len(dataset) // 2
            assert all(np.array_equal(dataset[i]["tokens"], dataset[i + half]["tokens"]) for i in range(half))
