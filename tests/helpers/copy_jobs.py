"""Jobs that copy sequence databases from a file:// URL while they read, for tests/load/test_copies*.py."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from sharded_eden import ShardedEdenDataset
from sharded_eden.load.read.copied import CopyReader
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.remote_index import add_remote

ENOUGH = 10**9
SECONDS = 240  # a copier that fails twice pauses for 60 and 120 s

READS = """
import json, resource, sys, time
from sharded_eden import ShardedEdenDataset
from sharded_eden.load.read import copied
copied.LOOK_SECONDS = 0.02
folder, limit, seconds, file_bytes = sys.argv[1], *map(int, sys.argv[2:])
if file_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
options = {"cache_dir": f"{folder}/cache", "cache_bytes": limit}
dataset = ShardedEdenDataset.open(f"file://{folder}/seqs", f"{folder}/windows.db", **options)
print("open", flush=True)
end, total = time.monotonic() + seconds, 0
while time.monotonic() < end:
    window = total % len(dataset)
    print(window, dataset[window]["tokens"].sum().item(), flush=True)
    total += 7
    time.sleep(0.01)
"""


def indexed(folder: Path) -> Path:
    """A folder with `seqs/`, `windows.db` and an index that names the file:// URL of `seqs/`."""
    index_window_database(folder / "seqs", folder / "windows.db")
    add_remote(folder / "windows.db", f"file://{folder}/seqs")
    return folder


def remote(folder: Path, cache_bytes: int = ENOUGH, **options: Any) -> ShardedEdenDataset:
    options = {"cache_dir": folder / "cache", "request_seconds": 20.0, **options}
    return ShardedEdenDataset.open(f"file://{folder}/seqs", folder / "windows.db", cache_bytes=cache_bytes, **options)


def local(folder: Path, **options: Any) -> ShardedEdenDataset:
    return ShardedEdenDataset.open(folder / "seqs", folder / "windows.db", **options)


def rows(dataset: ShardedEdenDataset) -> torch.Tensor:
    return torch.stack([row["tokens"] for row in dataset.__getitems__(range(len(dataset)))])


def reader_of(dataset: ShardedEdenDataset) -> CopyReader:
    reader = dataset._addresses._readers.get()
    assert isinstance(reader, CopyReader)
    return reader


def until(condition: Callable[[], object], dataset: ShardedEdenDataset | None = None) -> None:
    """Read one window after the other until something is so."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        if dataset is not None:
            dataset[0]
        time.sleep(0.02)


def read_until_copied(dataset: ShardedEdenDataset) -> None:
    until(lambda: not reader_of(dataset)._missing, dataset)


def complete(folder: Path) -> list[Path]:
    return list((folder / "cache/sequences").glob("*.sqlite"))


def partials(folder: Path) -> list[Path]:
    return list((folder / "cache/sequences").glob(".*.partial"))


def size_of_copies(folder: Path) -> int:
    total = 0
    for path in (*complete(folder), *partials(folder)):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed meanwhile
            continue
    return total


def copiers(of: psutil.Process | None = None) -> list[psutil.Process]:
    """The processes that copy, below a process."""
    found = []
    for child in (of or psutil.Process()).children(recursive=True):
        try:
            if "storage.copier" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def originals(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (folder / "seqs").glob("*/*.sqlite"))


def assert_whole(folder: Path) -> None:
    assert sorted(path.read_bytes() for path in complete(folder)) == originals(folder)
    assert not partials(folder)


def started(folder: Path, limit: int, seconds: int, file_bytes: int = 0) -> subprocess.Popen[str]:
    """A process that reads windows."""
    arguments = [str(folder), str(limit), str(seconds), str(file_bytes)]
    return subprocess.Popen(
        [sys.executable, "-c", READS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def reading(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    """The same, after it has opened its dataset."""
    process = started(*arguments, **options)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n", process.communicate()[1]
    return process


def assert_right(folder: Path, printed: str) -> None:
    with local(folder) as dataset:
        pairs = [tuple(map(int, line.split())) for line in printed.splitlines()]
        assert pairs
        for window, total in pairs:
            assert dataset[window]["tokens"].sum().item() == total


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
