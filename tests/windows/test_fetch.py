"""Sequence databases are copied from a real S3 server: only those with windows, whole, and again after an error."""

from __future__ import annotations

import os
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import worlds
from object_storage import Answer, Proxy, environment, put, upload

from sharded_eden import cli
from sharded_eden.errors import DatabaseError, MissingDatabase, UsageError
from sharded_eden.format.index import IndexFile, index_path, write_index
from sharded_eden.storage import copies
from sharded_eden.storage.bandwidth import Bandwidth
from sharded_eden.storage.objects import UNKNOWN_TIME, Objects
from sharded_eden.windows.fetch import fetch_sequence_databases
from sharded_eden.windows.index import index_window_database

pytest.importorskip("obstore")
pytest.importorskip("moto")

SAMPLES = ["S0", "S1", "S2.X"]


@pytest.fixture
def folder(tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Path:
    proxy.fault = None
    for name, value in environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(copies, "PART_BYTES", 5000)  # several parts for each of these small files
    worlds.write(tmp_path)
    index_window_database(tmp_path / "seqs", tmp_path / "windows.db")
    return tmp_path


@pytest.fixture
def url(folder: Path, proxy: Proxy) -> str:
    return upload(proxy.endpoint, folder / "seqs", "fetched")


def same(folder: Path, samples: list[str] = SAMPLES) -> bool:
    found = sorted(path.name for path in (folder / "copy").iterdir())
    return found == samples and all(
        worlds.sample_db(folder, sample).read_bytes()
        == (folder / f"copy/{sample}/glm_dataset_{sample}.sqlite").read_bytes()
        for sample in samples
    )


def test_a_limit_is_kept_and_the_copies_are_whole(folder, url, proxy):
    total = sum(worlds.sample_db(folder, sample).stat().st_size for sample in SAMPLES)
    began = time.monotonic()
    done = fetch_sequence_databases(url, folder / "copy", max_bandwidth=total / 1e6)
    assert time.monotonic() - began >= 1.0
    assert (done.copied_files, done.copied_bytes) == (3, total)
    assert same(folder)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="max_bandwidth must be at least"):
            fetch_sequence_databases(url, folder / "copy", max_bandwidth=wrong)


def test_an_error_ends_copies_that_wait_for_the_limit(folder, url, proxy, monkeypatch):
    """One part is read at once and refused; the others would wait for hours."""
    asked = []

    def due(self, size_bytes):
        asked.append(size_bytes)
        return 0.0 if len(asked) == 1 else 10_000.0

    monkeypatch.setattr(Bandwidth, "due", due)
    proxy.fault = lambda number, path, headers, forward: Answer(403, {}, b"<Code>AccessDenied</Code>")
    with pytest.raises(DatabaseError, match="access is denied"):
        fetch_sequence_databases(url, folder / "copy", max_bandwidth=1.0)
    assert len(asked) > 1
    assert not list((folder / "copy").glob("*/*.sqlite"))


def test_all_are_copied_once(folder, url, proxy, capsys):
    assert cli.main(["fetch", url, str(folder / "copy")]) == 0
    assert "copied 3 of 3 sequence databases" in capsys.readouterr().out
    assert same(folder)
    proxy.requests.clear()
    again = fetch_sequence_databases(url, folder / "copy", window_dbs=[folder / "windows.db"])
    assert (again.files, again.copied_files, again.copied_bytes) == (3, 0, 0)
    assert proxy.requests == []


def replace(folder: Path, proxy: Proxy) -> None:
    """Upload other bytes of the same size, as SQLite often writes: it changes whole pages."""
    path = worlds.sample_db(folder, "S1")
    body = path.read_bytes()
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    time.sleep(1.1)  # the server has seconds
    put(proxy.endpoint, "fetched/S1/glm_dataset_S1.sqlite", path.read_bytes())


def test_an_object_replaced_by_one_of_the_same_size_is_copied_again(folder, url, proxy):
    assert fetch_sequence_databases(url, folder / "copy").copied_files == 3
    assert fetch_sequence_databases(url, folder / "copy").copied_files == 0
    replace(folder, proxy)
    assert fetch_sequence_databases(url, folder / "copy").copied_files == 1
    assert same(folder)


def test_a_file_of_another_time_is_kept_where_its_digest_is_known(folder, url):
    fetch_sequence_databases(url, folder / "copy")
    for path in (folder / "copy").glob("*/*.sqlite"):
        os.utime(path, (1, 1))
    assert fetch_sequence_databases(url, folder / "copy", window_dbs=[folder / "windows.db"]).copied_files == 0
    assert fetch_sequence_databases(url, folder / "copy").copied_files == 3


@pytest.mark.parametrize("modified", ["2026-01-02T03:04:05.678901+00:00", "1969-12-31T23:59:58.5+00:00"])
def test_a_copy_has_the_modification_time_of_its_object(folder, modified):
    source = worlds.sample_db(folder, "S1")
    time_ns = int(datetime.fromisoformat(modified).timestamp() * 1e6) * 1000
    os.utime(source, ns=(time_ns, time_ns))
    url = f"file://{folder}/seqs"
    assert fetch_sequence_databases(url, folder / "copy").copied_files == 3
    copy = folder / "copy/S1/glm_dataset_S1.sqlite"
    assert copy.stat().st_mtime_ns == time_ns
    os.utime(copy, ns=(time_ns // 10**9 * 10**9,) * 2)  # a file system that has seconds
    assert fetch_sequence_databases(url, folder / "copy").copied_files == 0


def test_a_server_without_modification_times(folder, url, monkeypatch):
    monkeypatch.setattr(Objects, "listed", without_times(Objects.listed))
    fetch_sequence_databases(url, folder / "copy")
    now = time.time()
    assert all(now - path.stat().st_mtime < 600 for path in (folder / "copy").glob("*/*.sqlite"))
    assert fetch_sequence_databases(url, folder / "copy").copied_files == 0


def without_times(listed: Any) -> Any:
    unknown = f"{UNKNOWN_TIME}T00:00:00+00:00"
    return lambda self: {name: version._replace(modified=unknown) for name, version in listed(self).items()}


def test_only_samples_with_windows_are_copied(folder, url):
    put_more = shutil.copytree(folder / "seqs/S0", folder / "seqs/S9")
    (put_more / "glm_dataset_S0.sqlite").rename(put_more / "glm_dataset_S9.sqlite")
    index_window_database(folder / "seqs", folder / "windows.db")
    result = fetch_sequence_databases(url, folder / "copy", window_dbs=[folder / "windows.db"])
    assert result.copied_files == 3
    assert same(folder)


def test_an_error_leaves_no_file_under_its_name_and_the_next_run_goes_on(folder, url, proxy):
    refused = "S1/glm_dataset_S1.sqlite"

    def fault(number, path, headers, forward):
        return Answer(403, {}, b"<Code>AccessDenied</Code>") if refused in path else forward(headers)

    proxy.fault = fault
    with pytest.raises(DatabaseError, match=f"{refused}: bytes .*: access is denied"):
        fetch_sequence_databases(url, folder / "copy")
    assert not (folder / "copy" / refused).exists()
    proxy.fault = None
    assert 1 <= fetch_sequence_databases(url, folder / "copy").copied_files <= 3
    assert same(folder)


def with_digest(folder: Path, digest: bytes) -> None:
    import numpy as np

    file = IndexFile(index_path(folder / "windows.db"))
    samples = file.samples.copy()
    samples["digest"] = np.frombuffer(digest, "V16")[0]
    write_index(index_path(folder / "windows.db"), file.meta, samples, [file.runs])


def test_other_bytes_of_the_same_size_are_refused_by_their_digest(folder, url):
    with_digest(folder, b"0123456789abcdef")
    with pytest.raises(DatabaseError, match="its bytes are not those of the file that was indexed"):
        fetch_sequence_databases(url, folder / "copy", window_dbs=[folder / "windows.db"])
    assert not list((folder / "copy").glob("*/*"))


def test_another_size_than_the_index_has_is_refused(folder, url, proxy):
    put(proxy.endpoint, "fetched/S1/glm_dataset_S1.sqlite", b"x" * 100)
    with pytest.raises(DatabaseError, match=r"it has 100 bytes; the file that .* was made of had"):
        fetch_sequence_databases(url, folder / "copy", window_dbs=[folder / "windows.db"])


def test_what_cannot_be_copied_is_an_error(folder, url):
    with pytest.raises(MissingDatabase, match=r"holds no <sample>/glm_dataset_<sample>\.sqlite"):
        fetch_sequence_databases("s3://bucket/nothing", folder / "copy")
    with pytest.raises(
        UsageError, match=r"http servers have no listing.*sharded-eden fetch http://host/x .* --windows"
    ):
        fetch_sequence_databases("http://host/x", folder / "copy")
    index_path(folder / "windows.db").unlink()
    with pytest.raises(MissingDatabase, match="no such index: it names the samples"):
        fetch_sequence_databases(url, folder / "copy", window_dbs=[folder / "windows.db"])
