"""Splits that consist of several Parquet files, and IDs that are no plain strings."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest
from test_window_dbs import table

from sharded_eden import InputError, precompute_window_database
from sharded_eden.cli import main
from sharded_eden.windows import split_files

CONTIGS = {f"BCR__ECT-S{k % 3}__CT1-{k}": random.Random(k).randrange(1, 300) for k in range(40)}


def write(path: Path, ids: list[str], **types: pl.DataType) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"contig_id": ids, "length": [CONTIGS[name] for name in ids]}).cast(types).write_parquet(path)
    return path


def contents(path: Path) -> list[list[tuple]]:
    return [table(path, name) for name in ("metadata", "window_mappings", "contig_lengths")]


@pytest.fixture
def whole(tmp_path: Path) -> list[list[tuple]]:
    precompute_window_database(write(tmp_path / "whole.parquet", list(CONTIGS)), tmp_path / "whole.db", 64, 50)
    return contents(tmp_path / "whole.db")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three parts, not sorted, with other integer types; a hidden file and one of another kind beside them."""
    ids = random.Random(1).sample(list(CONTIGS), len(CONTIGS))
    write(tmp_path / "parts" / "part-0.parquet", ids[:13])
    write(tmp_path / "parts" / "part-1.parquet", ids[13:14], length=pl.UInt16)
    write(tmp_path / "parts" / "part-2.parquet", ids[14:], length=pl.UInt64)
    (tmp_path / "parts" / ".part-3.parquet").write_bytes(b"unfinished")
    (tmp_path / "parts" / "_SUCCESS").write_bytes(b"")
    return tmp_path / "parts"


@pytest.mark.parametrize("sort_rows", [7, 1 << 20])
@pytest.mark.parametrize(("name", "is_pattern"), [("", False), ("*.parquet", True), ("part-[0-9].*", True)])
def test_parts_are_one_split(tmp_path, parts, whole, name, is_pattern, sort_rows, monkeypatch):
    monkeypatch.setattr(split_files, "SORT_ROWS", sort_rows)
    monkeypatch.setattr(split_files, "SAMPLE_EVERY", 3)
    result = precompute_window_database(parts / name, tmp_path / "parts.db", 64, 50, is_pattern=is_pattern)
    assert result.bases == sum(CONTIGS.values())
    assert contents(tmp_path / "parts.db") == whole


@pytest.mark.parametrize("arguments", [["parts"], ["parts/*.parquet", "--pattern"], ["p*/part-?.parquet", "--pattern"]])
def test_the_command(tmp_path, parts, whole, arguments, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["precompute", arguments[0], "parts.db", "--window-size", "64", "--stride", "50", *arguments[1:]]
    assert main(command) == 0, capsys.readouterr()
    assert contents(tmp_path / "parts.db") == whole


def test_names_are_literal_unless_it_is_said(tmp_path, parts, whole):
    literal = write(tmp_path / "*.parquet", list(CONTIGS))
    precompute_window_database(literal, tmp_path / "literal.db", 64, 50)
    assert contents(tmp_path / "literal.db") == whole
    with pytest.raises(InputError, match="no such file"):
        precompute_window_database(parts / "part-?.parquet", tmp_path / "x.db", 64, 50)


def test_without_a_file_it_is_an_error(tmp_path, parts):
    with pytest.raises(InputError, match="no file matches"):
        precompute_window_database(parts / "none-*", tmp_path / "x.db", 64, 50, is_pattern=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no file \*\.parquet is in this folder"):
        precompute_window_database(tmp_path / "empty", tmp_path / "x.db", 64, 50)
    assert not (tmp_path / "x.db").exists()


def test_errors_in_parts(tmp_path, parts):
    write(parts / "part-4.parquet", [next(iter(CONTIGS))])
    with pytest.raises(InputError, match="appears more than once"):
        precompute_window_database(parts, tmp_path / "x.db", 64, 50)
    pl.DataFrame({"contig_id": ["a"], "len": [1]}).write_parquet(parts / "part-4.parquet")
    with pytest.raises(InputError, match=r"part-4\.parquet: column 'length' is missing"):
        precompute_window_database(parts, tmp_path / "x.db", 64, 50)
    (parts / "part-4.parquet").write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"part-4\.parquet: cannot be read as Parquet"):
        precompute_window_database(parts, tmp_path / "x.db", 64, 50)


@pytest.mark.parametrize("kind", [pl.Categorical(), pl.Enum(sorted(CONTIGS)), pl.Binary()], ids=str)
def test_dictionaries_are_strings(tmp_path, whole, kind):
    precompute_window_database(write(tmp_path / "d.parquet", list(CONTIGS), contig_id=kind), tmp_path / "d.db", 64, 50)
    assert contents(tmp_path / "d.db") == whole


def test_a_dictionary_written_by_pyarrow(tmp_path, whole):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    ids = pa.array(list(CONTIGS)).dictionary_encode()
    pyarrow.parquet.write_table(pa.table({"contig_id": ids, "length": list(CONTIGS.values())}), tmp_path / "d.parquet")
    precompute_window_database(tmp_path / "d.parquet", tmp_path / "d.db", 64, 50)
    assert contents(tmp_path / "d.db") == whole


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt32, pl.Int64, pl.UInt64])
def test_integer_ids_are_their_digits(tmp_path, kind):
    ids = [9, 10, 100, 0, 11] + ([-3] if kind in {pl.Int8, pl.Int64} else [2])
    frame = pl.DataFrame({"contig_id": ids, "length": range(10, 16)})
    frame.with_columns(pl.col("contig_id").cast(kind)).write_parquet(tmp_path / "i.parquet")
    frame.with_columns(pl.col("contig_id").cast(pl.String)).write_parquet(tmp_path / "s.parquet")
    for name in ("i", "s"):
        precompute_window_database(tmp_path / f"{name}.parquet", tmp_path / f"{name}.db", 64, 50)
    assert contents(tmp_path / "i.db") == contents(tmp_path / "s.db")
    rows = table(tmp_path / "i.db", "window_mappings")
    assert [row[1] for row in rows] == sorted(map(str, ids)), "text, in the order of its bytes"


@pytest.mark.parametrize(
    "names",
    [("train.parquet", "val.parquet"), ("Train-0.parquet", "TEST_1.parquet"), ("training.parquet", "valid_0.parquet")],
)
@pytest.mark.parametrize("is_pattern", [False, True])
def test_files_of_several_splits_do_not_become_one(tmp_path, names, is_pattern):
    for number, name in enumerate(names):
        write(tmp_path / "parts" / name, list(CONTIGS)[number::2])
    split = tmp_path / "parts" / "*.parquet" if is_pattern else tmp_path / "parts"
    with pytest.raises(InputError, match="its files belong to several splits"):
        precompute_window_database(split, tmp_path / "w.db", 64, 50, is_pattern=is_pattern)
    assert not (tmp_path / "w.db").exists()


@pytest.mark.parametrize(
    "names", [("train-0.parquet", "train-1.parquet"), ("tester.parquet", "trained.parquet", "b.parquet")]
)
def test_other_names_are_parts_of_one_split(tmp_path, whole, names):
    for number, name in enumerate(names):
        write(tmp_path / "parts" / name, list(CONTIGS)[number :: len(names)])
    precompute_window_database(tmp_path / "parts", tmp_path / "w.db", 64, 50)
    assert contents(tmp_path / "w.db") == whole


def test_parts_with_other_endings_of_parquet_files_are_read(tmp_path, parts, whole):
    (parts / "part-0.parquet").rename(parts / "part-0.PARQUET")
    (parts / "part-1.parquet").rename(parts / "part-1.pq")
    precompute_window_database(parts, tmp_path / "out.db", 64, 50)
    assert contents(tmp_path / "out.db") == whole
