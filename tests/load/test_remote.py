"""Rows from object storage equal those from local files, over file:// and from an S3 server, in the same order."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from object_storage import CREDENTIALS, Proxy, environment, proxy_to, put, s3_server, upload
from test_one_read import NAMES, OPTIONS, prepared
from torch.utils.data import DataLoader

from sharded_eden import ShardedEdenDataset, Stream, StreamBatchSampler
from sharded_eden.errors import DatabaseError, MissingDatabase, UsageError
from sharded_eden.format.index import IndexFile, index_path
from sharded_eden.load.read.remote import merged
from sharded_eden.windows.remote_index import add_remote

pytest.importorskip("obstore")
pytest.importorskip("moto")

SIZE, STRIDE = 1024, 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepared(tmp_path_factory.mktemp("remote"), ["phage_lambda_NC_001416.fa.gz"])
    shutil.copytree(folder / "seqs", folder / "other/seqs")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def proxy(server: str) -> Iterator[Proxy]:
    with proxy_to(server) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def storage(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.fault, proxy.delay_seconds = None, 0.0
    proxy.requests.clear()
    for name, value in environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def urls(folder: Path, server: str) -> dict[str, str]:
    return {"s3": upload(server, folder / "seqs", "seqdb"), "file": f"file://{folder}/seqs"}


def window_db(folder: Path, url: str) -> Path:
    """A window database with an index that names the objects at a URL."""
    path = folder / url.split(":", maxsplit=1)[0] / "w.db"
    if not path.exists():
        path.parent.mkdir()
        shutil.copy2(folder / "w.db", path)
        shutil.copy2(index_path(folder / "w.db"), index_path(path))
        renew(path)
        add_remote(path, url)
    return path


def renew(path: Path) -> None:
    """Write the identity of a copied window database into its index."""
    from sharded_eden.format.index import FileIdentity
    from sharded_eden.windows.index import renew_index

    renew_index(path, FileIdentity(*IndexFile(index_path(path)).meta["identity"]))


def local(folder: Path, **options: Any) -> ShardedEdenDataset:
    return ShardedEdenDataset(None, folder / "seqs", folder / "w.db", SIZE, stride=STRIDE, **options)


def remote(folder: Path, url: str, **options: Any) -> ShardedEdenDataset:
    options = {"request_seconds": 30.0, **options}
    return ShardedEdenDataset(None, url, window_db(folder, url), SIZE, stride=STRIDE, **options)


@pytest.mark.parametrize("scheme", ["s3", "file"])
@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_rows_equal_those_of_local_files(folder, urls, scheme, options):
    with local(folder, **options) as one, remote(folder, urls[scheme], **options) as other:
        assert len(one) == len(other) > 20
        assert one.fingerprint == other.fingerprint
        if not options.get("compact"):
            a, b = one[1, 7], other[1, 7]
            assert all(torch.equal(a[name], b[name]) for name in a)
        a, b = (each.collate_fn(each.__getitems__([(1, k) for k in range(len(one))])) for each in (one, other))
        assert a.keys() == b.keys()
        for name, values in a.items():
            assert torch.equal(values, b[name]) if isinstance(values, torch.Tensor) else values == b[name], name


def stream_of(dataset: ShardedEdenDataset, consumed: int, workers: int, **options: Any) -> list[list[int]]:
    stream = Stream(dataset)
    sampler = StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=2, consumed_samples=consumed)
    batches = islice(DataLoader(stream, batch_sampler=sampler, num_workers=workers, **options), (40 - consumed) // 2)
    return [row for batch in batches for row in batch["tokens"].tolist()]


def test_a_resumed_stream_with_workers_is_the_local_one(folder, urls):
    with local(folder, rc_aug=True) as one, remote(folder, urls["s3"], rc_aug=True) as other:
        whole = stream_of(one, 0, 0)
        assert stream_of(other, 0, 0) == whole  # this process has now used its fetcher: workers are forked after that
        assert stream_of(other, 0, 2, multiprocessing_context="fork") == whole
        assert stream_of(other, 12, 1, multiprocessing_context="fork") == whole[12:]
        other[0]


@pytest.mark.slow
def test_spawned_workers_read_the_same_stream(folder, urls):
    with local(folder, rc_aug=True) as one, remote(folder, urls["s3"], rc_aug=True) as other:
        assert stream_of(other, 0, 1, multiprocessing_context="spawn") == stream_of(one, 0, 0)


def test_the_next_batches_are_fetched_ahead_and_once(folder, urls, proxy):
    with local(folder) as one, remote(folder, urls["s3"], requests_in_flight=8) as other:
        expected = stream_of(one, 0, 0)
        proxy.most_in_flight = 0
        proxy.delay_seconds = 0.05
        assert stream_of(other, 0, 0) == expected
    assert 2 <= proxy.most_in_flight <= 8
    assert len(proxy.requests) <= 1.1 * len(expected)


def test_opening_makes_no_request(folder, urls, monkeypatch):
    window_db(folder, urls["s3"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # nothing listens
    with remote(folder, urls["s3"]) as dataset:
        assert len(dataset) > 20


def test_pickles_and_messages_hold_no_credentials(folder, urls):
    with remote(folder, urls["s3"]) as dataset:
        dataset[0]
        held = pickle.dumps(dataset)
        assert not any(value.encode() in held for name, value in CREDENTIALS.items() if "KEY" in name)
        again = pickle.loads(held)
        assert torch.equal(again[3]["tokens"], dataset[3]["tokens"])
        again.close()
        assert not any(value in repr(dataset) for value in CREDENTIALS.values())


def test_what_needs_sqlite_is_refused(folder, urls):
    with remote(folder, urls["s3"]) as dataset:
        sample = next(iter(dataset.db_connections))
        with pytest.raises(UsageError, match=r"db_connections, SQL and its JOIN .* need local files"):
            dataset.db_connections[sample]
        assert dataset.sample_db_mapping[sample].startswith("s3://bucket/seqdb/")


def test_an_index_without_the_objects_is_refused_with_the_command(folder, urls, tmp_path):
    shutil.copy2(folder / "w.db", tmp_path / "w.db")
    url = urls["s3"]
    with pytest.raises(
        MissingDatabase, match=r"no such index.*sharded-eden index SEQDB .*sharded-eden index --at s3://"
    ):
        ShardedEdenDataset(None, url, tmp_path / "w.db", SIZE, stride=STRIDE)
    shutil.copy2(index_path(folder / "w.db"), index_path(tmp_path / "w.db"))
    with pytest.raises(
        DatabaseError, match=r"does not name the objects at s3.*sharded-eden index --at s3://bucket/seqdb"
    ):
        ShardedEdenDataset(None, url, tmp_path / "w.db", SIZE, stride=STRIDE)
    add_remote(tmp_path / "w.db", url)
    with pytest.raises(
        DatabaseError, match=r"names the objects at 's3://bucket/seqdb'.*index --at s3://bucket/elsewhere"
    ):
        ShardedEdenDataset(None, "s3://bucket/elsewhere", tmp_path / "w.db", SIZE, stride=STRIDE)


def test_a_copied_window_database_needs_its_modification_time(folder, urls, tmp_path):
    path = window_db(folder, urls["s3"])
    for each in (path, index_path(path)):
        shutil.copy2(each, tmp_path / each.name)
    dataset = ShardedEdenDataset(None, urls["s3"], tmp_path / "w.db", SIZE, stride=STRIDE)
    dataset.close()
    os.utime(tmp_path / "w.db", (1, 1))
    with pytest.raises(DatabaseError, match="it describes a window database of"):
        ShardedEdenDataset(None, urls["s3"], tmp_path / "w.db", SIZE, stride=STRIDE)


def test_a_window_without_an_address_is_refused(folder, urls, tmp_path):
    from sharded_eden.format.index import write_index

    path = window_db(folder, urls["s3"])
    shutil.copy2(path, tmp_path / "w.db")
    file = IndexFile(index_path(path))
    write_index(
        index_path(tmp_path / "w.db"), {**file.meta, "without_address": {"it is odd": 2}}, file.samples, [file.runs]
    )
    with pytest.raises(DatabaseError, match=r"2 contigs have no address \(2: it is odd\), and SQLite cannot read them"):
        ShardedEdenDataset(None, urls["s3"], tmp_path / "w.db", SIZE, stride=STRIDE)
    runs = file.runs.copy()
    runs["at"] = -1  # the counts do not say so
    write_index(index_path(tmp_path / "w.db"), file.meta, file.samples, [runs])
    dataset = ShardedEdenDataset(None, urls["s3"], tmp_path / "w.db", SIZE, stride=STRIDE)
    with dataset, pytest.raises(UsageError, match="has no address in the index"):
        dataset[0]


def test_a_replaced_object_is_an_error_and_reading_goes_on_when_it_is_back(folder, urls, proxy, server):
    path = next((folder / "seqs").glob("*/*.sqlite"))
    key = f"seqdb/{path.parent.name}/{path.name}"
    body = path.read_bytes()
    with remote(folder, urls["s3"]) as dataset:
        expected = dataset[5]["tokens"]
        changed = bytearray(body)
        changed[-2000] ^= 6
        put(server, key, bytes(changed))
        began = time.monotonic()
        with pytest.raises(DatabaseError, match=rf"s3://bucket/{key}: bytes [\d,]+ to [\d,]+: the object was replaced"):
            dataset[5]
        assert time.monotonic() - began < 5, "nothing is gained by another attempt"
        put(server, key, body)
        assert torch.equal(dataset[5]["tokens"], expected)


def test_other_pages_than_the_index_names_are_an_error(folder, urls, proxy):
    """A server that ignores `If-Match` and sends other bytes under the right headers."""

    def shifted(number, path, headers, forward):
        answer = forward(headers)
        answer.body = answer.body[1:] + answer.body[:1]
        return answer

    with remote(folder, urls["s3"]) as dataset:
        proxy.fault = shifted
        with pytest.raises(DatabaseError, match=r"s3://.*: the pages of a contig are not where the index says"):
            dataset.__getitems__(range(len(dataset)))


def test_the_process_that_fetches_ends_with_the_dataset_and_is_replaced_when_it_dies(folder, urls):
    children = psutil.Process().children
    before = set(children())
    with remote(folder, urls["s3"]) as dataset:
        expected = dataset[0]["tokens"]
        (fetcher,) = set(children()) - before
        fetcher.kill()
        with pytest.raises(DatabaseError, match=r"the process that fetches from it has ended \(exit status -9\)"):
            dataset[1]
        assert torch.equal(dataset[0]["tokens"], expected)
        (fetcher,) = set(children()) - before - {fetcher}
    assert not fetcher.is_running()


@pytest.mark.slow
def test_no_process_is_left_when_a_worker_is_killed(folder, urls):
    path = str(window_db(folder, urls["file"]))
    program = (
        "import sys, time, psutil\nfrom sharded_eden import ShardedEdenDataset\n"
        f"dataset = ShardedEdenDataset(None, {urls['file']!r}, {path!r}, {SIZE}, stride={STRIDE})\n"
        "dataset[0]\nprint(psutil.Process().children()[0].pid, flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    fetcher = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.communicate()
    psutil.wait_procs([fetcher], timeout=10)
    assert not fetcher.is_running() or fetcher.status() == psutil.STATUS_ZOMBIE


def test_threads_read_at_the_same_time(folder, urls):
    from concurrent.futures import ThreadPoolExecutor

    with local(folder) as one, remote(folder, urls["file"]) as other, ThreadPoolExecutor(3) as pool:
        rows = list(pool.map(lambda k: other[k]["tokens"].tolist(), range(20)))
        assert rows == [one[k]["tokens"].tolist() for k in range(20)]
        assert copy.copy(rows)


@pytest.mark.parametrize("name", ["requests_in_flight", "request_seconds"])
@pytest.mark.parametrize("value", [0, -1, 10**9])
def test_limits_are_checked(folder, urls, name, value):
    with pytest.raises(UsageError, match=f"{name} must be .*not {value}"):
        remote(folder, urls["file"], **{name: value})


def test_close_ranges_are_merged_within_the_limit():
    assert merged([(0, 0, 100), (0, 120, 80), (0, 9000, 100), (1, 9100, 5)]) == [
        [(0, 0, 100), (0, 120, 80)], [(0, 9000, 100)], [(1, 9100, 5)],
    ]  # fmt: skip
    assert len(merged([(0, 0, 100), (0, 201, 100)])) == 2, "301 bytes for 200"
    assert merged([(0, 0, 100), (0, 50, 10)]) == [[(0, 0, 100), (0, 50, 10)]]
    assert merged([]) == []
