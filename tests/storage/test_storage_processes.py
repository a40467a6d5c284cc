"""The processes that read from the storage: Ctrl-C, limits of the system, and paths in `sys.path`."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sharded_eden.errors import DatabaseError
from sharded_eden.storage import fetcher
from sharded_eden.storage.child import versions_in_child
from sharded_eden.storage.fetcher import Fetcher
from sharded_eden.storage.objects import Range, StorageError, Version

pytest.importorskip("obstore")

NAME, BODY = "S1/x", b"0123456789"


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "S1").mkdir()
    (tmp_path / NAME).write_bytes(BODY)
    return f"file://{tmp_path}"


def version(url: str) -> Version:
    return versions_in_child(url, [NAME], 10.0)[NAME]


def read(one: Fetcher, wanted: Version, number: int = 0) -> bytes:
    one.request([(number, Range(NAME, 0, 10, wanted))])
    answer = one.next_answer()
    if answer.error is not None:
        raise answer.error
    assert answer.body is not None
    return bytes(answer.body)


@pytest.mark.parametrize("is_running", [False, True], ids=["while it starts", "while it runs"])
def test_ctrl_c_does_not_end_the_process_that_fetches(url, is_running):
    wanted, one = version(url), Fetcher(url, in_flight=2, seconds=20.0)
    try:
        if is_running:
            assert read(one, wanted) == BODY
        else:
            one.request([])
        assert one._process is not None
        one._process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert read(one, wanted) == BODY
    finally:
        one.close()


def test_this_process_still_gets_ctrl_c(url):
    one = Fetcher(url, in_flight=2, seconds=20.0)
    one.request([])
    one.close()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_path_object_in_sys_path(url, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, Path("/nothing")])
    one = Fetcher(url, in_flight=2, seconds=20.0)
    try:
        assert read(one, version(url)) == BODY
    finally:
        one.close()


def test_a_process_that_cannot_be_started_is_an_error(url, monkeypatch):
    def refused(*_: Any, **__: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refused)
    for call in (
        lambda: Fetcher(url, in_flight=2, seconds=20.0).request([]),
        lambda: versions_in_child(url, [NAME], 10.0),
    ):
        with pytest.raises(
            DatabaseError, match=r"file://.*: the process that reads it cannot be started \(Resource temp.*ulimit -u"
        ):
            call()


class Pool(ThreadPoolExecutor):
    """A pool in a process that may have few threads."""

    most = 0

    def submit(self, *arguments: Any, **options: Any) -> Any:
        before = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            if len(self._threads) >= self.most:
                raise RuntimeError("can't start new thread")
            before(thread)

        threading.Thread.start = start  # type: ignore[method-assign]
        try:
            return super().submit(*arguments, **options)
        finally:
            threading.Thread.start = before  # type: ignore[method-assign]


SERVE = """
import json, sys
import test_storage_processes
from sharded_eden.storage import fetcher
test_storage_processes.Pool.most = {most}
fetcher.ThreadPoolExecutor = test_storage_processes.Pool
fetcher.serve(*json.loads(sys.argv[2]))
"""


@pytest.mark.parametrize("most", [0, 1])
def test_a_limit_on_threads(url, monkeypatch, most):
    """With one thread, requests take longer; without any, the error names what to change."""
    wanted = version(url)
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    monkeypatch.setattr(
        fetcher, "_CODE", f"import sys, json; sys.path[:] = json.loads(sys.argv[1]){SERVE.format(most=most)}"
    )
    one = Fetcher(url, in_flight=4, seconds=20.0)
    try:
        one.request([(k, Range(NAME, 0, 10, wanted)) for k in range(8)])
        answers = [one.next_answer() for _ in range(8)]
    finally:
        one.close()
    if most:
        assert {answer.number: bytes(answer.body or b"") for answer in answers} == dict.fromkeys(range(8), BODY)
    else:
        assert [answer.number for answer in answers] == list(range(8))
        for answer in answers:
            assert type(answer.error) is StorageError
            assert "requests_in_flight=4" in str(answer.error)
            assert "ulimit -u" in str(answer.error)
