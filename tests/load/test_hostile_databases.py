"""Hostile databases, and files that change while they are read: an `EdenError`, or right data."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import pytest
import torch
import worlds
from torch.utils.data import DataLoader
from worlds import as_lists, execute, expected, sample_db

from sharded_eden.errors import DatabaseError, EdenError, MissingDatabase

N = 11


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return worlds.write(tmp_path)


def read_all(folder: Path, **options) -> list[dict]:
    with worlds.dataset(folder, **options) as dataset:
        return [as_lists(item) for item in dataset.__getitems__(range(len(dataset)))]


LOOSE_WINDOWS = (
    "ALTER TABLE window_mappings RENAME TO strict_windows",
    "CREATE TABLE window_mappings (window_idx INTEGER PRIMARY KEY, sequence_id, window_in_seq_idx)",
    "INSERT INTO window_mappings SELECT * FROM strict_windows",
    "DROP TABLE strict_windows",
)


@pytest.mark.parametrize("value", ["'one'", "NULL", "x'01'", "0.5", "'1.0 '"])
@pytest.mark.parametrize("column", ["window_in_seq_idx", "sequence_id"])
def test_values_of_another_type_in_window_mappings(folder, column, value):
    execute(
        folder / "windows.db", *LOOSE_WINDOWS, f"UPDATE window_mappings SET {column} = {value} WHERE window_idx = 4"
    )
    with pytest.raises(DatabaseError, match=r"windows\.db"):
        read_all(folder)


@pytest.mark.parametrize("value", ["'long'", "NULL", "x'01'", "0.5"])
def test_values_of_another_type_in_contig_lengths(tmp_path, value):
    folder = worlds.write(tmp_path)
    execute(
        folder / "windows.db",
        "CREATE TABLE contig_lengths (first_window_idx INTEGER PRIMARY KEY, length)",
        f"INSERT INTO contig_lengths SELECT min(window_idx), {value} FROM window_mappings GROUP BY sequence_id",
        "INSERT OR REPLACE INTO metadata VALUES ('distinct_sequences', 5)",
    )
    try:
        found = read_all(folder)
    except DatabaseError as error:
        assert "windows.db" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert found == [expected(folder, k) for k in range(N)]


@pytest.mark.parametrize("what", ["sequence_id", "key", "column"])
def test_texts_that_are_not_utf8(folder, what):
    statement = {
        "sequence_id": "UPDATE window_mappings SET sequence_id = CAST(x'ff41' AS TEXT) WHERE window_idx = 4",
        "key": "INSERT INTO metadata VALUES (CAST(x'ff' AS TEXT), 1)",
        "column": "ALTER TABLE window_mappings ADD COLUMN extra",
    }[what]
    execute(folder / "windows.db", statement)
    if what == "column":
        raw = (folder / "windows.db").read_bytes()
        assert raw.count(b"extra") == 1
        (folder / "windows.db").write_bytes(raw.replace(b"extra", b"\xff\xfe\xfda\xfa"))
    try:
        found = read_all(folder)
    except DatabaseError as error:
        assert "windows.db" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert what != "sequence_id"
        assert found == [expected(folder, k) for k in range(N)]


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"
VIEWS = {
    "metadata": f"{ENDLESS} 'stride' AS key, i AS value FROM n",
    "window_mappings": f"{ENDLESS} i AS window_idx, 'x' AS sequence_id, 0 AS window_in_seq_idx FROM n",
    "contig_lengths": f"{ENDLESS} i AS first_window_idx, 1 AS length FROM n",
}


@pytest.mark.parametrize("table", VIEWS)
def test_views_in_a_window_database_are_refused(folder, table):
    execute(folder / "windows.db", f"DROP TABLE IF EXISTS {table}", f"CREATE VIEW {table} AS {VIEWS[table]}")
    started = time.monotonic()
    with pytest.raises(DatabaseError, match="view"):
        read_all(folder)
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_an_endless_view_of_sequences_ends_in_an_error(folder):
    query = f"{ENDLESS} 'x' || i AS contig_id, 'ACGT' AS nt_sequence FROM n"
    execute(sample_db(folder, "S0"), "DROP TABLE sequences", f"CREATE VIEW sequences AS {query}")
    started = time.monotonic()
    with pytest.raises(DatabaseError, match="took longer than"):
        read_all(folder)
    assert time.monotonic() - started < 20


def test_a_view_with_an_unknown_function(folder):
    path = sample_db(folder, "S0")
    execute(path, "ALTER TABLE sequences RENAME TO kept")
    connection = sqlite3.connect(path)
    connection.create_function("elsewhere", 1, lambda text: text)
    connection.execute("CREATE VIEW sequences AS SELECT contig_id, elsewhere(nt_sequence) AS nt_sequence FROM kept")
    connection.commit()
    connection.close()
    with pytest.raises(DatabaseError, match="S0"):
        read_all(folder)


def test_columns_with_all_names_of_the_row_number(folder):
    path = sample_db(folder, "S0")
    execute(
        path,
        *(f"ALTER TABLE sequences ADD COLUMN {name}" for name in ("rowid", "_rowid_", "oid")),
    )
    assert read_all(folder) == [expected(folder, k) for k in range(N)]


def test_a_generated_column_is_read_by_substr(folder):
    path = sample_db(folder, "S0")
    execute(
        path,
        "ALTER TABLE sequences RENAME TO kept",
        "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, raw TEXT, nt_sequence TEXT AS (raw) VIRTUAL)",
        "INSERT INTO sequences (contig_id, raw) SELECT contig_id, nt_sequence FROM kept",
    )
    assert read_all(folder) == [expected(folder, k) for k in range(N)]


def test_a_contig_that_is_there_twice_is_refused(folder):
    path = sample_db(folder, "S0")
    execute(
        path,
        "CREATE TABLE loose (contig_id TEXT, nt_sequence TEXT)",
        "INSERT INTO loose SELECT * FROM sequences",
        "INSERT INTO loose SELECT contig_id, upper(replace(nt_sequence, 'A', 'C')) FROM sequences LIMIT 1",
        "DROP TABLE sequences",
        "ALTER TABLE loose RENAME TO sequences",
    )
    with pytest.raises(DatabaseError, match="is in it 2 times"):
        read_all(folder)


def test_triggers_and_functions_of_a_schema_do_not_run(folder):
    execute(
        folder / "windows.db",
        "CREATE TRIGGER t AFTER INSERT ON window_mappings BEGIN UPDATE window_mappings SET window_in_seq_idx = 0; END",
    )
    assert read_all(folder) == [expected(folder, k) for k in range(N)]


# ---- one sequence database ----


def test_windows_of_three_samples_and_the_database_of_one(folder):
    for sample in ("S1", "S2.X"):
        shutil.rmtree(folder / "seqs" / sample)
    with pytest.raises(MissingDatabase, match="S1"):
        worlds.dataset(folder)


def test_one_database_with_the_contigs_of_three_samples(folder, tmp_path):
    rows = [
        row
        for sample in ("S0", "S1", "S2.X")
        for row in worlds.query(sample_db(folder, sample), "SELECT * FROM sequences")
    ]
    wanted = [expected(folder, k) for k in range(N)]
    shutil.rmtree(folder / "seqs")
    path = sample_db(folder, "all")
    path.parent.mkdir(parents=True)
    execute(
        path,
        "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT NOT NULL)",
        *(("INSERT INTO sequences VALUES (?, ?)", row) for row in rows),
    )
    assert read_all(folder) == wanted


# ---- files that change while they are read ----


def changes() -> dict[str, object]:
    def in_place(path: Path) -> None:
        execute(path, "UPDATE sequences SET nt_sequence = replace(nt_sequence, 'A', 'C')")

    def vacuum(path: Path) -> None:
        execute(path, "DELETE FROM sequences WHERE rowid = (SELECT min(rowid) FROM sequences)")
        connection = sqlite3.connect(path)
        connection.execute("VACUUM")
        connection.close()

    def replaced(path: Path) -> None:
        copy = path.with_name("other")
        shutil.copy(path, copy)
        in_place(copy)
        os.replace(copy, path)

    def appended(path: Path) -> None:
        with path.open("ab") as file:
            file.write(bytes(4096))

    def shortened(path: Path) -> None:
        os.truncate(path, path.stat().st_size - 4096)

    return {each.__name__: each for each in (in_place, vacuum, replaced, appended, shortened)}


@pytest.mark.parametrize("io", ["auto", "read"])
@pytest.mark.parametrize("change", changes())
def test_a_sequence_database_that_changes_is_an_error(folder, change, io):
    wanted = [expected(folder, k) for k in range(N)]
    with worlds.dataset(folder, io=io) as dataset:
        assert [as_lists(dataset[k]) for k in range(N)] == wanted
        changes()[change](sample_db(folder, "S0"))  # type: ignore[operator]
        errors = 0
        for k in range(N):
            try:
                assert as_lists(dataset[k]) == wanted[k]
            except DatabaseError as error:
                errors += 1
                assert "glm_dataset_S0.sqlite" in str(error)  # noqa: PT017 - other windows are still right
        assert errors > 0


@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["windows", "sequences"])
def test_workers_that_start_later_read_the_files_that_were_opened_or_fail(folder, what, method):
    other = worlds.write(folder / "other", {k: v[::-1] for k, v in worlds.CONTIGS.items()})
    with worlds.dataset(folder) as dataset:
        if what == "windows":
            os.replace(other / "windows.db", folder / "windows.db")
        else:
            os.replace(sample_db(other, "S0"), sample_db(folder, "S0"))
        loader = DataLoader(
            dataset, batch_size=2, num_workers=1, multiprocessing_context=method, collate_fn=dataset.collate_fn
        )
        with pytest.raises(EdenError, match=r"It was [0-9,]+ bytes, mtime_ns .*; it is [0-9,]+ bytes"):
            list(loader)


def test_closing_while_other_threads_read(folder):
    for _ in range(10):
        dataset = worlds.dataset(folder)
        problems: list[BaseException] = []

        def read(dataset=dataset, problems=problems) -> None:
            for k in range(200):
                try:
                    dataset[k % N]
                except EdenError:
                    return
                except BaseException as error:
                    problems.append(error)
                    return

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        dataset.close()
        for thread in threads:
            thread.join()
        dataset.close()
        assert not problems
    assert torch.is_tensor(worlds.dataset(folder)[0]["tokens"])
