"""Window databases: samples and tags by seeks or in one scan, damage, and the command that rebuilds one."""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path

import apsw
import polars as pl
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from sharded_eden import cli, precompute_window_database
from sharded_eden.errors import DatabaseError
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.sqlite import open_read_only
from sharded_eden.load.locate.windows import WindowIndex

IDS = st.lists(st.text("aB_é-", min_size=1, max_size=7), min_size=1, max_size=20)
INDEX = "CREATE INDEX idx_sequence_id ON window_mappings(sequence_id)"


def write_windows(path: Path, ids: list[str], index: str = INDEX, kind: str = "TEXT", encoding: str = "UTF-8") -> Path:
    path.unlink(missing_ok=True)
    rows = [("INSERT INTO window_mappings VALUES (?, ?, 0)", (k, name)) for k, name in enumerate(ids)]
    worlds.execute(
        path,
        f"PRAGMA encoding = '{encoding}'",
        "CREATE TABLE metadata (key TEXT PRIMARY KEY, value INTEGER NOT NULL)",
        f"CREATE TABLE window_mappings (window_idx INTEGER PRIMARY KEY, sequence_id {kind}, window_in_seq_idx INTEGER)",
        *rows,
        *([index] if index else []),
        "INSERT INTO metadata VALUES ('window_size', 64), ('stride', 50)",
    )
    return path


def found(path: Path, parts: int) -> list[str]:
    with closing(WindowIndex(path)) as index:
        return list(index.sequence_ids_by_prefix(parts))


def first_of_each(ids: list[str], parts: int) -> set[str]:
    first: dict[tuple[str, bool], str] = {}
    for name in sorted(ids):
        pieces = name.split("__")
        first.setdefault(("__".join(pieces[:parts]), len(pieces) > parts), name)
    return set(first.values())


@settings(max_examples=30, deadline=None)
@given(IDS, st.sampled_from([1, 2]), st.sampled_from(["UTF-8", "UTF-16le", "UTF-16be"]))
def test_one_id_for_each_prefix_by_leaps_or_by_a_scan(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], parts: int, encoding: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "leaps.db"
    expected = first_of_each(ids, parts)
    scanned = found(write_windows(path, ids, "", encoding=encoding), parts)
    assert scanned == sorted(expected)
    leapt = found(write_windows(path, ids, encoding=encoding), parts)
    assert set(leapt) == expected
    assert len(leapt) == len(expected)
    # An index in another order than that of the bytes cannot be used for seeks.
    assert found(write_windows(path, ids, kind="TEXT COLLATE NOCASE"), parts) == scanned
    partial = f"{INDEX} WHERE window_idx > 3"
    assert found(write_windows(path, ids, partial), parts) == scanned


def test_without_an_index_the_table_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_windows(tmp_path / "w.db", [f"T{k:03d}__ECT-S{k}__1" for k in range(300)], "")
    steps: list[int] = []

    def counting(*args: object, **options: object) -> apsw.Connection:
        connection = open_read_only(*args, **options)  # type: ignore[arg-type]
        connection.set_progress_handler(lambda: bool(steps.append(1)), 100)
        return connection

    monkeypatch.setattr("sharded_eden.load.locate.windows.open_read_only", counting)
    with closing(WindowIndex(path)) as index:
        steps.clear()
        assert len(list(index.sequence_ids_by_prefix(1))) == 300
    # Virtual machine steps: a scan for each prefix would take 300 * 300 of several each.
    assert len(steps) * 100 < 300 * 20


@pytest.mark.parametrize(
    ("encoding", "damaged"),
    [
        ("UTF-16le", "CAST(x'FFDF' AS TEXT)"),  # half a character: read as another one, which sorts before it
        ("UTF-8", "CAST(x'41FF42' AS TEXT)"),
        ("UTF-8", "x'414243'"),
    ],
)
def test_ids_that_are_damaged_end_in_an_error(tmp_path: Path, encoding: str, damaged: str) -> None:
    path = write_windows(tmp_path / "w.db", ["BCR__ECT-S0__1"], encoding=encoding)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(f"INSERT INTO window_mappings VALUES (1, {damaged}, 0)")
    with pytest.raises(DatabaseError) as caught:
        found(path, 1)
    for words in (str(path), "is damaged", f"Rebuild: sharded-eden precompute SPLIT.parquet {path} --window-size 64"):
        assert words in str(caught.value)


def test_the_command_that_rebuilds_says_what_was_left_out_for_its_letters(tmp_path: Path) -> None:
    folder = worlds.write(tmp_path)
    split = tmp_path / "split.parquet"
    lengths = {"contig_id": list(worlds.CONTIGS), "length": [len(text) for text in worlds.CONTIGS.values()]}
    pl.DataFrame(lengths).write_parquet(split)
    for share in (0.5, 0, 1):
        precompute_window_database(
            split,
            folder / "w.db",
            64,
            50,
            keep_tail=True,
            max_ambiguous=share,
            sequences=folder / "seqs",
            overwrite=True,
        )
        with closing(WindowIndex(folder / "w.db")) as index:
            command = index.rebuild_command(index.geometry)
            fingerprint = index.fingerprint
        assert f"--keep-tail --max-ambiguous {share} --sequences SEQDB" in command
        command = command.replace("SPLIT.parquet", str(split)).replace("SEQDB", str(folder / "seqs"))
        (folder / "w.db").unlink()
        assert cli.main(shlex.split(command)[1:]) == 0
        with closing(WindowIndex(folder / "w.db")) as index:
            assert index.fingerprint == fingerprint
    precompute_window_database(split, folder / "w.db", 64, 50, overwrite=True)
    with closing(WindowIndex(folder / "w.db")) as index:
        assert "--max-ambiguous" not in index.rebuild_command(WindowGeometry())


def test_counting_and_hashing_a_damaged_database_is_an_error_of_ours(tmp_path: Path) -> None:
    path = write_windows(tmp_path / "windows.db", [f"BCR__ECT-S0__CT1-{k:05}" for k in range(3000)])
    worlds.execute(path, "INSERT INTO metadata VALUES ('total_windows', 3000)")  # so that opening does not count
    raw = bytearray(path.read_bytes())
    size = int.from_bytes(raw[16:18], "big")
    for kind in (0x0D, 0x0A):  # a leaf of the table, and one of the index
        leaves = [k for k in range(1, len(raw) // size) if raw[k * size] == kind]
        raw[leaves[len(leaves) // 2] * size] = 0xFF
    path.write_bytes(raw)
    with closing(WindowIndex(path)) as index:
        for name in ("fingerprint", "distinct_sequences"):
            with pytest.raises(DatabaseError, match="malformed"):
                getattr(index, name)
