"""`kill -9` at random moments of `precompute`: the next run completes, with the same result."""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import polars as pl
import pytest

from sharded_eden import precompute_window_database

KILLS = 50


def prepare(split: Path, output: Path) -> None:
    precompute_window_database(split, output, 64, 50, pack=True)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    choose = random.Random(6)
    ids = [f"BCR__ECT-S{k % 9}__CT1-{k}" for k in range(12_000)]
    split = tmp_path / "in" / "split.parquet"
    split.parent.mkdir()
    pl.DataFrame({"contig_id": ids, "length": [choose.randrange(20, 300) for _ in ids]}).write_parquet(split)
    (tmp_path / "undisturbed").mkdir()
    prepare(split, tmp_path / "undisturbed" / "w.db")
    undisturbed = (tmp_path / "undisturbed" / "w.db").read_bytes()
    output = tmp_path / "out" / "w.db"
    output.parent.mkdir()
    context = get_context("forkserver")  # children start at once: the server has imported everything, and run no thread
    context.set_forkserver_preload(["sharded_eden.windows.precompute"])
    begun = time.monotonic()
    whole = context.Process(target=prepare, args=(split, output))
    whole.start()
    whole.join()
    seconds = time.monotonic() - begun
    assert output.read_bytes() == undisturbed
    seen: set[tuple[bool, bool]] = set()
    for _ in range(KILLS):
        output.unlink()
        process = context.Process(target=prepare, args=(split, output))
        process.start()
        time.sleep(choose.uniform(0, seconds))
        assert process.pid is not None
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        seen.add((output.exists(), (output.parent / ".w.db.partial").exists()))
        if output.exists():  # a file with the final name is complete
            assert output.read_bytes() == undisturbed
        prepare(split, output)
        assert output.read_bytes() == undisturbed
        assert [path.name for path in output.parent.iterdir()] == ["w.db"]
    assert (False, True) in seen, "no run was killed while it wrote"
