"""Sequence databases are copied while a job reads: the rows stay those of local files, whatever is killed, full or replaced."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import worlds
from copy_jobs import (
    ENOUGH,
    assert_whole,
    complete,
    copiers,
    indexed,
    is_running,
    local,
    originals,
    partials,
    read_until_copied,
    reader_of,
    remote,
    rows,
    until,
)
from object_storage import Answer, Proxy, delete, environment, put, upload
from torch.utils.data import DataLoader

from sharded_eden import ShardedEdenDataModule, ShardedEdenDataset, Stream, StreamBatchSampler
from sharded_eden.errors import DatabaseError, EdenWarning, MissingDatabase, UsageError
from sharded_eden.format.index import IndexFile, index_path, write_index
from sharded_eden.load.read import copied
from sharded_eden.storage import copier
from sharded_eden.storage.copy_folder import partial_path
from sharded_eden.storage.objects import Objects
from sharded_eden.windows.remote_index import add_remote

pytest.importorskip("obstore")

ORPHANS = """
import sys, time
from torch.utils.data import DataLoader
from sharded_eden import ShardedEdenDataset, Stream
folder, workers = sys.argv[1], int(sys.argv[2])
options = {"cache_dir": f"{folder}/cache", "cache_bytes": 10**9}
dataset = ShardedEdenDataset.open(sys.argv[3], f"{folder}/windows.db", **options)
batches = iter(DataLoader(Stream(dataset, num_samples=10**6), batch_size=1, num_workers=workers))
next(batches)
print("read", flush=True)
time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(copied, "LOOK_SHARE", 0.9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return indexed(worlds.write(tmp_path))


def stream_of(dataset: ShardedEdenDataset, workers: int, consumed: int = 0, **options: Any) -> list[list[int]]:
    stream = Stream(dataset, num_samples=2 * len(dataset))
    sampler = StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=2, consumed_samples=consumed)
    batches = DataLoader(
        stream, batch_sampler=sampler, num_workers=workers, collate_fn=stream.collate_fn, **options
    )  # fmt: skip
    return [row for batch in batches for row in batch[next(iter(batch))].reshape(2, -1).tolist()]


@pytest.mark.parametrize("options", [{}, {"rc_aug": True, "compact": True}, {"use_control_tags": True}], ids=str)
def test_rows_are_those_of_local_files_before_during_and_after(folder, options):
    with local(folder, **options) as one, remote(folder, **options) as other:
        expected = stream_of(one, 0)
        assert stream_of(other, 0) == expected
        read_until_copied(other)
        assert_whole(folder)
        (folder / "seqs").rename(folder / "away")  # whatever is read now is read from the copies
        assert stream_of(other, 0) == expected
    with remote(folder, **options) as again:
        assert stream_of(again, 0) == expected
        assert stream_of(again, 1, consumed=4, multiprocessing_context="fork") == expected[4:]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_copy_and_read_copies(folder, method):
    with local(folder, rc_aug=True) as one, remote(folder, rc_aug=True) as other:
        expected = stream_of(one, 0)
        until(lambda: stream_of(other, 2, multiprocessing_context=method) == expected and len(complete(folder)) == 3)
        (folder / "seqs").rename(folder / "away")
        assert stream_of(other, 2, multiprocessing_context=method) == expected


def test_the_data_module_copies(folder):
    options = {"seq_length": worlds.T, "stride": worlds.STRIDE, "num_workers": 0, "global_batch_size": 1}
    url = f"file://{folder}/seqs"
    cache = {"cache_dir": folder / "cache", "cache_bytes": ENOUGH}
    module = ShardedEdenDataModule(url, folder / "windows.db", **cache, **options)
    module.setup("fit")
    until(lambda: len(list(module.train_dataloader())) and len(complete(folder)) == 3)


def test_most_windows_per_byte_come_first_then_names(tmp_path):
    lengths = {"B": [1000], "A": [1000], "C": [500] * 2, "D": [64] * 200}
    contigs = {
        f"A__ECT-{sample}__CT1-{k}": worlds.random_sequence(length, k)
        for sample, each in lengths.items()
        for k, length in enumerate(each)
    }
    folder = indexed(worlds.write(tmp_path, contigs))
    found = [
        each.name.split("/")[0] for each in copier.in_order(IndexFile(index_path(folder / "windows.db")), "s3://b/s")
    ]
    sizes = {name: worlds.sample_db(folder, name).stat().st_size for name in lengths}
    assert sizes["A"] == sizes["B"] == sizes["C"] < sizes["D"]
    assert found == ["D", "A", "B", "C"]


def test_only_what_fits_is_copied(folder):
    limit = sum(sorted(path.stat().st_size for path in (folder / "seqs").glob("*/*.sqlite"))[:2])
    with local(folder) as one, remote(folder, cache_bytes=limit) as other:
        until(lambda: len(complete(folder)) == 2, other)
        until(lambda: not copiers(), other)
        assert torch.equal(rows(other), rows(one))
        assert len(complete(folder)) == 2
        assert not partials(folder)


def test_a_limit_below_one_sample_is_a_warning(folder):
    with pytest.warns(EdenWarning, match=r"cache_bytes=100 is less than the smallest sequence database, file://.* has"):
        dataset = remote(folder, cache_bytes=100)
    with local(folder) as one, dataset:
        for _ in range(5):
            assert torch.equal(rows(dataset), rows(one))
            time.sleep(0.03)
        assert not complete(folder)
        assert not copiers()


def test_what_cannot_be_limited_is_refused(folder):
    with pytest.raises(
        UsageError, match=r"cache_bytes=5 limits copies .* in object storage, but sequence_db_dir is the"
    ):
        local(folder, cache_bytes=5)
    for value, error in ((0, "at least 1, not 0"), ("1GB", "must be an integer"), (1e9, "must be an integer")):
        with pytest.raises(UsageError, match=error):
            remote(folder, cache_bytes=value)


def test_a_folder_that_cannot_be_written_is_a_warning(folder):
    (folder / "cache").write_text("a file")
    with pytest.warns(
        EdenWarning, match=r"cache.*: sequence databases are not copied, windows are read by ranges: Not a"
    ):
        dataset = remote(folder)
    with local(folder) as one, dataset:
        assert torch.equal(rows(dataset), rows(one))


@pytest.fixture
def bucket(folder: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    proxy.fault, proxy.delay_seconds = None, 0.0
    for name, value in environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    url = upload(proxy.endpoint, folder / "seqs", "seqdb")
    add_remote(folder / "windows.db", url)
    yield url
    proxy.fault = None


def at_bucket(folder: Path, url: str, **options: Any) -> ShardedEdenDataset:
    options = {"cache_dir": folder / "cache", "request_seconds": 10.0, "cache_bytes": ENOUGH, **options}
    return ShardedEdenDataset.open(url, folder / "windows.db", **options)


def is_copy(path: str, headers: dict[str, str], folder: Path) -> bool:
    """Whether a request is that of a whole database."""
    size = (folder / "seqs" / path.split("?", maxsplit=1)[0].partition("/seqdb/")[2]).stat().st_size
    return {name.lower(): value for name, value in headers.items()}["range"] == f"bytes=0-{size - 1}"


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_copier_ends_with_a_killed_job(folder, bucket, proxy, workers):
    def fault(number, path, headers, forward):
        answer = forward(headers)
        if is_copy(path, headers, folder):
            answer.hang_seconds = 8.0
        return answer

    proxy.fault = fault
    command = [sys.executable, "-c", ORPHANS, str(folder), str(workers), bucket]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "read\n"
        try:
            until(lambda: copiers(psutil.Process(parent.pid)))
            below = [each.pid for each in psutil.Process(parent.pid).children(recursive=True)]
        finally:
            parent.kill()
        parent.wait()
        until(lambda: not any(map(is_running, below)))
    proxy.fault = None
    with at_bucket(folder, bucket) as dataset:  # nothing holds the lock
        read_until_copied(dataset)
    assert_whole(folder)


def test_the_copier_ends_when_the_dataset_is_closed(folder, bucket, proxy):
    proxy.delay_seconds = 0.3
    with at_bucket(folder, bucket) as dataset:
        until(copiers, dataset)
    assert not copiers()


def test_an_object_that_is_replaced_while_it_is_copied(folder, bucket, proxy, monkeypatch):
    monkeypatch.setattr(copier, "FIRST_PAUSE_SECONDS", 0.1)
    replaced = []

    def fault(number, path, headers, forward):
        if is_copy(path, headers, folder) and not replaced:
            key = path.split("?")[0].removeprefix("/bucket/")
            original = (folder / "seqs" / key.partition("/")[2]).read_bytes()
            replaced.append((key, original))
            put(proxy.endpoint, key, original[:-1] + b"\7")
        return forward(headers)

    proxy.fault = fault
    wrong = []

    def read(dataset: ShardedEdenDataset) -> None:
        for k, row in enumerate(expected):
            try:
                assert torch.equal(dataset[k]["tokens"], row)
            except DatabaseError as error:
                wrong.append(str(error))

    with local(folder) as one, at_bucket(folder, bucket) as dataset:
        expected = rows(one)
        with pytest.warns(EdenWarning, match=r"are not copied .*the object was replaced.*next attempt"):
            until(lambda: read(dataset) or (wrong and reader_of(dataset)._copier._not_before))
    assert wrong
    assert all("the object was replaced" in each for each in wrong)
    assert replaced[0][1] not in [path.read_bytes() for path in complete(folder)]
    assert all(path.read_bytes() in originals(folder) for path in complete(folder))


def test_other_bytes_than_those_that_were_indexed_are_an_error(folder):
    """The object has the size and the ETag of the index, but was uploaded from another file."""
    file = IndexFile(index_path(folder / "windows.db"))
    samples = file.samples.copy()
    samples["digest"] = samples["digest"][::-1].copy()
    index_path(folder / "windows.db").unlink()  # the arrays are mapped
    write_index(index_path(folder / "windows.db"), file.meta, samples, [file.runs])
    match = r"glm_dataset_.*: its bytes are not those of the file that was indexed"
    with remote(folder) as dataset, pytest.raises(DatabaseError, match=match):
        until(lambda: False, dataset)
    assert not partials(folder)


@pytest.mark.parametrize("how", ["removed", "changed", "cut"])
def test_a_copy_that_is_lost_is_read_by_ranges_and_copied_again(folder, how):
    with local(folder) as one, remote(folder) as dataset:
        read_until_copied(dataset)
        for path in complete(folder):
            if how == "removed":
                path.unlink()
            elif how == "cut":
                os.truncate(path, 10)
            else:
                path.write_bytes(b"\0" * path.stat().st_size)
        reader_of(dataset)._files.close()  # as where there are more files than descriptors
        with pytest.warns(EdenWarning, match=r"\.sqlite: this copy was removed or changed, as were 2 others"):
            assert torch.equal(rows(dataset), rows(one))
        read_until_copied(dataset)
        assert torch.equal(rows(dataset), rows(one))
    assert_whole(folder)


def test_a_copy_that_was_written_to_between_jobs_is_not_used(folder):
    with remote(folder) as dataset:
        read_until_copied(dataset)
    for path in complete(folder):
        path.write_bytes(b"\0" * path.stat().st_size)
    with local(folder) as one, remote(folder) as dataset:
        assert torch.equal(rows(dataset), rows(one))
        read_until_copied(dataset)
        assert torch.equal(rows(dataset), rows(one))
    assert_whole(folder)


def test_a_missing_object_is_named_and_the_beginning_of_its_copy_is_kept(folder, bucket, proxy, tmp_path):
    wanted = copier.in_order(IndexFile(index_path(folder / "windows.db")), bucket)
    key = f"seqdb/{wanted[0].name}"
    delete(proxy.endpoint, key)
    (tmp_path / "cache").mkdir()
    partial = partial_path(tmp_path / "cache", wanted[0].key)
    partial.write_bytes(b"beginning")
    with pytest.raises(MissingDatabase, match=rf"{key}: bytes .*: no such object"):
        copier._copy_all(Objects(bucket, 5.0), tmp_path / "cache", wanted, ENOUGH)
    assert partial.read_bytes() == b"beginning"


def test_a_fault_of_the_storage_stops_only_the_copies(folder, bucket, proxy, monkeypatch):
    def fault(number, path, headers, forward):
        return Answer(403, {}, b"<Code>SlowDown</Code>") if is_copy(path, headers, folder) else forward(headers)

    proxy.fault = fault
    with local(folder) as one, at_bucket(folder, bucket) as dataset:
        with pytest.warns(EdenWarning, match="are not copied to .*: access is denied"):
            until(lambda: reader_of(dataset)._copier._not_before, dataset)
        assert torch.equal(rows(dataset), rows(one))
        assert not complete(folder)
