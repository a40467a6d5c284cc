"""Databases of other programs: right data or an `EdenError`, and no code in them runs."""

from __future__ import annotations

import re
import shutil
import time
from contextlib import closing
from pathlib import Path

import pytest
import worlds
from worlds import as_lists, execute, expected, query, sample_db

import oracle
from sharded_eden import ShardedEdenDataset, pack_window_database, verify
from sharded_eden.errors import DatabaseError, EdenError, MissingDatabase, MissingSequence
from sharded_eden.format import sqlite
from sharded_eden.format.sqlite import open_read_only
from sharded_eden.windows.index import index_window_database

ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM r) SELECT"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return worlds.write(tmp_path)


def read_all(folder: Path) -> None:
    with worlds.dataset(folder) as dataset:
        for i in range(len(dataset)):
            assert as_lists(dataset[i]) == expected(folder, i)


def refused(folder: Path, words: str) -> None:
    """Both the loader and `verify` report the database."""
    with pytest.raises(DatabaseError, match=words):
        read_all(folder)
    for full in (False, True):
        found = verify(folder / "seqs", [folder / "windows.db"], full=full).findings
        assert any(finding.severity == "error" for finding in found)


@pytest.mark.parametrize("table", ["metadata", "window_mappings"])
def test_a_view_in_a_window_database_is_refused(folder, table):
    columns = ", ".join(row[1] for row in query(folder / "windows.db", f"PRAGMA table_info({table})"))
    execute(
        folder / "windows.db",
        f"ALTER TABLE {table} RENAME TO other",
        f"CREATE VIEW {table} AS SELECT {columns} FROM other",
    )
    refused(folder, f"{table} is a view, but must be a table")


def test_an_endless_view_of_a_window_database(folder):
    execute(
        folder / "windows.db",
        "DROP TABLE window_mappings",
        f"CREATE VIEW window_mappings AS {ENDLESS} n AS window_idx, 'x' AS sequence_id, 0 AS window_in_seq_idx FROM r",
    )
    refused(folder, "window_mappings is a view")
    with pytest.raises(DatabaseError, match="window_mappings is a view"):
        pack_window_database(folder / "windows.db")


def test_an_endless_view_of_sequences_ends_at_a_time_limit(folder, monkeypatch):
    monkeypatch.setattr(sqlite.limit_query_time, "__defaults__", (0.3,))
    path = sample_db(folder, "S0")
    execute(
        path,
        "DROP TABLE sequences",
        f"CREATE VIEW sequences AS {ENDLESS} cast(n AS text) AS contig_id, 'A' AS nt_sequence FROM r WHERE n < 0",
    )
    begun = time.monotonic()
    refused(folder, "a query of it took longer than")
    assert time.monotonic() - begun < 10


def test_a_view_with_an_unknown_function(folder):
    path = sample_db(folder, "S0")
    execute(path, "ALTER TABLE sequences RENAME TO other")
    execute(path, "CREATE VIEW sequences AS SELECT contig_id, unknown(nt_sequence) AS nt_sequence FROM other")
    refused(folder, "no such function: unknown")


def test_nothing_that_a_database_contains_is_run(folder):
    """A trigger on the table of packs would change every window."""
    execute(
        folder / "windows.db",
        "CREATE TABLE contig_lengths (first_window_idx INTEGER PRIMARY KEY, length INTEGER NOT NULL)",
        "INSERT INTO contig_lengths SELECT min(window_idx), 200 FROM window_mappings GROUP BY sequence_id",
        "CREATE TRIGGER evil AFTER INSERT ON metadata BEGIN UPDATE window_mappings SET sequence_id = 'x'; END",
        "UPDATE contig_lengths SET length = 100000",
    )
    before = worlds.rows_of(folder)
    pack_window_database(folder / "windows.db")
    assert worlds.rows_of(folder) == before
    with closing(open_read_only(folder / "windows.db")) as connection, pytest.raises(Exception, match="not authorized"):
        connection.execute("SELECT load_extension('x')")


@pytest.mark.parametrize("value", ["'text'", "NULL", "x'41'", "1.5"])
def test_a_position_that_is_no_integer(folder, value):
    rows = worlds.rows_of(folder)
    execute(
        folder / "windows.db",
        "DROP TABLE window_mappings",
        "CREATE TABLE window_mappings (window_idx INTEGER PRIMARY KEY, sequence_id, window_in_seq_idx)",
        *(("INSERT INTO window_mappings VALUES (?, ?, ?)", (i, *row)) for i, row in enumerate(rows)),
        f"UPDATE window_mappings SET window_in_seq_idx = {value} WHERE window_idx = 3",
    )
    with worlds.dataset(folder) as dataset:
        assert as_lists(dataset[2]) == expected(folder, 2)
        for read in (lambda: dataset[3], lambda: dataset.__getitems__([2, 3])):
            with pytest.raises(DatabaseError, match=r"window 3: window_in_seq_idx is .* instead of an integer"):
                read()


@pytest.mark.parametrize("value", ["'text'", "x'41'", "1.5"])
def test_a_recorded_length_that_is_no_integer(folder, value):
    execute(
        folder / "windows.db",
        "CREATE TABLE contig_lengths (first_window_idx INTEGER PRIMARY KEY, length)",
        f"INSERT INTO contig_lengths SELECT window_idx, {value} FROM window_mappings",
    )
    with pytest.raises(DatabaseError, match="instead of an integer"):
        read_all(folder)


@pytest.mark.parametrize("value", ["5", "NULL", "x'41'"])
def test_an_id_that_is_no_text(folder, value):
    rows = worlds.rows_of(folder)
    execute(
        folder / "windows.db",
        "DROP TABLE window_mappings",
        "CREATE TABLE window_mappings (window_idx INTEGER PRIMARY KEY, sequence_id, window_in_seq_idx)",
        *(("INSERT INTO window_mappings VALUES (?, ?, ?)", (i, *row)) for i, row in enumerate(rows)),
        f"UPDATE window_mappings SET sequence_id = {value} WHERE window_idx = 3",
    )
    with pytest.raises(DatabaseError, match="sequence_id"):
        read_all(folder)
    execute(folder / "windows.db", "CREATE INDEX i ON window_mappings(sequence_id)")
    refused(folder, "sequence_id")


@pytest.mark.parametrize(
    ("which", "statement"),
    [
        ("windows.db", "INSERT INTO metadata VALUES (CAST(x'FF41' AS TEXT), 1)"),
        ("windows.db", "UPDATE window_mappings SET sequence_id = CAST(x'FF41' AS TEXT)"),
        ("seqs/S0/glm_dataset_S0.sqlite", "UPDATE sequences SET contig_id = CAST(x'FF41' AS TEXT) WHERE rowid = 1"),
    ],
)
def test_text_that_is_not_utf_8(folder, which, statement):
    execute(folder / which, statement)
    with pytest.raises(EdenError):
        read_all(folder)
    assert verify(folder / "seqs", [folder / "windows.db"], full=True).findings


def test_column_names_that_are_not_utf_8(folder):
    path = sample_db(folder, "S0")
    execute(path, "ALTER TABLE sequences ADD COLUMN abcd TEXT")
    path.write_bytes(path.read_bytes().replace(b"abcd", b"ab\xff\xfe"))
    read_all(folder)


def test_columns_with_all_names_of_the_row_number(folder):
    path = sample_db(folder, "S0")
    execute(path, *(f"ALTER TABLE sequences ADD COLUMN {name} TEXT" for name in ("rowid", "_rowid_", "OID")))
    read_all(folder)


@pytest.mark.parametrize("stored", ["VIRTUAL", "STORED"])
@pytest.mark.parametrize("column", ["nt_sequence TEXT AS (upper(raw))", "nt_sequence TEXT, n AS (length(raw))"])
def test_a_generated_column_is_read_by_substr(folder, stored, column):
    path = sample_db(folder, "S0")
    rows = query(path, "SELECT contig_id, nt_sequence FROM sequences")
    path.unlink()
    execute(path, f"CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, raw TEXT, {column} {stored})")
    columns = "contig_id, raw" if "upper" in column else "contig_id, nt_sequence"
    execute(path, *((f"INSERT INTO sequences ({columns}) VALUES (?, ?)", row) for row in rows))
    read_all(folder)


def test_a_contig_twice_in_a_table_without_a_key(folder):
    path = sample_db(folder, "S0")
    rows = query(path, "SELECT contig_id, nt_sequence FROM sequences")
    path.unlink()
    execute(
        path,
        "CREATE TABLE sequences (contig_id TEXT, nt_sequence TEXT)",
        *(("INSERT INTO sequences VALUES (?, ?)", row) for row in rows),
    )
    read_all(folder)
    execute(path, "INSERT INTO sequences SELECT contig_id, 'ACGT' FROM sequences LIMIT 1")
    refused(folder, "contig 'BCR__ECT-S0__CT1-1' is in it 2 times")


def test_ids_are_compared_with_their_case(folder):
    """A column that ignores case must not give the sequence of another contig."""
    path = sample_db(folder, "S0")
    rows = query(path, "SELECT contig_id, nt_sequence FROM sequences")
    path.unlink()
    execute(
        path,
        "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY COLLATE NOCASE, nt_sequence TEXT)",
        *(("INSERT INTO sequences VALUES (?, ?)", (name.lower(), text)) for name, text in rows),
    )
    for read_with in ("blob", "substr"):
        with (
            worlds.dataset(folder, read_with=read_with) as dataset,
            pytest.raises(DatabaseError, match="no such contig"),
        ):
            dataset[0]


def test_short_last_windows_of_a_program_that_says_nothing_of_them(tmp_path):
    (tmp_path / "seqs/S0").mkdir(parents=True)
    contigs = {"BCR__ECT-S0__CT1-1": worlds.random_sequence(160)}
    worlds.oracle.write_sequence_dbs(tmp_path / "seqs", contigs)
    execute(
        tmp_path / "windows.db",
        "CREATE TABLE metadata (key TEXT PRIMARY KEY, value INTEGER NOT NULL)",
        "INSERT INTO metadata VALUES ('window_size', 64), ('stride', 60)",
        "CREATE TABLE window_mappings (window_idx INTEGER PRIMARY KEY, sequence_id TEXT, window_in_seq_idx INTEGER)",
        *(("INSERT INTO window_mappings VALUES (?, 'BCR__ECT-S0__CT1-1', ?)", (k, k)) for k in range(3)),
    )
    with ShardedEdenDataset(None, tmp_path / "seqs", tmp_path / "windows.db", 64) as dataset:
        assert len(dataset[1]["tokens"]) == 64
        with pytest.raises(MissingSequence, match="If its last windows are short on purpose") as caught:
            dataset[2]
    command = re.search("INSERT OR REPLACE INTO metadata VALUES .*?\\)", str(caught.value))
    assert command is not None
    execute(tmp_path / "windows.db", command[0])
    with ShardedEdenDataset(None, tmp_path / "seqs", tmp_path / "windows.db", 64) as dataset:
        assert bytes(dataset.fetch(2).bases).decode() == contigs["BCR__ECT-S0__CT1-1"][120:]


@pytest.mark.parametrize("has_index", [True, False])
def test_one_sequence_database_and_windows_of_other_samples(tmp_path, has_index):
    folder = worlds.write(tmp_path)
    if not has_index:
        execute(folder / "windows.db", "DROP INDEX idx_sequence_id")
    for sample in ("S1", "S2.X"):
        sample_db(folder, sample).unlink()
        sample_db(folder, sample).parent.rmdir()
    with pytest.raises(MissingDatabase, match=r"of sample 'S1'.*holds the sequence database of 'S0' only"):
        worlds.dataset(folder)
    assert not verify(folder / "seqs", [folder / "windows.db"]).is_clean


@pytest.mark.parametrize("name", ["chr1", "a__b", "BCR__ECT-S0__CT1-1"])
def test_one_sequence_database_needs_no_sample_ids(tmp_path, name):
    (tmp_path / "seqs/S0").mkdir(parents=True)
    execute(
        sample_db(tmp_path, "S0"),
        "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT NOT NULL)",
        ("INSERT INTO sequences VALUES (?, ?)", (name, "ACGT" * 50)),
    )
    oracle.write_window_db(tmp_path / "windows.db", {name: "ACGT" * 50}, 64, 50)
    with ShardedEdenDataset(None, tmp_path / "seqs", tmp_path / "windows.db", 64, stride=50) as dataset:
        assert dataset[0]["tokens"].tolist()[2:6] == list(b"ACGT")


@pytest.mark.parametrize("is_indexed", [False, True])
def test_a_second_sequence_database_needs_sample_ids(tmp_path, is_indexed):
    folder = worlds.write(tmp_path, {"BCR__ECT-S0__CT1-1": "ACGT" * 50})
    execute(sample_db(folder, "S0"), "UPDATE sequences SET contig_id = 'BCR__ECT-S7__CT1-1'")
    (folder / "windows.db").unlink()
    oracle.write_window_db(folder / "windows.db", {"BCR__ECT-S7__CT1-1": "ACGT" * 50}, worlds.T, worlds.STRIDE)
    if is_indexed:
        assert not index_window_database(folder / "seqs", folder / "windows.db").without_address
    worlds.dataset(folder).close()
    shutil.copytree(folder / "seqs/S0", folder / "seqs/S1")
    (folder / "seqs/S1/glm_dataset_S0.sqlite").rename(sample_db(folder, "S1"))
    with pytest.raises(MissingDatabase, match="of sample 'S7'"):
        worlds.dataset(folder)


def one_database_of_two_samples(folder):
    contigs = {"BCR__ECT-S1__CT1-1": "ACGT" * 50, "BCR__ECT-S2__CT1-1": "TTTT" * 50}
    worlds.write(folder, contigs)
    execute(sample_db(folder, "S1"), "INSERT INTO sequences VALUES ('BCR__ECT-S2__CT1-1', '" + "TTTT" * 50 + "')")
    shutil.rmtree(folder / "seqs/S2")
    assert not index_window_database(folder / "seqs", folder / "windows.db").without_address


def test_an_index_of_one_database_does_not_vouch_for_another_one(tmp_path):
    one_database_of_two_samples(tmp_path)
    worlds.dataset(tmp_path).close()
    execute(sample_db(tmp_path, "S1"), "DELETE FROM sequences WHERE contig_id LIKE '%S2%'")
    with pytest.raises(MissingDatabase, match="of sample 'S2'"):
        worlds.dataset(tmp_path)


def test_a_database_beside_one_that_was_alone_has_the_contigs_of_its_sample(tmp_path, caplog):
    one_database_of_two_samples(tmp_path)
    other = worlds.write(tmp_path / "other", {"BCR__ECT-S2__CT1-1": "GGGG" * 50})
    shutil.copytree(other / "seqs/S2", tmp_path / "seqs/S2")
    with worlds.dataset(tmp_path) as dataset:
        rows = [dataset[i]["tokens"].tolist() for i in range(len(dataset))]
    assert any(row[2:10] == list(b"GGGGGGGG") for row in rows)
    assert not any(row[2:10] == list(b"TTTTTTTT") for row in rows)
    assert "is not used: it was written when S1 was the only sequence database" in caplog.text
    assert "sharded-eden index" in caplog.text


def test_a_database_beside_one_that_was_alone_keeps_its_index(tmp_path, caplog):
    folder = worlds.write(tmp_path, {"BCR__ECT-S1__CT1-1": "ACGT" * 50})
    index_window_database(folder / "seqs", folder / "windows.db")
    other = worlds.write(tmp_path / "other", {"BCR__ECT-S2__CT1-1": "GGGG" * 50})
    shutil.copytree(other / "seqs/S2", folder / "seqs/S2")
    with worlds.dataset(folder) as dataset:
        assert dataset._addresses is not None
    assert "is not used" not in caplog.text


def test_ctrl_c_ends_a_query(folder):
    """Python handles the signal while SQLite works."""
    import signal

    with closing(open_read_only(folder / "windows.db")) as connection:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                connection.execute(f"{ENDLESS} count(*) FROM r").fetchall()
        finally:
            signal.signal(signal.SIGALRM, before)
