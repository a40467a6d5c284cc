"""`index s3://...`: the index made from objects equals that of the local files, and nothing else is left on the disk."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import worlds
from object_storage import Answer, Proxy, delete, environment, put, upload

from sharded_eden import ShardedEdenDataset, cli
from sharded_eden.errors import DatabaseError, MissingDatabase, UsageError
from sharded_eden.format.index import IndexFile, index_path
from sharded_eden.storage import copies
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.remote_index import add_remote

pytest.importorskip("obstore")
pytest.importorskip("moto")


@pytest.fixture
def folder(tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Path:
    proxy.fault = None
    for name, value in environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(copies, "PART_BYTES", 5000)
    worlds.write(tmp_path)
    return tmp_path


@pytest.fixture
def url(folder: Path, proxy: Proxy) -> str:
    return upload(proxy.endpoint, folder / "seqs", folder.name)


def index_of(folder: Path) -> IndexFile:
    return IndexFile(index_path(folder / "windows.db"))


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_index_is_that_of_local_files(folder, url, jobs):
    index_window_database(folder / "seqs", folder / "windows.db")
    add_remote(folder / "windows.db", url)
    local = index_of(folder)
    before = set(os.listdir(folder))
    result = index_window_database(url + "/", folder / "windows.db", jobs=jobs)
    found = index_of(folder)
    assert result.windows == result.addressed_windows > 0
    assert result.bytes_read == found.samples["size_bytes"].sum() > 0
    assert np.array_equal(found.runs, local.runs)
    for name in ("page_bytes", "size_bytes", "digest"):
        assert np.array_equal(found.samples[name], local.samples[name])
    assert found.meta == {name: value for name, value in local.meta.items() if name != "folder"}
    assert set(os.listdir(folder)) == before


def test_training_from_the_url_gives_the_rows_of_local_files(folder, url, capsys):
    assert cli.main(["index", url, str(folder / "windows.db"), "--jobs", "2"]) == 0
    assert "have an address" in capsys.readouterr().out
    with ShardedEdenDataset.open(url, folder / "windows.db") as remote:
        remote_rows = remote.__getitems__(range(len(remote)))
    index_window_database(folder / "seqs", folder / "windows.db")
    with ShardedEdenDataset.open(folder / "seqs", folder / "windows.db") as local:
        rows = local.__getitems__(range(len(local)))
    assert len(rows) == len(remote_rows) > 10
    for a, b in zip(rows, remote_rows, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_local_files_are_not_read_by_the_index_of_a_url(folder, url):
    """Their identities are not known: SQLite reads them, as without an index."""
    index_window_database(url, folder / "windows.db")
    with ShardedEdenDataset.open(folder / "seqs", folder / "windows.db") as local:
        rows = local.__getitems__(range(len(local)))
    index_path(folder / "windows.db").unlink()
    with ShardedEdenDataset.open(folder / "seqs", folder / "windows.db") as local:
        assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(rows, local, strict=False))


def test_an_object_that_is_replaced_while_it_is_copied_is_an_error(folder, url, proxy):
    name = "S1/glm_dataset_S1.sqlite"
    body = (folder / "seqs" / name).read_bytes()
    seen = []

    def fault(number, path, headers, forward):
        if name in path:
            seen.append(path)
            if len(seen) == 2:
                put(proxy.endpoint, f"{folder.name}/{name}", body[:-1] + bytes([body[-1] ^ 1]))
        return forward(headers)

    proxy.fault = fault
    before = set(os.listdir(folder))
    with pytest.raises(DatabaseError, match=rf"{name}: bytes .*: the object was replaced"):
        index_window_database(url, folder / "windows.db")
    assert set(os.listdir(folder)) == before


def test_an_object_that_disappears_while_it_is_copied_is_named(folder, url, proxy):
    key = f"{folder.name}/S1/glm_dataset_S1.sqlite"

    def fault(number, path, headers, forward):
        if key in path:
            delete(proxy.endpoint, key)
        return forward(headers)

    proxy.fault = fault
    with pytest.raises(MissingDatabase, match=rf"{key}: bytes .*: no such object"):
        index_window_database(url, folder / "windows.db")


def test_an_error_ends_the_other_copies_after_the_part_that_they_read(folder, url, proxy, monkeypatch):
    monkeypatch.setattr(copies, "PART_BYTES", 100)
    monkeypatch.setattr(copies, "PARTS_AT_ONCE", 1)

    def fault(number, path, headers, forward):
        if "/S1/" in path:
            return Answer(403, {}, b"<Code>AccessDenied</Code>")
        time.sleep(0.05)
        return forward(headers)

    proxy.fault = fault
    proxy.requests.clear()
    with pytest.raises(DatabaseError, match="access is denied"):
        index_window_database(url, folder / "windows.db", jobs=3)
    whole = sum(worlds.sample_db(folder, name).stat().st_size for name in ("S0", "S2.X"))
    assert len(proxy.requests) < whole / 100 / 2


@pytest.mark.parametrize("name", ["windows.db", "windows[1].db"])
def test_a_killed_command_leaves_nothing_that_stops_the_next_one(folder, url, name):
    (folder / "windows.db").rename(folder / name)
    for number in (0, 3):  # of a command with more jobs
        (folder / f".{name}.index.partial.{number}").write_bytes(b"left")
    other = folder / f".{name}.index.partial.of-something-else"
    other.write_bytes(b"kept")
    index_window_database(url, folder / name)
    assert list(folder.glob(".windows*")) == [other]


def test_what_cannot_be_indexed_is_an_error(folder, url, proxy):
    windows = folder / "windows.db"
    with pytest.raises(MissingDatabase, match=r"holds no <sample>/glm_dataset_<sample>\.sqlite"):
        index_window_database("s3://bucket/nothing", windows)
    with pytest.raises(UsageError, match=r"no listing\. Index the local files.*sharded-eden index --at http://host/x"):
        index_window_database("http://host/x", windows)
    with pytest.raises(UsageError, match="Leave it out for a URL"):
        index_window_database(url, windows, engine="ray")
    put(proxy.endpoint, f"{folder.name}/S0/glm_dataset_S0.sqlite-wal", b"frames")
    with pytest.raises(DatabaseError, match=r"S0/glm_dataset_S0\.sqlite: .*-wal is beside it"):
        index_window_database(url, windows)


def test_a_damaged_object_is_named_by_its_url(folder, url, proxy):
    put(proxy.endpoint, f"{folder.name}/S0/glm_dataset_S0.sqlite", b"no database" * 1000)
    with pytest.raises(DatabaseError, match=rf"{url}/S0/glm_dataset_S0\.sqlite: ") as caught:
        index_window_database(url, folder / "windows.db")
    assert str(folder / ".windows") not in str(caught.value)


def test_at_refuses_files_that_changed_after_they_were_indexed(folder, url):
    windows, database = folder / "windows.db", folder / "seqs/S1/glm_dataset_S1.sqlite"
    index_window_database(folder / "seqs", windows)
    copy = shutil.copyfile(database, folder / "copy")
    os.replace(copy, database)  # another inode and time, the same bytes
    assert add_remote(windows, url).objects == 3
    body = bytearray(database.read_bytes())
    body[-1] ^= 1
    database.write_bytes(body)
    with pytest.raises(
        DatabaseError, match=r"glm_dataset_S1\.sqlite: was changed after it was indexed.*sharded-eden index"
    ):
        add_remote(windows, url)
    shutil.move(folder / "seqs", folder / "elsewhere")
    assert add_remote(windows, url).objects == 3
    os.utime(windows, ns=(1, 1))
    with pytest.raises(DatabaseError, match=r"windows\.db: was changed after it was indexed"):
        add_remote(windows, url)
    windows.unlink()
    with pytest.raises(MissingDatabase, match=r"windows\.db: no such window database"):
        add_remote(windows, url)


def test_at_refuses_an_object_of_another_size(folder, url, proxy):
    index_window_database(folder / "seqs", folder / "windows.db")

    def fault(number, path, headers, forward):
        raise AssertionError("no object is read")

    proxy.fault = fault
    put(proxy.endpoint, f"{folder.name}/S1/glm_dataset_S1.sqlite", b"x")
    with pytest.raises(DatabaseError, match="it has 1 bytes; the file that was indexed had"):
        add_remote(folder / "windows.db", url)
