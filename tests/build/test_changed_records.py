"""`build` after another program has changed the manifest or a receipt of an earlier run."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import polars as pl
import pytest
import worlds

from sharded_eden import build_sequence_dbs
from sharded_eden.errors import DatabaseError, EdenWarning

KILLED = (
    "import os, sys; from sharded_eden import build_sequence_dbs\n"
    "build_sequence_dbs([sys.argv[1]], sys.argv[2], note=lambda text: os.path.exists(sys.argv[3]) and os._exit(9))"
)


def inputs(folder):
    for name in ("A", "B"):
        (folder / "in").mkdir(exist_ok=True)
        (folder / "in" / f"{name}.fa").write_text(f">c\n{'ACGT' * 30}\n")
    return folder / "in"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON samples BEGIN DELETE FROM sample_inputs; END",
        "DROP INDEX samples_of_input",
        "ALTER TABLE inputs RENAME COLUMN size_bytes TO size",
        "DROP TABLE samples",
        "ALTER TABLE inputs ADD COLUMN more",
    ],
)
def test_a_manifest_of_other_tables_is_refused_and_nothing_in_it_runs(tmp_path, statement):
    folder, out = inputs(tmp_path), tmp_path / "out"
    build_sequence_dbs([folder], out)
    worlds.execute(out / "manifest.sqlite", statement)
    before = (out / "manifest.sqlite").read_bytes()
    (folder / "C.fa").write_text(">c\nACGT\n")
    with pytest.raises(DatabaseError, match=r"manifest\.sqlite.*Remove it"):
        build_sequence_dbs([folder], out)
    assert (out / "manifest.sqlite").read_bytes() == before


@pytest.mark.parametrize("value", ["'much'", "1.5", "x'ff'"])
def test_a_recorded_size_that_is_no_integer(tmp_path, value):
    folder, out = inputs(tmp_path), tmp_path / "out"
    build_sequence_dbs([folder], out)
    worlds.execute(out / "manifest.sqlite", f"UPDATE samples SET bytes_on_disk = {value} WHERE sample = 'A'")
    (folder / "A.fa").write_text(">c\nACGT\n")
    with pytest.raises(
        DatabaseError, match=r"manifest\.sqlite.*bytes_on_disk of sample 'A' is .*not an integer\. Remove it"
    ):
        build_sequence_dbs([folder], out)


def test_a_manifest_with_a_write_ahead_log_is_added_to(tmp_path):
    folder, out = inputs(tmp_path), tmp_path / "out"
    build_sequence_dbs([folder], out)
    with closing(sqlite3.connect(out / "manifest.sqlite")) as database:
        database.execute("PRAGMA journal_mode = WAL")
    (folder / "C.fa").write_text(">c\nACGT\n")
    result = build_sequence_dbs([folder], out)
    assert (result.samples, result.unchanged) == (1, 2)


def killed_build(tmp_path):
    folder, out = inputs(tmp_path), tmp_path / "out"
    mark = out / "A" / "glm_dataset_A.sqlite"
    subprocess.run([sys.executable, "-c", KILLED, str(folder), str(out), str(mark)], check=False, timeout=60)
    (receipt,) = (out / ".partial-build" / "receipts").glob("*.parquet")
    return folder, out, receipt


def test_a_receipt_of_other_columns_is_removed_with_a_warning(tmp_path):
    folder, out, receipt = killed_build(tmp_path)
    metadata = {
        key: value for key, value in pl.read_parquet_metadata(receipt).items() if key.startswith("sharded-eden")
    }
    pl.read_parquet(receipt).rename({"description": "words"}).write_parquet(receipt, metadata=metadata)
    with pytest.warns(EdenWarning, match="cannot be read and is removed"):
        build_sequence_dbs([folder], out, force=True)
    assert sorted(pl.read_parquet(out / "contigs.parquet")["sample"]) == ["A", "B"]


def test_a_receipt_with_damaged_rows_is_named(tmp_path):
    folder, out, receipt = killed_build(tmp_path)
    data = bytearray(receipt.read_bytes())
    data[4:40] = b"\xff" * 36
    receipt.write_bytes(data)
    with pytest.raises(DatabaseError, match="or a receipt in"):
        build_sequence_dbs([folder], out)
    shutil.rmtree(out / ".partial-build")
    build_sequence_dbs([folder], out, force=True)
