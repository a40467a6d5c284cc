"""Workers, forks, threads, pickles, kills: equal items everywhere, and no connection is used in another thread or process."""

from __future__ import annotations

import csv
import os
import pickle
import random
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from torch.utils.data import DataLoader
from worlds import T, as_lists, expected

from sharded_eden import Stream
from sharded_eden.errors import DatabaseError
from sharded_eden.load.access_rows import COLUMNS
from sharded_eden.load.read.sequences import LONG_CONTIG_BASES

HELPERS = Path(__file__).resolve().parent.parent / "helpers"

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

N = 11
ORDER = [(epoch, i) for epoch in range(2) for i in (7, 0, 10, 3, 1, 9, 2, 8, 4, 6, 5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return worlds.write(tmp_path)


def in_child(function: Callable[[], object], *, killed: bool = False) -> str:
    """Run a function in a forked child; return what it wrote to its pipe, or its error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reading)
        try:
            os.write(writing, str(function()).encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) == killed
    return text


def logs(folder: Path) -> dict[str, list[dict[str, str]]]:
    """{file name: rows} of every access log, each of them whole."""
    found = {}
    for path in sorted(folder.glob("*.csv")):
        text = path.read_text()
        assert text.endswith("\n")
        rows = list(csv.reader(text.splitlines()))
        assert tuple(rows[0]) == COLUMNS
        assert all(len(row) == len(COLUMNS) for row in rows)
        assert list(COLUMNS) not in rows[1:]
        found[path.name] = [dict(zip(COLUMNS, row, strict=True)) for row in rows[1:]]
    return found


# ---- workers ----


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1), ("forkserver", 1)])
def test_workers_give_the_items_of_one_process(folder, context, workers):
    options: dict[str, Any] = {"rc_aug": True, "use_control_tags": True, "log_windows": True, "log_dir": folder / "log"}
    with worlds.dataset(folder, **options) as dataset:
        wanted = [as_lists(dataset[index]) for index in ORDER]
        here = len(logs(folder / "log"))
        loader = DataLoader(
            dataset,
            batch_size=3,
            sampler=ORDER,
            num_workers=workers,
            multiprocessing_context=context,
            collate_fn=dataset.collate_fn,
        )
        batches = list(loader)
        for key in ("tokens", "labels", "loss_mask", "position_ids"):
            assert [row for batch in batches for row in batch[key].tolist()] == [item[key] for item in wanted]
        assert as_lists(dataset[ORDER[0]]) == wanted[0]
    assert here == 1
    found = list(logs(folder / "log").values())
    assert len(found) == 1 + workers  # one file for each process
    by_worker = {rows[0]["worker"]: [(int(row["epoch"]), int(row["window_idx"])) for row in rows] for rows in found}
    assert by_worker.pop("-1") == [*ORDER, ORDER[0]]
    assert set(by_worker) == {str(k) for k in range(workers)}
    assert sorted(visit for visits in by_worker.values() for visit in visits) == sorted(ORDER)


def test_a_stream_under_workers(folder):
    with worlds.dataset(folder) as dataset:
        stream = Stream(dataset, 3 * N)
        wanted = [row for k in range(3 * N) for row in [stream[k]["tokens"].tolist()]]
        for workers in (0, 3):
            loader = DataLoader(stream, batch_size=4, num_workers=workers, multiprocessing_context="fork" if workers else None,
                                collate_fn=stream.collate_fn)  # fmt: skip
            assert [row for batch in loader for row in batch["tokens"].tolist()] == wanted


def test_an_error_in_a_worker_keeps_its_kind_and_words(folder):
    worlds.execute(worlds.sample_db(folder, "S1"), "DELETE FROM sequences")
    with worlds.dataset(folder) as dataset:
        batches = iter(DataLoader(dataset, batch_size=N, num_workers=1, multiprocessing_context="fork"))
        with pytest.raises(DatabaseError, match=r"must have at least .* has no such contig"):
            next(batches)
        with pytest.raises(StopIteration):  # ends the worker now, not whenever rubbish is collected
            next(batches)


# ---- forks ----


def test_no_connection_crosses_a_fork(folder):
    program = HELPERS / "fork_proof.py"
    command = [sys.executable, "-W", "error", str(program), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_forked_children_of_forked_children(folder):
    with worlds.dataset(folder) as dataset:
        wanted = [as_lists(dataset[i]) for i in range(N)]

        def read() -> bool:
            return [as_lists(dataset[i]) for i in range(N)] == wanted

        assert in_child(lambda: (read(), in_child(read), read())) == "(True, 'True', True)"
        assert read()


# ---- pickles ----


def test_a_pickle_holds_no_connection_and_no_bases(folder):
    options = {"rc_aug": True, "use_control_tags": True, "log_windows": True, "log_dir": folder / "log"}
    with worlds.dataset(folder, **options) as dataset:
        fresh = pickle.dumps(dataset)
        wanted = [as_lists(dataset[1, i]) for i in range(N)]
        dataset.db_connections["S0"].execute("SELECT 1")
        pickled = pickle.dumps(dataset)
        assert len(pickled) < len(fresh) + 500
        with pickle.loads(pickle.dumps(pickle.loads(pickled))) as copy:
            assert [as_lists(copy[1, i]) for i in range(N)] == wanted
            assert set(copy.db_connections) == set(dataset.db_connections)
            assert (len(copy), copy.fingerprint, repr(copy)) == (len(dataset), dataset.fingerprint, repr(dataset))
        assert as_lists(dataset[1, 0]) == wanted[0]  # closing the copy closed nothing here
    assert sorted(len(rows) for rows in logs(folder / "log").values()) == [N, N + 1]


# ---- threads ----


def together(count: int, function: Callable[[int], None]) -> None:
    """Run a function in several threads that begin at once; raise what any of them raises."""
    barrier, errors = threading.Barrier(count), []

    def run(k: int) -> None:
        try:
            barrier.wait()
            function(k)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("read_with", ["blob", "substr"])
def test_threads_read_at_once(tmp_path, read_with):
    contigs = dict(worlds.CONTIGS)
    for k in range(3):  # long enough to keep their own handles
        contigs[f"BCR__ECT-S{k}__CT1-9"] = worlds.random_sequence(LONG_CONTIG_BASES + 100 * k, 50 + k)
    folder = worlds.write(tmp_path, contigs)
    rows = worlds.rows_of(folder)
    short = [i for i, (sequence_id, _) in enumerate(rows) if not sequence_id.endswith("-9")]
    chosen = short + random.Random(0).sample([i for i in range(len(rows)) if i not in short], 60)
    with worlds.dataset(folder, read_with=read_with, rc_aug=True, use_control_tags=True) as dataset:
        wanted = {i: as_lists(dataset[i]) for i in chosen}
        batches = {}

        def read(k: int) -> None:
            order = random.Random(k).sample(chosen, len(chosen))
            for i in order:
                assert as_lists(dataset[i]) == wanted[i]
            batch = dataset.collate_fn(dataset.__getitems__(order[:20]))
            batches[k] = (order[:20], batch)
            connection = dataset.db_connections["S1"]
            assert connection.execute("SELECT count(*) FROM windows.window_mappings").get == len(rows)

        for _ in range(2):
            together(4, read)
        for order, batch in batches.values():  # no buffer that a thread has returned was written to again
            assert batch["tokens"].tolist() == [wanted[i]["tokens"] for i in order]
        for i in short[:5]:
            assert as_lists(dataset[i])["tokens"] == wanted[i]["tokens"]


def _itself(rows: Any) -> Any:
    return rows


def _as_numpy(rows: Any) -> Any:
    return rows[0]["tokens"].numpy()


def _view_of_labels(rows: Any) -> Any:
    return rows[0]["labels"][3:].view(-1)


def test_what_was_handed_out_is_never_written_to_again(folder):
    with worlds.dataset(folder) as dataset:
        wanted = [expected(folder, i) for i in range(N)]
        rng = random.Random(0)
        held: list[tuple[list[int], Any]] = []
        for _ in range(60):
            order = [rng.randrange(N) for _ in range(rng.choice([1, 2, 2, 3]))]
            rows = dataset.__getitems__(order)
            keep = rng.choice([_itself, dataset.collate_fn, list, _as_numpy, _view_of_labels])
            kept = keep(rows)
            held.append((order, kept))
            del rows
            if len(held) > 12:
                del held[rng.randrange(12)]
            for order, kept in held:
                first = wanted[order[0]]
                if isinstance(kept, dict):
                    assert kept["labels"].tolist() == [wanted[i]["labels"] for i in order]
                    assert kept["loss_mask"].tolist() == [wanted[i]["loss_mask"] for i in order]
                elif isinstance(kept, torch.Tensor):
                    assert kept.tolist() == first["labels"][3:]
                elif hasattr(kept, "dtype"):
                    assert kept.tolist() == first["tokens"]
                else:
                    assert [as_lists(item) for item in kept] == [wanted[i] for i in order]


def test_threads_that_end_let_go_of_their_connections(folder):
    def open_here() -> int:
        return len(
            [n for n in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{n}").startswith(str(folder))]
        )

    with worlds.dataset(folder) as dataset:
        before = open_here()
        for _ in range(5):
            together(2, lambda _: [dataset[i] for i in range(N)] and None)
        assert open_here() == before


def test_threads_write_one_log(folder):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for attempt in range(10):
            log_dir = folder / f"log{attempt}"
            with worlds.dataset(folder, log_windows=True, log_dir=log_dir) as dataset:
                together(8, lambda _: [dataset[i] for i in range(N)] and None)
            (rows,) = logs(log_dir).values()
            assert sorted(int(row["window_idx"]) for row in rows) == sorted(list(range(N)) * 8)
    finally:
        sys.setswitchinterval(interval)


# ---- more samples than file descriptors ----


def crowd(folder: Path, samples: int = 40) -> Path:
    return worlds.write(folder, {f"BCR__ECT-S{k:03}__CT1-1": worlds.random_sequence(80, k) for k in range(samples)})


def limited(function: Callable[[], object], descriptors: int = 32) -> str:
    """Run a function in a child with a low limit of open files."""

    def run() -> object:
        inherited = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (inherited + descriptors, inherited + descriptors))
        return function()

    return in_child(run)


@pytest.mark.parametrize("wal", [False, True], ids=["plain", "wal"])
def test_more_samples_than_file_descriptors(tmp_path, wal):
    folder = crowd(tmp_path)
    writers = []
    if wal:  # a reader of such a database holds three files open
        for k in range(40):
            writers.append(sqlite3.connect(worlds.sample_db(folder, f"S{k:03}")))
            writers[-1].execute("PRAGMA journal_mode = WAL")
            writers[-1].execute("UPDATE sequences SET nt_sequence = nt_sequence")
            writers[-1].commit()
    wanted = [expected(folder, i)["tokens"] for i in range(40)]
    order = [k * 17 % 40 for k in range(80)]

    def read() -> str:
        with worlds.dataset(folder) as dataset:
            assert [dataset[i]["tokens"].tolist() for i in order] == [wanted[i] for i in order]
            joined = "SELECT count(*) FROM sequences JOIN windows.window_mappings ON contig_id = sequence_id"
            assert [connection.execute(joined).get for connection in dataset.db_connections.values()] == [1] * 40
            assert [dataset[i]["tokens"].tolist() for i in order] == [wanted[i] for i in order]
        return "read"

    try:
        assert limited(read) == "read"
    finally:
        for writer in writers:
            writer.close()


def test_handles_of_long_contigs_go_with_their_database(tmp_path):
    """A handle that is kept open must not outlive the connection that made room for another."""
    contigs = {f"BCR__ECT-S{k:03}__CT1-1": worlds.random_sequence(LONG_CONTIG_BASES + k, k) for k in range(20)}
    folder = worlds.write(tmp_path, contigs, stride=50_000)
    rows = worlds.rows_of(folder)
    order = [k * 7 % 60 for k in range(120)]

    def read() -> str:
        with worlds.dataset(folder, stride=50_000) as dataset:
            for i in order:
                sequence_id, k = rows[i]
                bases = contigs[sequence_id][50_000 * k : 50_000 * k + T - 3]
                assert bytes(dataset[i]["tokens"][2:-1].tolist()).decode() == bases
        return "read"

    assert limited(read, 24) == "read"


def test_three_datasets_and_a_worker_share_the_file_descriptors(tmp_path):
    folder = crowd(tmp_path)
    wanted = [expected(folder, i)["tokens"] for i in range(40)]

    def read() -> str:
        datasets = [worlds.dataset(folder, split=split) for split in ("train", "validation", "test")]
        for dataset in datasets:
            assert [dataset[i]["tokens"].tolist() for i in range(40)] == wanted
        again = [
            in_child(lambda each=each: [each[i]["tokens"].tolist() for i in range(40)] == wanted) for each in datasets
        ]
        for dataset in datasets:
            assert [dataset[i]["tokens"].tolist() for i in range(0, 40, 7)] == wanted[::7]
        return str(again)

    assert limited(read) == "['True', 'True', 'True']"


def test_threads_share_the_file_descriptors(tmp_path):
    folder = crowd(tmp_path)
    wanted = [expected(folder, i)["tokens"] for i in range(40)]

    def read() -> str:
        with worlds.dataset(folder) as dataset:
            together(
                6, lambda k: [_same(dataset[(i + 7 * k) % 40], wanted[(i + 7 * k) % 40]) for i in range(40)] and None
            )
        return "read"

    assert limited(read) == "read"


def _same(item: dict[str, Any], tokens: list[int]) -> None:
    assert item["tokens"].tolist() == tokens


def test_no_file_descriptor_left_is_said_in_so_many_words(folder):
    def read() -> None:
        taken = []
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            os.close(taken.pop())  # lists the folder, and opens the window database once
            worlds.dataset(folder)

    words = limited(read)
    assert words.startswith(f"DatabaseError: {folder / 'windows.db'}: this process has no file descriptor left")
    assert "ulimit -n" in words


# ---- the access log ----


def test_columns_of_the_access_log(folder):
    before = time.time_ns()
    with worlds.dataset(folder, log_windows=True, log_dir=folder / "a" / "log", split="validation", rank=3) as dataset:
        assert not (folder / "a").exists()  # made at the first visit
        dataset[4]
        dataset.__getitems__([(2, 0), (2, -1)])
        with pytest.raises(IndexError):
            dataset[99]
    ((name, rows),) = logs(folder / "a" / "log").items()
    assert re.fullmatch(r"window_access_validation_rank3_[0-9a-f]{8}\.csv", name)
    assert COLUMNS == (
        "window_idx", "sequence_id", "sample_id", "window_in_seq_idx", "rank", "access_ts", "worker", "epoch",
    )  # fmt: skip
    where = worlds.rows_of(folder)
    assert [(int(r["window_idx"]), int(r["epoch"])) for r in rows] == [(4, 0), (0, 2), (10, 2)]
    for r in rows:
        sequence_id, k = where[int(r["window_idx"])]
        assert (r["sequence_id"], int(r["window_in_seq_idx"])) == (sequence_id, k)
        assert r["sample_id"] == worlds.oracle.sample_of(sequence_id)
        assert (r["rank"], r["worker"]) == ("3", "-1")
        assert before <= int(r["access_ts"]) <= time.time_ns()
    assert int(rows[0]["access_ts"]) <= int(rows[1]["access_ts"])


def test_the_log_goes_to_the_current_folder_unless_told(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RANK", "5")
    with worlds.dataset(folder, log_windows=True) as dataset:
        monkeypatch.chdir("/")
        dataset[0]
    ((name, _),) = logs(folder).items()
    assert name.startswith("window_access_train_rank5_")


def test_ids_with_commas_and_quotes_survive_the_log(tmp_path):
    odd = 'BCR, "x"__ECT-S0__CT1-1'
    folder = worlds.write(tmp_path, {odd: "ACGT"})
    with worlds.dataset(folder, log_windows=True, log_dir=folder) as dataset:
        dataset[0]
    ((_, rows),) = logs(folder).items()
    assert rows[0]["sequence_id"] == odd


def test_the_log_is_complete_after_a_kill(folder):
    """The row of an item is written before the item is returned, so a killed process loses none."""

    def read() -> None:
        dataset = worlds.dataset(folder, log_windows=True, log_dir=folder / "log")
        for index in ORDER[:15]:
            dataset[index]
        os.kill(os.getpid(), signal.SIGKILL)

    in_child(read, killed=True)
    ((_, rows),) = logs(folder / "log").items()
    assert [(int(row["epoch"]), int(row["window_idx"])) for row in rows] == ORDER[:15]


def test_the_logs_of_workers_are_complete_after_a_kill(folder):
    def load() -> None:
        dataset = worlds.dataset(folder, log_windows=True, log_dir=folder / "log")
        loader = DataLoader(dataset, batch_size=2, sampler=ORDER, num_workers=2, multiprocessing_context="fork")
        batches = iter(loader)
        for _ in range(5):
            next(batches)
        os.killpg(0, signal.SIGKILL)

    in_child(load, killed=True)
    found = logs(folder / "log")
    assert sorted({row["worker"] for rows in found.values() for row in rows}) == ["0", "1"]
    assert len(found) == 2
    visited = [(int(row["epoch"]), int(row["window_idx"])) for rows in found.values() for row in rows]
    assert set(ORDER[:10]) <= set(visited)
    assert len(visited) == len(set(visited))


def test_a_full_disk_is_an_error_that_names_the_log(folder):
    def read() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        dataset = worlds.dataset(folder, log_windows=True, log_dir=folder / "log")
        for _ in range(100):
            dataset[0]

    words = in_child(read)
    assert words.startswith(f"UsageError: {folder}/log: the window access log cannot be written")


def test_rows_are_as_long_as_asked_for_in_every_process(folder):
    with worlds.dataset(folder) as dataset:
        assert in_child(lambda: tuple(dataset[0]["tokens"].shape)) == f"({T},)"
