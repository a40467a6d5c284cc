"""The example that trains from object storage is killed, goes on, and trains on the stream of the local files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from object_storage import environment, proxy_to, s3_server, upload
from resume import assert_same_stream, row_hashes

from sharded_eden import Stream
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.remote_index import add_remote
from test_examples import GLOBAL, HELPERS, ROOT

pytest.importorskip("obstore")
pytest.importorskip("moto")

STEPS, LONGEST_SECONDS = 12, 300


def steps_of(folder: Path) -> list[list[str]]:
    """The rows of each finished optimizer step."""
    path = folder / "0.txt"
    return [part.split() for part in path.read_text().split("step\n")[:-1]] if path.exists() else []


@pytest.mark.slow
def test_training_from_s3_is_killed_and_goes_on(small, tmp_path, monkeypatch):
    shutil.copy2(small.window_db, tmp_path / "windows.db")
    index_window_database(small.sequence_db_dir, tmp_path / "windows.db")
    with s3_server() as endpoint, proxy_to(endpoint) as proxy:
        proxy.delay_seconds = 0.03
        for name, value in environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        url = upload(endpoint, small.sequence_db_dir, "seqdb")
        add_remote(tmp_path / "windows.db", url)

        def start(seen: str) -> subprocess.Popen[str]:
            program = [str(HELPERS / "watched.py"), seen, str(ROOT / "examples" / "s3_training.py")]
            arguments = [url, "windows.db", "--seq-length", "64", "--steps", str(STEPS)]
            options = {"env": {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}, "text": True}
            with (tmp_path / f"{seen}.log").open("w") as log:
                return subprocess.Popen(
                    [sys.executable, *program, *arguments], cwd=tmp_path, stdout=log, stderr=log, **options
                )

        killed = start("first")
        until = time.monotonic() + LONGEST_SECONDS
        while len(steps_of(tmp_path / "first")) < 4:
            assert killed.poll() is None, (tmp_path / "first.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.02)
        killed.kill()
        killed.wait()
        assert len(steps_of(tmp_path / "first")) < STEPS, "it was not killed in time"
        second = start("second")
        assert second.wait(LONGEST_SECONDS) == 0, (tmp_path / "second.log").read_text()

    with small.dataset(rc_aug=True) as dataset:
        stream = Stream(dataset)
        expected = [row_hashes(stream[p]["tokens"][None])[0] for p in range(STEPS * GLOBAL)]
    first, after = steps_of(tmp_path / "first"), steps_of(tmp_path / "second")
    kept = STEPS - len(after)  # steps before the last checkpoint
    assert 0 < kept <= len(first) + 1
    assert_same_stream([*first[:kept], *after], expected)
