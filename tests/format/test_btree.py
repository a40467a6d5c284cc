"""B-trees written page by page: SQLite reads the same rows, and its integrity check passes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from sharded_eden import precompute_window_database
from sharded_eden.errors import InputError
from sharded_eden.format.pages.btree import INDEX_LEAF, LOCK_BYTE, TABLE_LEAF, BTree, PageFile
from sharded_eden.format.pages.cells import constant, decimal, integer, join, serial_types, text, varint
from sharded_eden.windows import precompute, split_files


def empty_database(path: Path, page_bytes: int) -> int:
    path.unlink(missing_ok=True)
    worlds.execute(path, f"PRAGMA page_size = {page_bytes}", "CREATE TABLE t (a INTEGER PRIMARY KEY, b INTEGER)")
    ((root,),) = worlds.query(path, "SELECT rootpage FROM sqlite_schema")
    return root


def add(tree: BTree, rowids: list[int], values: list[int]) -> None:
    keys, numbers = np.array(rowids, dtype=np.int64), np.array(values, dtype=np.int64)
    types = serial_types(numbers)
    number = integer(numbers, types)
    many = len(rowids)
    size = np.broadcast_to(3 + np.asarray(number.values.shape[1] if number.widths is None else number.widths), many)
    header = constant(3, many), constant(0, many)
    kinds = text(types.astype(np.uint8).tobytes(), np.ones(many, dtype=np.int64))
    cells, lengths = join([varint(size), varint(keys), *header, kinds, number])
    tree.add(cells, lengths, keys)


INTEGERS = st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1), st.sampled_from([2**k - 1 for k in range(1, 64)]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**55), INTEGERS), max_size=400, unique_by=lambda row: row[0]),
    st.sampled_from([512, 4096, 65536]),
    st.integers(1, 400),
)
def test_a_table_of_any_integers(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int]], page_bytes: int, batch: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "table.db"
    root = empty_database(path, page_bytes)
    rows.sort()
    with PageFile(path, page_bytes) as file:
        tree = BTree(file, root, TABLE_LEAF)
        for first in range(0, len(rows), batch):
            add(tree, *map(list, zip(*rows[first : first + batch], strict=True)))
        tree.finish()
    assert worlds.query(path, "PRAGMA integrity_check") == [("ok",)]
    assert worlds.query(path, "SELECT a, b FROM t") == rows
    for key, value in rows[:: len(rows) // 20 + 1]:
        assert worlds.query(path, f"SELECT b FROM t WHERE a = {key}") == [(value,)]


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.text("ab_-é0", min_size=1, max_size=30), min_size=1, max_size=150),
    st.integers(1, 60),
    st.integers(1, 5000),
)
def test_windows_and_their_index_on_small_pages(
    tmp_path_factory: pytest.TempPathFactory, ids: set[str], batch_contigs: int, bases: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    names = sorted(ids)
    pl.DataFrame({"contig_id": names, "length": [bases] * len(names)}).write_parquet(folder / "s.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precompute, "PAGE_BYTES", 512)
        patch.setattr(split_files, "BATCH_CONTIGS", batch_contigs)
        result = precompute_window_database(folder / "s.parquet", folder / "small.db", 64, 50, overwrite=True)
    assert worlds.query(folder / "small.db", "PRAGMA integrity_check") == [("ok",)]
    each = result.windows // len(names)
    expected = [(name, k) for name in names for k in range(each)]
    query = "SELECT sequence_id, window_in_seq_idx FROM window_mappings ORDER BY window_idx"
    assert worlds.query(folder / "small.db", query) == expected
    with closing(sqlite3.connect(folder / "small.db")) as connection:
        for name in names:  # through the index
            found = connection.execute("SELECT count(*) FROM window_mappings WHERE sequence_id = ?", (name,)).fetchone()
            assert found == (each,)


@pytest.mark.parametrize("windows", [15_000, *range(28, 48)])
def test_trees_of_every_height(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: int) -> None:
    """The last page of an index must not be empty, nor one above it have a single child."""
    monkeypatch.setattr(precompute, "PAGE_BYTES", 512)
    ids = [f"T__E-S__{k:060d}" for k in range(windows)]
    pl.DataFrame({"contig_id": ids, "length": [10] * windows}).write_parquet(tmp_path / "s.parquet")
    precompute_window_database(tmp_path / "s.parquet", tmp_path / "w.db", 64, 50)
    assert worlds.query(tmp_path / "w.db", "PRAGMA integrity_check") == [("ok",)]
    assert worlds.query(tmp_path / "w.db", "SELECT sequence_id FROM window_mappings") == [(name,) for name in ids]
    assert worlds.query(tmp_path / "w.db", "SELECT count(*) FROM contig_lengths") == [(windows,)]


def test_every_fill_of_the_pages_above_the_leaves(tmp_path: Path) -> None:
    for count in range(1, 260):
        root = empty_database(tmp_path / "t.db", 512)
        with PageFile(tmp_path / "t.db", 512) as file:
            tree = BTree(file, root, TABLE_LEAF)
            add(tree, list(range(count * 40)), [2**40] * (count * 40))
            tree.finish()
        with closing(sqlite3.connect(tmp_path / "t.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], count


def test_the_page_that_sqlite_locks_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    size = 65536
    root = empty_database(path, size)
    lock_page = LOCK_BYTE // size + 1
    with path.open("r+b") as file:
        file.truncate((lock_page - 3) * size)  # a hole: the file has no data there
    rows = 60_000
    with PageFile(path, size) as pages:
        tree = BTree(pages, root, TABLE_LEAF)
        for first in range(0, rows, 20_000):
            add(tree, list(range(first, first + 20_000)), [2**40 + k for k in range(20_000)])
        tree.finish()
    assert path.stat().st_size > (lock_page + 3) * size
    assert worlds.query(path, "SELECT count(*), min(b), max(b), max(a) FROM t") == [
        (rows, 2**40, 2**40 + 19_999, 59_999)
    ]
    with path.open("rb") as file:
        file.seek((lock_page - 1) * size)
        assert not any(file.read(size))
        file.seek(28)
        assert int.from_bytes(file.read(4), "big") == path.stat().st_size // size


def test_ids_up_to_what_an_index_page_holds(tmp_path: Path) -> None:
    longest = split_files.MAX_ID_BYTES
    ids = sorted(["a" * longest, "b" * 57, "b" * 58, "é" * 2000, *(f"c{k:03999d}" for k in range(50)), "d"])
    pl.DataFrame({"contig_id": ids, "length": [60_000] * len(ids)}).write_parquet(tmp_path / "s.parquet")
    precompute_window_database(tmp_path / "s.parquet", tmp_path / "w.db")
    assert worlds.query(tmp_path / "w.db", "PRAGMA integrity_check") == [("ok",)]
    assert worlds.query(tmp_path / "w.db", "SELECT DISTINCT sequence_id FROM window_mappings") == [
        (name,) for name in ids
    ]
    pl.DataFrame({"contig_id": ["a" * (longest + 1)], "length": [5]}).write_parquet(tmp_path / "s.parquet")
    with pytest.raises(
        InputError, match=r"s\.parquet: row 0 has a contig_id of more than 4,000 bytes .*Correct or drop"
    ):
        precompute_window_database(tmp_path / "s.parquet", tmp_path / "w.db")


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=30))
def test_decimal_digits(values: list[int]) -> None:
    digits, lengths = join([decimal(np.array(values, dtype=np.int64)), constant(ord(" "), len(values))])
    assert digits.tobytes().decode().split() == [str(value) for value in values]
    assert lengths.tolist() == [len(str(value)) + 1 for value in values]


def test_an_index_that_ends_one_cell_behind_a_full_page(tmp_path: Path) -> None:
    for count in range(1, 40):
        path = tmp_path / "i.db"
        path.unlink(missing_ok=True)
        worlds.execute(path, "PRAGMA page_size = 512", "CREATE TABLE t (a)", "CREATE INDEX i ON t(a)")
        ((root,),) = worlds.query(path, "SELECT rootpage FROM sqlite_schema WHERE name = 'i'")
        keys = np.arange(2, count + 2)
        record = [constant(5, count), constant(3, count), constant(1, count), constant(1, count)]
        byte = text(keys.astype(np.uint8).tobytes(), np.ones(count, dtype=np.int64))
        with PageFile(path, 512) as file:
            tree = BTree(file, root, INDEX_LEAF)
            tree.add(*join([*record, byte, byte]), keys)
            tree.finish()
        found = worlds.query(path, "SELECT a FROM t INDEXED BY i ORDER BY a")
        assert [a for (a,) in found] == keys.tolist(), count
