"""Two ranks under torch.distributed (gloo) read the local stream from object storage, through kills, copies and other ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from typing import Any

import pytest
from object_storage import environment, upload
from resume import assert_same_stream, row_hashes
from test_distributed import GLOBAL, finish, global_batches, start

from sharded_eden import ShardedEdenDataset, Stream
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.pack import pack_window_database
from sharded_eden.windows.remote_index import add_remote

pytestmark = pytest.mark.slow
pytest.importorskip("obstore")
pytest.importorskip("moto")
pytest.importorskip("megatron.core")

STEPS = 12


@pytest.fixture
def at(request, small, tmp_path, proxy, monkeypatch) -> dict[str, Any]:
    """Where the sequence databases and the window database of `small` are: options of `start`."""
    for name, value in environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    windows = tmp_path / "windows.db"
    shutil.copy2(small.window_db, windows)
    pack_window_database(windows, sequences=small.sequence_db_dir)
    index_window_database(small.sequence_db_dir, windows)
    is_s3 = request.param == "s3"
    url = upload(proxy.endpoint, small.sequence_db_dir, "seqdb") if is_s3 else f"file://{small.sequence_db_dir}"
    add_remote(windows, url)
    return {"sequences": url, "windows": str(windows), "steps": STEPS, "tensor_parallel": 1, "micro": 2}


def expected(small, at: dict[str, Any], **options: Any) -> list[str]:
    with ShardedEdenDataset(
        None, small.sequence_db_dir, at["windows"], small.seq_length, stride=small.stride, rc_aug=True, **options
    ) as dataset:
        stream = Stream(dataset)
        return [row_hashes(stream[k]["tokens"][None])[0] for k in range(STEPS * GLOBAL)]


PACKED_AND_COMPACT: dict[str, Any] = {"compact": True, "workers": 1, "options": {"packed": True}}


@pytest.mark.parametrize(
    ("at", "options"),
    [
        ("s3", {}),
        ("s3", {"compact": True}),
        ("s3", {"options": {"packed": True}}),
        ("s3", PACKED_AND_COMPACT),
        ("file", {}),
        ("file", PACKED_AND_COMPACT),
    ],
    ids=["s3-plain", "s3-compact", "s3-packed", "s3-packed and compact", "file-plain", "file-packed and compact"],
    indirect=["at"],
)
def test_two_ranks_read_the_local_stream(small, tmp_path, at, options):
    finish(start(small, tmp_path, ranks=2, **at, **options))
    trained = global_batches(tmp_path, 0, 2, 0, STEPS)
    assert_same_stream(trained, expected(small, at, packed=bool(options.get("options"))))


@pytest.mark.parametrize(("at", "copies"), [("s3", False), ("s3", True), ("file", True)], indirect=["at"])
def test_a_killed_job_goes_on_with_other_ranks(small, tmp_path, at, copies):
    cache = {"cache_dir": str(tmp_path / "cache"), "cache_bytes": 10**9} if copies else {}
    job = {**at, "workers": 1, "options": cache, "pause": 0.1}
    processes = start(small, tmp_path, ranks=2, **job)
    saved = tmp_path / "out/0.saved"
    while not saved.exists() or int(saved.read_text() or 0) < 4:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    reached = json.loads((tmp_path / "state.json").read_text())["consumed_samples"] // GLOBAL
    assert reached < STEPS, "it was not killed in time"
    first = global_batches(tmp_path, 0, 2, 0, reached)
    (tmp_path / "rendezvous").unlink(missing_ok=True)
    finish(start(small, tmp_path, ranks=1, attempt=1, **job))
    assert_same_stream([*first, *global_batches(tmp_path, 1, 1, reached, STEPS)], expected(small, at))
    if copies:
        assert list((tmp_path / "cache/sequences").glob("*.sqlite"))
