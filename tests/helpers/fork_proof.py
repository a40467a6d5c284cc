"""A program that fails if a database connection crosses a fork. tests/train/test_processes.py runs it as a separate process.

apsw 3.54 removed its `fork_checker`. Here every file is opened through a VFS that knows which process opened it,
and every connection reports its statements and its closing: every use by a child of what its parent opened is recorded.

    python fork_proof.py FOLDER
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import worlds
from torch.utils.data import DataLoader

REPORT = tempfile.mkstemp()[1]
_report = os.open(REPORT, os.O_WRONLY | os.O_APPEND)
BASE = "unix"


def note(what: str, owner: int) -> None:
    if os.getpid() != owner:
        os.write(_report, f"{what} in a child\n".encode())


class WatchedFile(apsw.VFSFile):
    def __init__(self, name: Any, flags: Any) -> None:
        self.owner = os.getpid()
        super().__init__(BASE, name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:
        note("a read", self.owner)
        return super().xRead(amount, offset)

    def xLock(self, level: int) -> None:
        note("a lock", self.owner)
        super().xLock(level)

    def xClose(self) -> None:
        note("a close of a file", self.owner)
        super().xClose()


class WatchedFiles(apsw.VFS):
    def __init__(self) -> None:
        super().__init__("watched", BASE, makedefault=True)

    def xOpen(self, name: Any, flags: Any) -> WatchedFile:
        return WatchedFile(name, flags)


def watch(connection: apsw.Connection) -> None:
    owner = os.getpid()
    connection.trace_v2(
        apsw.SQLITE_TRACE_STMT | apsw.SQLITE_TRACE_CLOSE, lambda event: note(f"event {event['code']}", owner)
    )


def in_child(function: Callable[[], object]) -> None:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            function()
            gc.collect()
        except BaseException as error:
            os.write(_report, f"{type(error).__name__}: {error}\n".encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def control(folder: Path) -> None:
    """The program detects a child that reads or closes a file that its parent opened."""
    connection = apsw.Connection(str(folder / "windows.db"))
    connection.execute("PRAGMA cache_size = 0")
    in_child(lambda: connection.execute("SELECT count(*) FROM window_mappings").get)
    in_child(connection.close)
    connection.close()
    seen = set(Path(REPORT).read_text().splitlines())
    assert seen >= {"event 1 in a child", "event 8 in a child", "a read in a child", "a close of a file in a child"}, (
        seen
    )
    os.truncate(REPORT, 0)


def main(folder: Path) -> None:
    held = {"dataset": worlds.dataset(folder), "other": worlds.dataset(folder, read_with="substr")}
    wanted = [worlds.expected(folder, i) for i in range(len(held["dataset"]))]

    def right(which: str = "dataset") -> None:
        assert [worlds.as_lists(held[which][i]) for i in range(len(wanted))] == wanted

    def join() -> None:
        for connection in held["dataset"].db_connections.values():
            assert connection.execute("SELECT count(*) FROM sequences, windows.window_mappings").get

    def grandchild() -> None:
        right()
        in_child(right)
        right()

    def close_all() -> None:
        for each in held.values():
            each.close()

    right()
    join()
    for function in (
        right,
        join,
        grandchild,
        lambda: right("other"),
        close_all,
        held.clear,
        lambda: (right(), held.clear()),
    ):
        in_child(function)
        right()

    read, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (right(), read.set(), go_on.wait(), right()))
    thread.start()
    read.wait()
    in_child(lambda: None)  # the child drops the other thread and everything that only this thread referred to
    in_child(right)
    go_on.set()
    thread.join()

    for _ in range(2):
        dataset = held["dataset"]
        loader = DataLoader(
            dataset, batch_size=2, num_workers=2, multiprocessing_context="fork", collate_fn=dataset.collate_fn
        )
        tokens = [row for batch in loader for row in batch["tokens"].tolist()]
        assert tokens == [item["tokens"] for item in wanted]
        del dataset, loader
        right()
    close_all()


if __name__ == "__main__":
    files = WatchedFiles()
    apsw.connection_hooks.append(watch)
    control(Path(sys.argv[1]))
    main(Path(sys.argv[1]))
    gc.collect()
    apsw.connection_hooks.clear()
    files.unregister()
    print(Path(REPORT).read_text(), end="")
    os.unlink(REPORT)
