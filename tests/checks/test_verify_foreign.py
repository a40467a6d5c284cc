"""`verify` of databases that other programs wrote or changed: findings, no other exception, no hang."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress

import pytest
from faults import World
from worlds import execute, sample_db

from sharded_eden.checks.findings import CHECKS
from sharded_eden.format import sqlite

VALUES = (
    "NULL",
    "'text'",
    "x'41'",
    "1.5",
    "-1",
    "9223372036854775807",
    "1e300",
    "CAST(x'FF41' AS TEXT)",
    "''",
    "5",
    "zeroblob(7)",
    "'a__b'",
)
COLUMNS = {
    "metadata": ("key", "value"),
    "window_mappings": ("window_idx", "sequence_id", "window_in_seq_idx"),
    "contig_lengths": ("first_window_idx", "length"),
    "packs": ("pack_idx", "windows"),
    "sequences": ("contig_id", "nt_sequence"),
}
ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM r) SELECT"


def mutation(choose: random.Random, table: str) -> list[str]:
    """Return statements that give a table other values, other keys, or make it a view."""
    columns = COLUMNS[table]
    value = choose.choice(VALUES)
    everywhere = choose.choice(["", f" WHERE rowid = {choose.randrange(1, 6)}"])
    update = f"UPDATE {table} SET {choose.choice(columns)} = {value}{everywhere}"
    kind = choose.randrange(4)
    if kind == 0:
        return [update]
    if kind == 1:
        copy = f"CREATE TABLE other AS SELECT * FROM {table}"
        return [copy, f"DROP TABLE {table}", f"ALTER TABLE other RENAME TO {table}", update]
    if kind == 2:
        shown = ", ".join(f"{choose.choice(['n', value, 'cast(n AS text)'])} AS {column}" for column in columns)
        where = choose.choice(["", " WHERE n < 0"])
        return [f"DROP TABLE {table}", f"CREATE VIEW {table} AS {ENDLESS} {shown} FROM r{where}"]
    rows = f"INSERT INTO {table} SELECT {', '.join(columns)} FROM other"
    return [
        f"ALTER TABLE {table} RENAME TO other",
        f"CREATE TABLE {table} ({', '.join(columns)})",
        rows,
        f"{rows} LIMIT 2",
    ]


def verify_mutations(clean_world: World, folder, seeds: range) -> int:
    """Return the number of data sets with findings."""
    count = 0
    for seed in seeds:
        choose = random.Random(seed)
        shutil.rmtree(folder / "world", ignore_errors=True)
        shutil.copytree(clean_world.folder, folder / "world")
        world = World(folder / "world")
        table = choose.choice(list(COLUMNS))
        path = sample_db(world.folder, "S1") if table == "sequences" else world.train
        with closing(sqlite3.connect(path)) as database:
            for statement in mutation(choose, table):
                with suppress(sqlite3.Error):
                    database.execute(statement)
                    database.commit()
        findings = world.verify(full=choose.random() < 0.7, windows_read=20).findings
        assert {finding.check for finding in findings} <= CHECKS.keys()
        assert all(len(finding.what) < 2000 for finding in findings)
        count += bool(findings)
    return count


def test_mutated_databases_are_findings(clean_world, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite.limit_query_time, "__defaults__", (0.2,))
    assert verify_mutations(clean_world, tmp_path, range(30)) > 15


@pytest.mark.slow
def test_more_mutated_databases_are_findings(clean_world, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite.limit_query_time, "__defaults__", (0.2,))
    assert verify_mutations(clean_world, tmp_path, range(1000, 1500)) > 250


def test_ctrl_c_ends_a_long_query(world, tmp_path):
    path = sample_db(world.folder, "S1")
    view = f"CREATE VIEW sequences AS {ENDLESS} cast(n AS text) AS contig_id, 'A' AS nt_sequence FROM r WHERE n < 0"
    execute(path, "DROP TABLE sequences", view)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = ["verify", str(world.seqs), str(world.train), "--full", "--scratch", str(scratch)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([sys.executable, "-m", "sharded_eden", *words], env=environment) as running:
        deadline = time.monotonic() + 30
        while not list(scratch.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.5)  # it is in the endless query, which ends after 8 s
        begun = time.monotonic()
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=30) not in {0, 1, 2}
        assert time.monotonic() - begun < 4
    assert list(scratch.iterdir()) == []
