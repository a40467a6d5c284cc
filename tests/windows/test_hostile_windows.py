"""Split files and window databases from elsewhere: odd types, code in the schema, endless views, planted links, full disks."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import worlds

from sharded_eden import cli, pack_window_database, precompute_window_database, write_splits
from sharded_eden.errors import DatabaseError, EdenError, InputError, UsageError
from sharded_eden.windows.index import index_window_database

ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM n)"


def windows_of(folder: Path, contigs: int = 5) -> Path:
    ids = [f"BCR__ECT-S__CT1-{k}" for k in range(contigs)]
    pl.DataFrame({"contig_id": ids, "length": [200] * contigs}).write_parquet(folder / "s.parquet")
    precompute_window_database(folder / "s.parquet", folder / "w.db", 64, 50)
    return folder / "w.db"


# ---- split files ----


def test_ids_stored_as_bytes_are_text_if_they_are_utf_8(tmp_path: Path) -> None:
    split = tmp_path / "s.parquet"
    pl.DataFrame({"contig_id": [b"b", "é".encode()], "length": [5, 6]}).write_parquet(split)
    precompute_window_database(split, tmp_path / "w.db")
    assert [row[1] for row in worlds.query(tmp_path / "w.db", "SELECT * FROM window_mappings")] == ["b", "é"]
    pl.DataFrame({"contig_id": [b"b", b"\xff"], "length": [5, 6]}).write_parquet(split)
    with pytest.raises(InputError, match=r"row 1 has a contig_id that is not UTF-8 \(its type is Binary\)"):
        precompute_window_database(split, tmp_path / "w.db")


@pytest.mark.parametrize("ids", [[1.5, None], [["a"], ["b"]], [{"a": 1}, {"a": 2}], [True, False]])
def test_ids_of_other_types_are_refused_with_their_type(tmp_path: Path, ids: list[object]) -> None:
    frame = pl.DataFrame({"contig_id": ids, "length": [5, 6]})
    frame.write_parquet(tmp_path / "s.parquet")
    with pytest.raises(InputError, match=r"column 'contig_id' holds .*; expected strings"):
        precompute_window_database(tmp_path / "s.parquet", tmp_path / "w.db")


def test_duplicate_column_names(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table([["a"], [5], ["b"]], names=["contig_id", "length", "contig_id"])
    parquet.write_table(table, tmp_path / "s.parquet")
    with pytest.raises(InputError, match=r"s\.parquet"):
        precompute_window_database(tmp_path / "s.parquet", tmp_path / "w.db")


def test_lengths_beyond_64_bits(tmp_path: Path) -> None:
    pl.DataFrame({"contig_id": ["a"], "length": [2**64 - 1]}, schema_overrides={"length": pl.UInt64}).write_parquet(
        tmp_path / "s.parquet"
    )
    with pytest.raises(InputError, match="row 0 is longer than any contig can be"):
        precompute_window_database(tmp_path / "s.parquet", tmp_path / "w.db")


@pytest.mark.parametrize("option", ["--window-size", "--stride", "--window-min-length-threshold", "--special-tokens"])
def test_huge_numbers(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    pl.DataFrame({"contig_id": ["a"], "length": [5]}).write_parquet(tmp_path / "s.parquet")
    for number in ("99999999999999999999", "9223372036854775807"):
        assert cli.main(["precompute", str(tmp_path / "s.parquet"), str(tmp_path / "w.db"), option, number]) == 2
        assert "must be at most 2,147,483,647" in capsys.readouterr().err
    for seed in ("99999999999999999999", "-" + "9" * 99):
        assert (
            cli.main(["precompute", str(tmp_path / "s.parquet"), str(tmp_path / "w.db"), "--pack-seed", seed, "--pack"])
            == 2
        )
        assert "must fit into 64 bits" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--seed"):
        write_splits(tmp_path, tmp_path, seed=10**99)


# ---- window databases ----


def test_pack_runs_no_trigger(tmp_path: Path) -> None:
    path = windows_of(tmp_path)
    for table in ("metadata", "packs"):
        event = "CREATE TRIGGER {0}_{1} AFTER {1} ON {0} BEGIN UPDATE window_mappings SET window_in_seq_idx = 0; END"
        if table == "packs":
            worlds.execute(path, "CREATE TABLE packs (pack_idx INTEGER PRIMARY KEY, windows BLOB)")
        worlds.execute(path, *(event.format(table, verb) for verb in ("INSERT", "DELETE", "UPDATE")))
    before = worlds.query(path, "SELECT * FROM window_mappings")
    pack_window_database(path)
    assert worlds.query(path, "SELECT * FROM window_mappings") == before


def test_pack_of_metadata_without_a_key_replaces_its_totals(tmp_path: Path) -> None:
    path = windows_of(tmp_path)
    rows = worlds.query(path, "SELECT key, value FROM metadata")
    worlds.execute(path, "DROP TABLE metadata", "CREATE TABLE metadata (key, value, note)")
    worlds.execute(path, *(("INSERT INTO metadata VALUES (?, ?, 'x')", row) for row in rows))
    for seed in (1, 2):
        pack_window_database(path, seed=seed, overwrite=True)
        assert worlds.query(path, "SELECT value FROM metadata WHERE key = 'pack_seed'") == [(seed,)]


def test_index_of_metadata_that_is_not_utf_8(tmp_path: Path) -> None:
    path = windows_of(tmp_path)
    worlds.execute(path, "UPDATE metadata SET value = CAST(x'ff80' AS TEXT) WHERE key = 'fingerprint'")
    (tmp_path / "seqs/S").mkdir(parents=True)
    (tmp_path / "seqs/S/glm_dataset_S.sqlite").touch()
    with pytest.raises(DatabaseError, match="not UTF-8"):
        index_window_database(tmp_path / "seqs", path)


VIEWS = {
    "metadata": f"{ENDLESS} SELECT 'k' || x AS key, x AS value FROM n",
    "window_mappings": f"{ENDLESS} SELECT x AS window_idx, 'a' AS sequence_id, 0 AS window_in_seq_idx FROM n",
    "contig_lengths": f"{ENDLESS} SELECT x AS first_window_idx, 1 AS length FROM n",
    "packs": f"{ENDLESS} SELECT x AS pack_idx, x AS windows FROM n",
}


@pytest.mark.parametrize("table", VIEWS)
def test_views_are_refused(tmp_path: Path, table: str) -> None:
    path = windows_of(tmp_path)
    worlds.execute(path, f"DROP TABLE IF EXISTS {table}", f"CREATE VIEW {table} AS {VIEWS[table]}")
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match=f"{table}.*(view|virtual)"):
        pack_window_database(path)
    with pytest.raises(UsageError, match="--force"):
        precompute_window_database(tmp_path / "s.parquet", path, 64, 50)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "value", ["'x'", "NULL", "x'00ff'", "1.5", "-1", "9223372036854775807", "-9223372036854775808"]
)
@pytest.mark.parametrize(
    ("table", "column"),
    [("metadata", "value"), ("window_mappings", "window_in_seq_idx"), ("contig_lengths", "length"),
     ("contig_lengths", "first_window_idx")],
)  # fmt: skip
def test_values_of_other_types(tmp_path: Path, table: str, column: str, value: str) -> None:
    path = windows_of(tmp_path)
    rows = worlds.query(path, f"SELECT * FROM {table}")
    columns = {
        "metadata": "key, value",
        "window_mappings": "window_idx INTEGER PRIMARY KEY, sequence_id, window_in_seq_idx",
    }
    worlds.execute(
        path, f"DROP TABLE {table}", f"CREATE TABLE {table} ({columns.get(table, 'first_window_idx, length')})"
    )
    places = ", ".join("?" * len(rows[0]))
    worlds.execute(path, *((f"INSERT INTO {table} VALUES ({places})", row) for row in rows))
    where = {"metadata": "key = 'stride'", "window_mappings": "window_idx = 3"}.get(table, "first_window_idx = 3")
    worlds.execute(path, f"UPDATE {table} SET {column} = {value} WHERE {where}")
    with pytest.raises(EdenError):
        pack_window_database(path)


def test_ids_that_are_not_utf_8(tmp_path: Path) -> None:
    path = windows_of(tmp_path)
    worlds.execute(
        path,
        "UPDATE window_mappings SET sequence_id = CAST(x'ff' AS TEXT), window_in_seq_idx = 99 WHERE window_idx = 2",
    )
    with pytest.raises(DatabaseError, match=r"window 2 begins at base 4950 of contig '.*', which has 200 bases"):
        pack_window_database(path)
    worlds.execute(path, "INSERT INTO metadata VALUES (CAST(x'ff' AS TEXT), 1)")
    with pytest.raises(DatabaseError):
        pack_window_database(path)


def test_windows_that_are_there_twice(tmp_path: Path) -> None:
    path = windows_of(tmp_path)
    rows = worlds.query(path, "SELECT * FROM window_mappings")
    worlds.execute(
        path, "DROP TABLE window_mappings", "CREATE TABLE window_mappings (window_idx, sequence_id, window_in_seq_idx)"
    )
    rows[3] = (2, *rows[3][1:])  # 2 twice and 3 never
    worlds.execute(path, *(("INSERT INTO window_mappings VALUES (?, ?, ?)", row) for row in rows))
    with pytest.raises(DatabaseError, match=r"1 of its windows .* are missing, and others are there more than once"):
        pack_window_database(path)


def test_lengths_of_a_contig_twice(tmp_path: Path) -> None:
    path = windows_of(tmp_path)
    worlds.execute(path, "DROP TABLE contig_lengths")
    table = pl.read_parquet(tmp_path / "s.parquet")
    pl.concat([table, table.head(1).with_columns(pl.col("length") + 7)]).write_parquet(tmp_path / "twice.parquet")
    with pytest.raises(InputError, match=r"twice\.parquet: a contig appears more than once"):
        pack_window_database(path, lengths=tmp_path / "twice.parquet")


@pytest.mark.slow
def test_split_of_an_endless_view(tmp_path: Path) -> None:
    path = tmp_path / "db/ONE/glm_dataset_ONE.sqlite"
    path.parent.mkdir(parents=True)
    for where in ("", "WHERE x < 0"):
        worlds.execute(path, "DROP VIEW IF EXISTS sequences")
        worlds.execute(
            path,
            f"CREATE VIEW sequences AS {ENDLESS} SELECT 'c' || x AS contig_id, 'ACGT' AS nt_sequence FROM n {where}",
        )
        with pytest.raises(DatabaseError):
            write_splits(tmp_path / "db", tmp_path / "out", val=0, test=0)


# ---- links and full disks ----


@pytest.mark.parametrize("hidden", [".train_split.parquet.partial", ".w.db.partial"])
def test_planted_links_are_not_followed(tmp_path: Path, hidden: str) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    windows_of(tmp_path)
    (tmp_path / "db/S").mkdir(parents=True)
    worlds.execute(
        tmp_path / "db/S/glm_dataset_S.sqlite",
        "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT)",
        "INSERT INTO sequences VALUES ('BCR__ECT-S__CT1-0', 'ACGT')",
    )
    (tmp_path / hidden).symlink_to(outside)
    commands = {
        ".train_split.parquet.partial": [lambda: write_splits(tmp_path / "db", tmp_path, val=0, test=0)],
        ".w.db.partial": [
            lambda: pack_window_database(tmp_path / "w.db"),
            lambda: precompute_window_database(tmp_path / "s.parquet", tmp_path / "w.db", 64, 50),
        ],
    }
    for command in commands[hidden]:
        with pytest.raises(EdenError):
            command()
        assert outside.read_text() == "precious"


LIMITED = """
import resource, signal, sys
from sharded_eden import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on the size of files")
def test_a_file_that_cannot_grow_is_named(tmp_path: Path) -> None:
    path = windows_of(tmp_path, contigs=20_000)
    size = path.stat().st_size
    precompute = [
        "precompute",
        str(tmp_path / "s.parquet"),
        "--window-size",
        "64",
        "--stride",
        "50",
        str(tmp_path / "new.db"),
    ]
    for limit, arguments in (
        (size // 2, precompute),
        (size // 2, ["pack", str(path)]),
        (size + 50_000, ["pack", str(path)]),
    ):
        program = [sys.executable, "-c", LIMITED, str(limit)]
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1, (arguments, done.stderr)
        assert f"{arguments[-1]}: cannot be written" in done.stderr
    assert path.stat().st_size == size
    assert not [each for each in os.listdir(tmp_path) if each.startswith(".")]
