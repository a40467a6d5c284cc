"""Access logs in CSV and Parquet: complete after a kill, closed at a size, safe in spreadsheets, read as one frame."""

from __future__ import annotations

import csv
import errno
import io
import os
import random
import signal

import polars as pl
import pyarrow.parquet
import pytest
import worlds
from torch.utils.data import DataLoader

import sharded_eden
from sharded_eden import DatabaseError, EdenWarning, InputError, MissingDatabase, UsageError, WriteError
from sharded_eden.describe.access_logs import (
    SCHEMA,
    access_log_files,
    read_access_logs,
    scan_access_log,
    scan_access_logs,
)
from sharded_eden.load import access_log, access_rows
from sharded_eden.load.access_log import as_cell
from sharded_eden.load.access_rows import COLUMNS
from sharded_eden.windows.index import index_window_database

ODD = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "'quoted",
    "''=twice",
    "plain",
    'comma, "quote"',
    "line\nbreak",
    "return\rhere",
    "",
]


@pytest.fixture
def folder(tmp_path):
    return worlds.write(tmp_path)


@pytest.mark.parametrize("log_format", ["csv", "parquet"])
def test_the_frame_has_every_visit(folder, log_format):
    log = folder / "log"
    visits = [(2, 3), (0, 10), (2, 4), (7, 3)]
    with worlds.dataset(
        folder, log_windows=True, log_dir=log, log_format=log_format, split="validation", rank=3
    ) as dataset:
        dataset.__getitems__(visits[:3])
        dataset[visits[3]]
    frame = sharded_eden.read_access_logs(log)
    assert frame.schema == {**SCHEMA, "split": pl.String}
    assert list(zip(frame["epoch"], frame["window_idx"], strict=True)) == visits
    where = worlds.rows_of(folder)
    assert list(zip(frame["sequence_id"], frame["window_in_seq_idx"], strict=True)) == [where[k] for _, k in visits]
    assert frame["sample_id"].to_list() == [worlds.oracle.sample_of(where[k][0]) for _, k in visits]
    assert set(frame["rank"]) == {3}
    assert set(frame["worker"]) == {-1}
    assert set(frame["split"]) == {"validation"}
    assert [path.suffix for path in log.iterdir()] == [f".{log_format}"]


@pytest.mark.parametrize("log_format", ["csv", "parquet"])
def test_ids_are_no_formulas_and_come_back(tmp_path, log_format):
    contigs = {f"{odd}__ECT-{'=' if k % 2 else ''}S__CT1-{k}": "ACGT" for k, odd in enumerate(ODD)}
    folder = worlds.write(tmp_path, contigs)
    with worlds.dataset(folder, log_windows=True, log_dir=folder / "log", log_format=log_format) as dataset:
        for index in range(len(contigs)):
            dataset[index]
    ids = [sequence_id for sequence_id, _ in worlds.rows_of(folder)]
    assert sorted(ids) == sorted(contigs)
    (path,) = (folder / "log").iterdir()
    if log_format == "csv":
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert not [
            row for row in rows for name in ("sequence_id", "sample_id") if row[name].startswith(tuple("=+-@\t"))
        ]
        assert [row["sequence_id"].removeprefix("'") for row in rows] == ids
    else:
        assert pyarrow.parquet.read_table(path)["sequence_id"].to_pylist() == ids
    frame = read_access_logs(folder / "log")
    assert frame["sequence_id"].to_list() == ids
    assert set(frame["sample_id"]) == {"S", "=S"}


@pytest.mark.parametrize("text", ODD)
def test_a_cell_is_no_formula_and_is_reversible(text):
    cell = as_cell(text)
    assert not cell.startswith(tuple("=+-@"))
    assert (cell[1:] if cell.startswith("'") else cell) == text


@pytest.mark.parametrize("content", [b"", b"PAR1" + bytes(100), b"no Parquet"])
def test_a_damaged_parquet_file_is_named(tmp_path, content):
    (tmp_path / "window_access_train_rank0_0123abcd.parquet").write_bytes(content)
    for read in (read_access_logs, scan_access_logs):
        with pytest.raises(InputError, match=r"rank0_0123abcd\.parquet: is damaged, or no access log"):
            read(tmp_path)


@pytest.mark.parametrize("log_format", ["csv", "parquet"])
def test_a_full_file_is_closed_and_another_one_begun(folder, log_format):
    log, passes = folder / "log", 30 if log_format == "csv" else 90
    with worlds.dataset(folder, log_windows=True, log_dir=log, log_format=log_format, log_file_bytes=4096) as dataset:
        for epoch in range(passes):
            dataset.__getitems__([(epoch, index) for index in range(11)])
            if epoch == 2 and log_format == "parquet":
                (rows,) = log.iterdir()
                assert rows.suffix == ".rows"
                assert len(read_access_logs(log)) == 33  # of a process that is running
        assert len({path.stem for path in log.iterdir()}) > 3
    frame = read_access_logs(log)
    assert sorted(zip(frame["epoch"], frame["window_idx"], strict=True)) == [
        (epoch, index) for epoch in range(passes) for index in range(11)
    ]
    assert {path.suffix for path in log.iterdir()} == {f".{log_format}"}
    if log_format == "csv":
        assert max(path.stat().st_size for path in log.iterdir()) < 4096 + 11 * 100


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_leave_parquet_files(folder, start):
    dataset = worlds.dataset(folder, log_windows=True, log_dir=folder / "log", log_format="parquet")
    loader = DataLoader(
        dataset, batch_size=2, num_workers=2, multiprocessing_context=start, collate_fn=dataset.collate_fn
    )
    assert len(list(loader)) == 6
    del loader
    frame = read_access_logs(folder / "log")
    assert sorted(frame["window_idx"]) == list(range(11))
    assert set(frame["worker"]) == {0, 1}
    assert {path.suffix for path in (folder / "log").iterdir()} == {".parquet"}


def killed(folder, log_format, **options):
    """Read 176 windows in a process that is killed."""
    child = os.fork()
    if not child:
        log = folder / "log"
        options = {"log_windows": True, "log_dir": log, "log_format": log_format, "log_file_bytes": 4096, **options}
        dataset = worlds.dataset(folder, **options)
        for epoch in range(16):
            dataset.__getitems__([(epoch, index) for index in range(11)])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return folder / "log"


@pytest.mark.parametrize("log_format", ["csv", "parquet"])
def test_a_killed_process_loses_no_row(folder, log_format):
    log = killed(folder, log_format, rank=4)
    suffixes = {path.suffix for path in log.iterdir()}
    assert suffixes == ({".csv"} if log_format == "csv" else {".rows"})
    frame = read_access_logs(log).sort("access_ts", maintain_order=True)
    where = worlds.rows_of(folder)
    assert frame.drop("access_ts").rows() == [
        (k, where[k][0], worlds.oracle.sample_of(where[k][0]), where[k][1], 4, -1, epoch, "train")
        for epoch in range(16)
        for k in range(11)
    ]


def test_the_last_rows_of_a_killed_process_are_whole_or_left_out(folder):
    (path,) = killed(folder, "parquet").iterdir()
    data = path.read_bytes()
    begin = data.index(b"\n") + 1
    for size in (0, begin - 1, begin, begin + 15, begin + 16, len(data) - 1):
        path.write_bytes(data[:size])
        kept = max(0, size - begin) // (16 + 16 * 11) * 11
        if size in (0, begin):
            assert read_access_logs(path.parent).is_empty()
            continue
        with pytest.warns(EdenWarning, match="its last rows are incomplete"):
            assert len(read_access_logs(path.parent)) == kept


@pytest.mark.parametrize("has_fingerprint", [False, True])
def test_the_rows_of_a_killed_process_need_the_window_database_that_it_read(folder, has_fingerprint):
    database, away = folder / "windows.db", folder / "away.db"
    if has_fingerprint:
        worlds.execute(database, "INSERT INTO metadata VALUES ('fingerprint', 5)")
    log = killed(folder, "parquet")
    database.rename(away)
    with pytest.raises(
        MissingDatabase, match=r"is the log of a running or killed process, and .*windows.db is missing. The 176 rows"
    ):
        read_access_logs(log)
    away.rename(database)
    assert len(read_access_logs(log)) == 176
    os.utime(database, (1, 1))
    if has_fingerprint:  # a copy of the database will do
        assert len(read_access_logs(log)) == 176
        worlds.execute(database, "UPDATE metadata SET value = 6 WHERE key = 'fingerprint'")
    with pytest.raises(InputError, match=r"windows.db was replaced since"):
        read_access_logs(log)
    (path,) = log.iterdir()
    for line in (b"", b"[]", b"{}", b'{"identity": 1}'):
        path.write_bytes(line + b"\n")
        with pytest.raises(InputError, match="is no access log"):
            read_access_logs(log)


def test_a_fork_does_not_write_the_rows_of_its_parent(folder):
    log = folder / "log"
    with worlds.dataset(folder, log_windows=True, log_dir=log, log_format="parquet") as dataset:
        dataset[3]
        child = os.fork()
        if not child:
            dataset[4]
            dataset.close()
            os._exit(0)
        os.waitpid(child, 0)
    assert sorted(read_access_logs(log)["window_idx"]) == [3, 4]


def test_a_parquet_file_replaces_the_rows_that_it_was_made_of(folder):
    """A process that was killed between the two steps leaves both."""
    log = folder / "log"
    with worlds.dataset(folder, log_windows=True, log_dir=log, log_format="parquet") as dataset:
        dataset[0]
        (path,) = log.iterdir()
        data = path.read_bytes()
    path.write_bytes(data)
    assert len(access_log_files(log)) == 1
    assert read_access_logs(log)["window_idx"].to_list() == [0]


def test_a_running_process_may_replace_its_rows_while_they_are_read(folder):
    log = folder / "log"
    with worlds.dataset(folder, log_windows=True, log_dir=log, log_format="parquet") as dataset:
        dataset[3]
        (path,) = access_log_files(log)
    assert path.suffix == ".rows"
    assert scan_access_log(path).collect().equals(read_access_logs(log))
    path.with_suffix(".parquet").unlink()
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        scan_access_log(path)


def test_an_incomplete_last_row_is_left_out_with_a_warning(folder):
    log = folder / "log"
    with worlds.dataset(folder, log_windows=True, log_dir=log) as dataset:
        dataset[0], dataset[1]
    (path,) = log.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(EdenWarning, match="its last row is incomplete"):
        assert read_access_logs(log)["window_idx"].to_list() == [0]


@pytest.mark.parametrize("size", [1, 10, 40, len(",".join(COLUMNS))])
@pytest.mark.parametrize("beside_another", [False, True])
def test_a_log_that_ends_inside_its_first_line_has_no_row(folder, size, beside_another):
    """A process that was killed in its first write."""
    log = folder / "log"
    with worlds.dataset(folder, log_windows=True, log_dir=log) as dataset:
        dataset[0]
    (path,) = log.iterdir()
    cut = path.with_name("window_access_train_rank0_00000000.csv")
    cut.write_bytes(path.read_bytes()[:size])
    if not beside_another:
        path.unlink()
    with pytest.warns(EdenWarning, match="00000000.csv: ends inside its first line"):
        frame = read_access_logs(log)
    assert frame["window_idx"].to_list() == ([0] if beside_another else [])
    assert frame.schema == {**SCHEMA, "split": pl.String}


def line(row) -> str:
    """A row of CSV. Characters of the writer's terminator are quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow([as_cell(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()[:-2] + "\n"


@pytest.mark.parametrize("what", ["no index", "index", "a changed database"])
@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("log_format", ["csv", "parquet"])
def test_rows_are_the_same_with_an_index(tmp_path, what, batch, log_format, monkeypatch):
    """Against the window database, which the oracle wrote. Contigs are looked up again when too many are kept."""
    monkeypatch.setattr(access_log, "KEPT_NAMES", 3)
    monkeypatch.setattr(access_rows, "ROWS_AT_ONCE", 50)
    contigs = {**worlds.CONTIGS, **{f"{odd}__ECT-S{k % 3}__CT1-{k}": "ACGT" * 60 for k, odd in enumerate(ODD)}}
    folder = worlds.write(tmp_path, contigs)
    if what != "no index":
        index_window_database(folder / "seqs", folder / "windows.db")
    if what == "a changed database":
        os.utime(worlds.sample_db(folder, "S1"), (1, 1))
    where = worlds.rows_of(folder)
    visits = random.Random(1).choices([(epoch, k) for epoch in range(3) for k in range(len(where))], k=200)
    with worlds.dataset(folder, log_windows=True, log_dir=folder / "log", log_format=log_format, rank=2) as dataset:
        assert (dataset._addresses is None) == (what == "no index")
        for first in range(0, len(visits), batch):
            dataset.__getitems__(visits[first : first + batch])
    frame = read_access_logs(folder / "log")
    assert frame.drop("access_ts").rows() == [
        (k, *(where[k][0], worlds.oracle.sample_of(where[k][0]), where[k][1]), 2, -1, epoch, "train")
        for epoch, k in visits
    ]
    assert frame["access_ts"].is_sorted()
    assert frame["access_ts"].n_unique() <= -(-len(visits) // batch)
    if log_format == "csv":
        (path,) = (folder / "log").iterdir()
        rows = frame.drop("split").rows()
        assert path.read_bytes().decode() == "".join(map(line, [COLUMNS, *rows]))


def test_windows_of_damaged_rows_are_an_error(tmp_path):
    folder = worlds.write(tmp_path)
    worlds.execute(folder / "windows.db", "UPDATE window_mappings SET window_in_seq_idx = 'x' WHERE window_idx = 3")
    with worlds.dataset(folder, log_windows=True, log_dir=folder / "log") as dataset:
        with pytest.raises(DatabaseError, match="window 3"):
            dataset[3]
        with pytest.raises(DatabaseError, match="window 3"):
            dataset.locate_many([2, 3])


def test_what_is_no_log_is_refused(tmp_path):
    with pytest.raises(MissingDatabase, match="no such folder"):
        read_access_logs(tmp_path / "nothing")
    with pytest.raises(MissingDatabase, match="holds no access log"):
        read_access_logs(tmp_path)
    path = tmp_path / "window_access_train_rank0_0123abcd.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="expected the columns window_idx"):
        read_access_logs(tmp_path)
    path.write_text(",".join(COLUMNS) + "\nx,a,b,c,d,e,f,g\n")
    with pytest.raises(InputError, match="is damaged"):
        read_access_logs(tmp_path)
    path.write_bytes(b"")
    assert read_access_logs(tmp_path).is_empty()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_format": "xml"}, "log_format must be"),
        ({"log_file_bytes": 10}, "at least 4,096"),
        ({"log_file_bytes": "1"}, "an integer"),
    ],
)
def test_wrong_options(folder, options, message):
    with pytest.raises(UsageError, match=message):
        worlds.dataset(folder, **options)


@pytest.mark.parametrize("log_format", ["csv", "parquet"])
def test_a_disk_that_fills_up_leaves_whole_rows_and_the_log_goes_on(folder, log_format, monkeypatch):
    log, write = folder / "log", os.write
    with worlds.dataset(folder, log_windows=True, log_dir=log, log_format=log_format) as dataset:
        dataset[3]
        dataset[4]

        def fill(descriptor, data):
            if len(data) < 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data[:-10])

        with monkeypatch.context() as full:
            full.setattr(os, "write", fill)
            with pytest.raises(UsageError, match="No space left"):
                dataset[5]
        dataset[6]
    assert read_access_logs(log)["window_idx"].to_list() == [3, 4, 6]


@pytest.mark.parametrize("log_format", ["csv", "parquet"])
def test_a_log_whose_first_row_failed_can_be_closed_and_read(folder, log_format, monkeypatch):
    log = folder / "log"

    def fail(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    dataset = worlds.dataset(folder, log_windows=True, log_dir=log, log_format=log_format)
    with monkeypatch.context() as full:
        full.setattr(os, "write", fail)
        with pytest.raises(UsageError, match="No space left"):
            dataset[5]
    dataset.close()
    assert read_access_logs(log).is_empty()


def test_a_log_that_was_removed_is_an_error_of_its_own(folder):
    dataset = worlds.dataset(folder, log_windows=True, log_dir=folder / "log", log_format="parquet")
    dataset[5]
    (path,) = (folder / "log").iterdir()
    path.unlink()
    with pytest.raises(WriteError, match="cannot be made a Parquet file"):
        dataset.close()


@pytest.mark.parametrize("split", ["human/chr1", "..", "a\nb", "50%", "%2F", "\u00fc", "", "a_rank3_x"])
def test_a_split_of_any_name_has_its_log(folder, split):
    with worlds.dataset(folder, log_windows=True, log_dir=folder / "log", split=split) as dataset:
        dataset[3]
    assert read_access_logs(folder / "log").select("window_idx", "split").rows() == [(3, split)]


def test_what_is_no_file_is_no_log(folder):
    with worlds.dataset(folder, log_windows=True, log_dir=folder / "log") as dataset:
        dataset[3]
    (folder / "log" / "window_access_train_rank0_00000000.csv").mkdir()
    os.mkfifo(folder / "log" / "window_access_train_rank0_00000001.csv")
    assert read_access_logs(folder / "log")["window_idx"].to_list() == [3]
