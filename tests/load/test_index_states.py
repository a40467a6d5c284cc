"""Each state of `WINDOWS.db.index`, and of the databases that it describes: the right rows or an error, never other bases."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import worlds
from faults import write_windows
from worlds import execute, sample_db

from sharded_eden import EdenWarning, ShardedEdenDataset, verify
from sharded_eden.errors import DatabaseError
from sharded_eden.format.index import index_path
from sharded_eden.windows.index import index_window_database

CONTIGS = {
    f"BCR__ECT-S{i % 2}__CT1-{i}": worlds.random_sequence(bases, i) for i, bases in enumerate((60, 300, 5_000, 9_000))
}
OTHERS = {name: letters[::-1] for name, letters in CONTIGS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return indexed(tmp_path / "it", CONTIGS)


def indexed(folder: Path, contigs: dict[str, str]) -> Path:
    worlds.write(folder, contigs)
    index_window_database(folder / "seqs", folder / "windows.db")
    return folder


def rows(dataset: Any) -> list[list[int]]:
    return [dataset[k]["tokens"].tolist() for k in range(len(dataset))]


def wanted(contigs: dict[str, str], tmp_path: Path) -> list[list[int]]:
    with worlds.dataset(worlds.write(tmp_path / "wanted", contigs)) as dataset:
        assert dataset._addresses is None
        return rows(dataset)


def test_a_sound_index_is_used(folder, tmp_path):
    with worlds.dataset(folder) as dataset:
        assert dataset._addresses is not None
        assert not dataset._addresses.changed_samples
        assert rows(dataset) == wanted(CONTIGS, tmp_path)


def test_the_index_of_a_split_without_windows_is_sound(folder, caplog):
    with pytest.warns(EdenWarning, match="holds no window"):
        write_windows(folder / "none.db", {"BCR__ECT-S1__short": "ACGT"}, window_min_length_threshold=50)
    index_window_database(folder / "seqs", folder / "none.db")
    with caplog.at_level(logging.WARNING), ShardedEdenDataset.open(folder / "seqs", folder / "none.db") as dataset:
        assert len(dataset) == 0
    assert not caplog.records
    assert verify(folder / "seqs", [folder / "windows.db", folder / "none.db"], full=True).findings == []


def test_samples_without_windows_in_the_split_are_not_called_changed(folder, caplog):
    more = worlds.write(folder / "more", {"BCR__ECT-S7__CT1-0": "ACGT" * 30})
    shutil.copytree(more / "seqs/S7", folder / "seqs/S7")
    index_window_database(folder / "seqs", folder / "windows.db")
    with caplog.at_level(logging.WARNING), worlds.dataset(folder) as dataset:
        assert not dataset._addresses.changed_samples
    assert "not the files that were indexed" not in caplog.text


def opened_by_sqlite(dataset: Any) -> list[str]:
    return [sample for pool in dataset._reader._databases.opened() for sample in pool._open]


def test_opening_leaves_out_the_databases_that_the_index_has_read(folder, tmp_path):
    more = worlds.write(folder / "more", {"BCR__ECT-S7__CT1-0": "ACGT" * 30})
    shutil.copytree(more / "seqs/S7", folder / "seqs/S7")
    with worlds.dataset(folder) as dataset:
        assert opened_by_sqlite(dataset) == ["S7"]  # it is not in the index
        assert rows(dataset) == wanted(CONTIGS, tmp_path)
        assert dataset.db_connections["S1"].execute("SELECT count(*) FROM sequences").get == 2
    with worlds.dataset(folder, read_with="blob") as dataset:
        assert sorted(opened_by_sqlite(dataset)) == ["S0", "S1", "S7"]


def test_a_database_without_addresses_is_opened_with_the_dataset(folder, tmp_path):
    view = "CREATE VIEW sequences AS SELECT * FROM contigs"
    execute(sample_db(folder, "S0"), "ALTER TABLE sequences RENAME TO contigs", view)
    index_window_database(folder / "seqs", folder / "windows.db")
    with worlds.dataset(folder) as dataset:
        assert opened_by_sqlite(dataset) == ["S0"]
        assert rows(dataset) == wanted(CONTIGS, tmp_path)


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="needs preadv2")
@pytest.mark.parametrize("seed", range(4))
def test_batches_of_which_a_part_is_in_the_page_cache_give_the_same_rows(folder, tmp_path, monkeypatch, seed):
    preadv, chance, outcomes = os.preadv, random.Random(seed), set()

    def partly_cached(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        outcome = chance.choice(["all", "all", "all", "none", "half"]) if flags else "all"
        outcomes.add(outcome)
        if outcome == "none":
            raise BlockingIOError
        if outcome == "half":
            return preadv(descriptor, [buffers[0][: len(buffers[0]) // 2]], offset)
        return preadv(descriptor, buffers, offset)

    expected = wanted(CONTIGS, tmp_path)
    monkeypatch.setattr(os, "preadv", partly_cached)
    with worlds.dataset(folder) as dataset:
        for first in range(0, len(dataset), 16):
            windows = list(range(first, min(first + 16, len(dataset))))
            found = [row["tokens"].tolist() for row in dataset.__getitems__(windows)]
            assert found == [expected[window] for window in windows]
    assert outcomes == {"all", "none", "half"}


# ---- stale when the dataset is opened ----


def test_a_sample_replaced_before_opening_is_read_by_sqlite(folder, tmp_path, caplog):
    other = worlds.write(tmp_path / "other", OTHERS)
    os.replace(sample_db(other, "S0"), sample_db(folder, "S0"))
    with caplog.at_level(logging.WARNING), worlds.dataset(folder) as dataset:
        assert dataset._addresses.changed_samples == ["S0"]
        mixed = {name: (OTHERS if "-S0_" in name else CONTIGS)[name] for name in CONTIGS}
        assert rows(dataset) == wanted(mixed, tmp_path)
    assert "1 of 2 sequence databases are not the files that were indexed (the first is S0)" in caplog.text
    assert "sharded-eden index" in caplog.text


def test_a_sample_in_wal_mode_is_read_by_sqlite(folder, tmp_path):
    execute(sample_db(folder, "S0"), "PRAGMA journal_mode = WAL")
    index_window_database(folder / "seqs", folder / "windows.db")
    writer = sqlite3.connect(sample_db(folder, "S0"))
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    writer.execute("UPDATE sequences SET nt_sequence = nt_sequence")
    writer.commit()
    try:
        with worlds.dataset(folder) as dataset:
            assert rows(dataset) == wanted(CONTIGS, tmp_path)
    finally:
        writer.close()


def test_windows_in_a_write_ahead_log_are_not_located_by_the_index(folder, tmp_path, caplog):
    path = folder / "windows.db"
    execute(path, "PRAGMA journal_mode = WAL")
    index_window_database(folder / "seqs", path)
    before = path.stat()
    with worlds.dataset(folder) as dataset:
        assert dataset._addresses is not None
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    swap = "CASE sequence_id WHEN 'BCR__ECT-S0__CT1-0' THEN 'BCR__ECT-S1__CT1-1' ELSE 'BCR__ECT-S0__CT1-0' END"
    writer.execute(f"UPDATE window_mappings SET sequence_id = {swap} WHERE window_in_seq_idx = 0 AND window_idx < 2")
    writer.commit()
    try:
        assert path.stat()[:9] == before[:9]  # the file itself says nothing
        with caplog.at_level(logging.WARNING), worlds.dataset(folder) as dataset:
            assert dataset._addresses is None
            for k in range(2):
                window = dataset.fetch(k)
                assert bytes(window.bases).decode() == CONTIGS[window.sequence_id][: len(window.bases)]
        assert "is not used: the window database has a -wal file" in caplog.text
        with pytest.raises(
            DatabaseError, match=r"windows\.db: has a -wal file that is not empty: a program has it open"
        ):
            index_window_database(folder / "seqs", path)
    finally:
        writer.close()
    index_window_database(folder / "seqs", path)
    with worlds.dataset(folder) as dataset:
        assert dataset._addresses is not None


def test_an_index_of_another_window_database_is_not_used(folder, tmp_path, caplog):
    other = indexed(tmp_path / "other", dict(list(CONTIGS.items())[:3]))
    shutil.copy(index_path(other / "windows.db"), index_path(folder / "windows.db"))
    with caplog.at_level(logging.WARNING), worlds.dataset(folder) as dataset:
        assert dataset._addresses is None
        assert rows(dataset) == wanted(CONTIGS, tmp_path)
    assert "is not used: it describes a window database of" in caplog.text


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_a_truncated_index_is_not_used(folder, tmp_path, caplog, kept):
    path = index_path(folder / "windows.db")
    size = path.stat().st_size
    os.truncate(path, {0.5: size // 2, -1: size - 1}.get(kept, int(kept)))
    with caplog.at_level(logging.WARNING), worlds.dataset(folder) as dataset:
        assert dataset._addresses is None
        assert rows(dataset) == wanted(CONTIGS, tmp_path)
    assert "not a whole index of windows" in caplog.text


# ---- while a dataset reads ----


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_an_index_that_is_replaced_or_removed_while_it_is_read_changes_no_row(folder, tmp_path, change):
    path = index_path(folder / "windows.db")
    with worlds.dataset(folder) as dataset:
        before = dataset[0]["tokens"].tolist()
        if change == "removed":
            path.unlink()
        else:
            other = indexed(tmp_path / "other", OTHERS)
            os.replace(index_path(other / "windows.db"), path)
        found = rows(dataset)
        assert found == wanted(CONTIGS, tmp_path)
        assert found[0] == before


def in_place(path: Path) -> None:
    execute(path, "UPDATE sequences SET nt_sequence = replace(nt_sequence, 'A', 'C')")


def other_bases_same_size(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.translate(bytes.maketrans(b"ACGT", b"CATG")))


def vacuum(path: Path) -> None:
    execute(path, "DELETE FROM sequences WHERE rowid = (SELECT min(rowid) FROM sequences)")
    connection = sqlite3.connect(path)
    connection.execute("VACUUM")
    connection.close()


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(4096))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


CHANGES: list[Callable[[Path], None]] = [in_place, other_bases_same_size, vacuum, appended, truncated, emptied]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("change", CHANGES)
def test_a_database_that_changes_under_addressed_reads_is_an_error(folder, change, batch):
    with worlds.dataset(folder) as dataset:
        before = rows(dataset)
        mine = [k for k, (name, _) in enumerate(worlds.rows_of(folder)) if "-S0_" in name]
        os.utime(
            sample_db(folder, "S0"), ns=(1, 1)
        )  # else the change may fall into the tick of the clock that wrote it
        change(sample_db(folder, "S0"))
        for k in range(0, len(dataset), batch):
            indices = list(range(k, min(k + batch, len(dataset))))
            if set(indices) & set(mine):
                with pytest.raises(DatabaseError, match=r"glm_dataset_S0\.sqlite"):
                    dataset.__getitems__(indices)
            else:
                found = dataset.collate_fn(dataset.__getitems__(indices))["tokens"].tolist()
                assert found == [before[i] for i in indices]


def test_a_database_that_is_renamed_over_gives_the_old_rows_or_an_error(folder, tmp_path):
    other = worlds.write(tmp_path / "other", OTHERS)
    with worlds.dataset(folder) as dataset:
        before = rows(dataset)
        os.replace(sample_db(other, "S0"), sample_db(folder, "S0"))
        assert rows(dataset) == before  # by the descriptor of the old file
        dataset._addresses.close()  # as in a thread or a worker that opens the file now
        with pytest.raises(DatabaseError, match=r"glm_dataset_S0\.sqlite.*was changed or replaced"):
            rows(dataset)


def test_a_write_ahead_log_that_appears_while_a_database_is_read_changes_no_row(folder):
    with worlds.dataset(folder) as dataset:
        before = rows(dataset)
        path = sample_db(folder, "S0")
        log = path.with_name(path.name + "-wal")
        log.write_bytes(b"")
        assert rows(dataset) == before
    with worlds.dataset(folder) as dataset:
        assert dataset._addresses.changed_samples == ["S0"]
        assert rows(dataset) == before
