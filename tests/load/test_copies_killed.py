"""Copies of sequence databases through kills, a full disk, and several jobs on one folder."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import worlds
from copy_jobs import (
    ENOUGH,
    assert_right,
    assert_whole,
    complete,
    copiers,
    indexed,
    originals,
    partials,
    read_until_copied,
    reading,
    remote,
    rows,
    size_of_copies,
    started,
    until,
)

from sharded_eden.format.index import IndexFile, index_path
from sharded_eden.storage import copier

pytest.importorskip("obstore")

T, STRIDE = 8192, 8000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four databases of 10 MB, two parts each."""
    letters = bytes(b"ACGT"[k & 3] for k in range(256))
    contigs = {
        f"A__ECT-S{k}__CT1-1": random.Random(k).randbytes(10_000_000).translate(letters).decode() for k in range(4)
    }
    return indexed(worlds.write(tmp_path_factory.mktemp("large"), contigs, T, STRIDE))


def another(large: Path, folder: Path) -> Path:
    """The same data at another URL."""
    shutil.copytree(large, folder, ignore=shutil.ignore_patterns("cache"), copy_function=os.link)
    for path in (folder / "windows.db", index_path(folder / "windows.db")):
        path.unlink()
        shutil.copy2(large / path.name, path)
    return indexed(folder)


def left_in_shared_memory() -> set[str]:
    """What processes that have ended left there: torch names the process, this package is in the name."""
    names = os.listdir("/dev/shm") if Path("/dev/shm").is_dir() else []
    ended = {name for name in names if name.startswith("torch_") and not psutil.pid_exists(int(name.split("_")[1]))}
    return ended | {name for name in names if name.startswith("sharded")}


@pytest.mark.slow
def test_after_kills_at_random_moments_the_copies_are_whole(large, tmp_path):
    folder = another(large, tmp_path / "copy")
    limit = sum(map(len, originals(folder)))
    shared = left_in_shared_memory()
    choose, kept = random.Random(5), 0
    for attempt in range(12):
        for path in complete(folder)[1:]:
            path.unlink()  # so that every process has something to copy
        process = reading(folder, limit, 60)
        until(lambda process=process: copiers(psutil.Process(process.pid)) or len(complete(folder)) == 4)
        running = copiers(psutil.Process(process.pid))
        if attempt % 3:  # at any moment; otherwise while it writes a copy
            time.sleep(choose.random() * 0.7)
        else:
            end = time.monotonic() + 20
            while not partials(folder) and len(complete(folder)) < 4 and time.monotonic() < end:
                pass
        for each in running:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        if attempt % 2:
            process.send_signal(signal.SIGKILL)
        else:
            process.terminate()
        printed = process.communicate(timeout=60)[0].rpartition("\n")[0]
        if printed:
            assert_right(folder, printed)
        assert size_of_copies(folder) <= limit
        kept += len(partials(folder))
        bodies = originals(folder)
        assert all(path.read_bytes() in bodies for path in complete(folder))
    assert kept, "no copy was stopped in the middle"
    process = reading(folder, limit, 60)
    until(lambda: len(complete(folder)) == 4)
    process.terminate()
    process.communicate()
    assert_whole(folder)
    assert left_in_shared_memory() <= shared


def test_a_stopped_copy_is_continued(large, tmp_path):
    folder = another(large, tmp_path / "copy")
    first = copier.in_order(IndexFile(index_path(folder / "windows.db")), f"file://{folder}/seqs")[0]
    body = (folder / "seqs" / first.name).read_bytes()
    partial = folder / "cache/sequences" / f".{first.key}.partial"
    for start in (body[:5_000_000], b"x" * 1000, body + b"longer"):  # the second is damaged, as after a power failure
        shutil.rmtree(folder / "cache", ignore_errors=True)
        partial.parent.mkdir(parents=True)
        partial.write_bytes(start)
        with remote(folder) as dataset:
            read_until_copied(dataset)
        assert_whole(folder)


@pytest.mark.slow
def test_two_jobs_share_a_folder_and_its_limit(large, tmp_path):
    """Of eight databases, five fit: the folder never holds more, both jobs read the right rows."""
    folders = []
    for name in ("one", "two"):
        folders.append(another(large, tmp_path / name))
    (folders[1] / "cache").symlink_to(folders[0] / "cache")
    limit = int(5.5 * max(map(len, originals(folders[0]))))
    processes = [started(folder, limit, 600) for folder in folders for _ in "ab"]

    def is_full() -> bool:
        assert size_of_copies(folders[0]) <= limit
        assert sum(len(copiers(psutil.Process(each.pid))) for each in processes) <= 1, "one process of a node copies"
        return len(complete(folders[0])) == 5

    until(is_full)
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        is_full()
    for process in processes:
        process.terminate()
    for process, folder in zip(processes, [each for each in folders for _ in "ab"], strict=True):
        assert_right(folder, process.communicate()[0].rpartition("\n")[0])
    assert len(complete(folders[0])) == 5
    assert not partials(folders[0])


def test_a_full_disk_is_a_warning(large, tmp_path):
    folder = another(large, tmp_path / "copy")
    process = reading(folder, ENOUGH, 3, file_bytes=9_000_000)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "are not copied to" in errors
    assert "File too large" in errors
    assert_right(folder, printed)
    assert not complete(folder)
    assert not partials(folder), "it would keep the disk full"


@pytest.mark.slow
def test_copies_that_no_job_uses_make_room(tmp_path):
    """Old versions and other data sets are kept until room is needed, and while a job uses them."""
    folder = indexed(worlds.write(tmp_path))
    limit = sum(map(len, originals(folder)))
    reader = reading(folder, limit, 100)
    until(lambda: len(complete(folder)) == 3)
    old = complete(folder)
    for path in (folder / "seqs").glob("*/*.sqlite"):  # another version under the same name
        worlds.execute(path, "PRAGMA user_version = 7")
    indexed(folder)
    with remote(folder, cache_bytes=limit) as dataset:
        for _ in range(20):
            rows(dataset)
            time.sleep(0.02)
        assert sorted(complete(folder)) == sorted(old), "the other job uses them"
    reader.kill()
    reader.communicate()
    with remote(folder, cache_bytes=limit) as dataset:
        read_until_copied(dataset)
        assert size_of_copies(folder) <= limit
    assert_whole(folder)
    assert not set(old) & set(complete(folder))
    uses = list((folder / "cache/sequences").glob(".*.use"))
    assert len(uses) == 1, "lists of jobs that have ended are removed"
