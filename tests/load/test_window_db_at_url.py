"""Window databases at a URL: one copy for all processes of a node, of the version that is there now, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from object_storage import Answer, Proxy, environment, put, upload

from sharded_eden import ShardedEdenDataModule, ShardedEdenDataset
from sharded_eden.errors import DatabaseError, MissingDatabase, UsageError, WriteError
from sharded_eden.format.index import index_path
from sharded_eden.windows.index import index_window_database

pytest.importorskip("obstore")
pytest.importorskip("moto")

NAME = "windows.db"


@pytest.fixture
def folder(tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Path:
    proxy.fault, proxy.delay_seconds = None, 0.0
    for name, value in environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    worlds.write(tmp_path)
    upload(proxy.endpoint, tmp_path / "seqs", tmp_path.name)
    index_window_database(f"s3://bucket/{tmp_path.name}", tmp_path / NAME)
    upload_windows(proxy, tmp_path)
    proxy.requests.clear()
    return tmp_path


def upload_windows(proxy: Proxy, folder: Path, *, index: bool = True) -> None:
    put(proxy.endpoint, f"{folder.name}/{NAME}", (folder / NAME).read_bytes())
    if index:
        put(proxy.endpoint, f"{folder.name}/{NAME}.index", index_path(folder / NAME).read_bytes())


def at_url(folder: Path, **options: Any) -> ShardedEdenDataset:
    url = f"s3://bucket/{folder.name}"
    return ShardedEdenDataset.open(url, f"{url}/{NAME}", request_seconds=20.0, **options)


def rows(dataset: ShardedEdenDataset) -> torch.Tensor:
    with dataset:
        return torch.stack([row["tokens"] for row in dataset.__getitems__(range(len(dataset)))])


def local_rows(folder: Path) -> torch.Tensor:
    return rows(ShardedEdenDataset.open(folder / "seqs", folder / NAME))


def copies(cache: Path) -> list[str]:
    """The files of a cache folder, without those that are locked."""
    return [path.name for path in cache.rglob("*") if path.is_file() and not path.name.endswith((".lock", ".use"))]


def window_requests(proxy: Proxy) -> list[str]:
    return [path for path, _ in proxy.requests if f"/{NAME}" in path]


def test_it_is_copied_once_and_gives_the_rows_of_local_files(folder, proxy):
    assert torch.equal(rows(at_url(folder)), local_rows(folder))
    assert len(window_requests(proxy)) == 2
    dataset = at_url(folder)
    assert torch.equal(rows(dataset), local_rows(folder))
    assert len(window_requests(proxy)) == 2
    assert Path(dataset.window_db_path).is_relative_to(folder / "xdg/sharded-eden")
    assert sorted(copies(folder / "xdg")) == [NAME, f"{NAME}.index"]


def test_sequence_databases_may_be_local(folder, proxy):
    put(proxy.endpoint, f"other/{folder.name}/{NAME}", (folder / NAME).read_bytes())
    url = f"s3://bucket/other/{folder.name}/{NAME}"
    for index in (False, True):
        if index:
            index_window_database(folder / "seqs", folder / NAME)
            put(proxy.endpoint, f"other/{folder.name}/{NAME}.index", index_path(folder / NAME).read_bytes())
        dataset = ShardedEdenDataset.open(folder / "seqs", url, cache_dir=folder / "cache")
        assert (dataset._addresses is not None) == index
        assert torch.equal(rows(dataset), local_rows(folder))


def test_the_data_module_takes_urls(folder):
    url = f"s3://bucket/{folder.name}"
    options = {"seq_length": ShardedEdenDataset.open(folder / "seqs", folder / NAME).seq_length, "num_workers": 1}
    module = ShardedEdenDataModule(url, f"{url}/{NAME}", cache_dir=folder / "cache", global_batch_size=1, **options)
    module.setup("fit")
    local = ShardedEdenDataModule(folder / "seqs", folder / NAME, global_batch_size=1, **options)
    local.setup("fit")
    for a, b in zip(module.train_dataloader(), local.train_dataloader(), strict=True):
        assert torch.equal(a["tokens"], b["tokens"])
    assert list((folder / "cache").glob(f"*/{NAME}"))


CODE = """
import json, sys
from sharded_eden import ShardedEdenDataset
url, name, cache = sys.argv[1:]
with ShardedEdenDataset.open(url, f"{url}/{name}", cache_dir=cache, request_seconds=20.0) as dataset:
    print(json.dumps([dataset.window_db_path, dataset.fingerprint, dataset[3]["tokens"].tolist()]))
"""


def started(folder: Path) -> subprocess.Popen[str]:
    arguments = [f"s3://bucket/{folder.name}", NAME, str(folder / "cache")]
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_of_many_processes_one_copies(folder, proxy):
    proxy.delay_seconds = 0.2
    processes = [started(folder) for _ in range(4)]
    found = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert all(each == found[0] for each in found)
    assert found[0][2] == local_rows(folder)[3].tolist()
    assert len(window_requests(proxy)) == 2


@pytest.mark.parametrize("whole_group", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_after_a_kill_the_next_process_copies_the_whole_file(folder, proxy, whole_group):
    """Either the group is killed, or only the process, whose child then still writes: the next one waits for it."""

    def fault(number, path, headers, forward):
        answer = forward(headers)
        if path.endswith(NAME):
            answer.hang_seconds = 3.0
        return answer

    proxy.fault = fault
    process = started(folder)
    while not window_requests(proxy):
        assert process.poll() is None
        time.sleep(0.05)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    process.communicate()
    proxy.fault = None
    assert not list((folder / "cache").glob(f"*/{NAME}"))
    assert torch.equal(rows(at_url(folder, cache_dir=folder / "cache")), local_rows(folder))
    assert not list((folder / "cache").glob("*/.*"))


def test_a_database_that_is_replaced_at_its_url_is_copied_again(folder, proxy):
    first = at_url(folder)
    old = rows(first)
    replace_at_url(folder, proxy, 7)
    second = at_url(folder)
    assert second.window_db_path != first.window_db_path
    assert Path(second.window_db_path).read_bytes() == (folder / NAME).read_bytes()
    assert torch.equal(rows(second), old)
    assert Path(first.window_db_path).is_file()


def replace_at_url(folder: Path, proxy: Proxy, version: int) -> None:
    """Upload other bytes of the same windows."""
    worlds.execute(folder / NAME, f"PRAGMA user_version = {version}")
    index_window_database(f"s3://bucket/{folder.name}", folder / NAME)
    upload_windows(proxy, folder)


OPEN = """
import sys
from sharded_eden import ShardedEdenDataset
url, name, cache, method = sys.argv[1:]
dataset = ShardedEdenDataset.open(url, f"{url}/{name}", cache_dir=cache, request_seconds=20.0)
print(dataset.window_db_path, flush=True)
sys.stdin.read()
if method:  # a worker opens its connections after the newer version came
    from torch.utils.data import DataLoader
    batches = DataLoader(dataset, batch_size=len(dataset), num_workers=1, multiprocessing_context=method)
    print(next(iter(batches))["tokens"].sum().item())
"""


@pytest.mark.slow
def test_older_versions_are_removed_when_no_process_uses_them(folder, proxy):
    cache = folder / "cache"
    command = [sys.executable, "-c", OPEN, f"s3://bucket/{folder.name}", NAME, str(cache), "fork"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as old:
        first = Path(old.stdout.readline().strip())
        replace_at_url(folder, proxy, 1)
        newer = [
            subprocess.run([*command[:-1], ""], input="", capture_output=True, text=True, check=True) for _ in "ab"
        ]
        assert {each.stdout for each in newer} == {newer[0].stdout}
        second = Path(newer[0].stdout.strip())
        assert first.is_file(), "it is in use"
        assert second.is_file()
        assert first != second
        total, _ = old.communicate("")
        assert int(total) == local_rows(folder).sum().item()
    at_url(folder, cache_dir=cache).close()
    assert not first.parent.exists()
    assert second.is_file()
    assert not [path for path in cache.iterdir() if first.parent.name in path.name]
    replace_at_url(folder, proxy, 2)
    old = subprocess.Popen(command, **pipes)
    third = Path(old.stdout.readline().strip())
    assert second.is_file(), "this process holds it"
    old.kill()
    old.communicate()
    replace_at_url(folder, proxy, 3)
    at_url(folder, cache_dir=cache).close()
    assert not third.parent.exists(), "a killed process uses nothing"


def test_one_replaced_while_it_is_copied_is_an_error_and_leaves_nothing(folder, proxy):
    def fault(number, path, headers, forward):
        if path.endswith(NAME):
            put(proxy.endpoint, f"{folder.name}/{NAME}", (folder / NAME).read_bytes() + b"\0")
        return forward(headers)

    proxy.fault = fault
    with pytest.raises(DatabaseError, match=rf"{NAME}: bytes .*: the object was replaced"):
        at_url(folder)
    assert copies(folder / "xdg") == []


def test_the_index_of_another_window_database_is_refused(folder, proxy, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    worlds.write(other)
    import apsw

    with apsw.Connection(str(other / NAME)) as connection:
        connection.execute(
            "DELETE FROM window_mappings WHERE window_idx = (SELECT max(window_idx) FROM window_mappings)"
        )
        connection.execute("UPDATE metadata SET value = value - 1 WHERE key = 'total_windows'")
    put(proxy.endpoint, f"{folder.name}/{NAME}", (other / NAME).read_bytes())
    with pytest.raises(DatabaseError, match=rf"{NAME}\.index: describes another window database"):
        at_url(folder)
    assert not [path for path in (folder / "xdg").rglob(f"*{NAME}*") if path.is_file()]


def test_a_damaged_copy_is_replaced(folder):
    path = Path(at_url(folder).window_db_path)
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(rows(at_url(folder)), local_rows(folder))
    index_path(path).write_bytes(b"PK")
    assert torch.equal(rows(at_url(folder)), local_rows(folder))


def test_what_cannot_be_opened_is_an_error(folder, proxy):
    url = f"s3://bucket/{folder.name}"
    with pytest.raises(MissingDatabase, match=rf"{url}/nothing\.db: no such object"):
        ShardedEdenDataset.open(url, f"{url}/nothing.db")
    put(proxy.endpoint, f"{folder.name}/alone.db", (folder / NAME).read_bytes())
    with pytest.raises(MissingDatabase, match=rf"{url}/alone\.db\.index: no such object.*Upload it"):
        ShardedEdenDataset.open(url, f"{url}/alone.db")
    with pytest.raises(UsageError, match=r"window_db_path: 's3://bucket' names no object"):
        ShardedEdenDataset.open(url, "s3://bucket")
    with pytest.raises(UsageError, match="must not have a user, a password"):
        ShardedEdenDataset.open(url, "s3://me:secret@bucket/w.db")
    (folder / "file").write_text("")
    with pytest.raises(WriteError, match=r"file.*: cannot be written"):
        at_url(folder, cache_dir=folder / "file")
    proxy.fault = lambda number, path, headers, forward: Answer(403, {}, b"<Code>AccessDenied</Code>")
    with pytest.raises(DatabaseError, match=r"windows\.db.*: access is denied"):
        at_url(folder)
