"""`sharded-eden bench` measures a user's own data."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from sharded_eden import bench, cli
from sharded_eden.errors import DatabaseError, UsageError
from sharded_eden.throughput import BenchResult, LoaderRate, _verdict


def test_bench_measures_every_stage_and_loader(small, capsys):
    line = [
        str(small.sequence_db_dir),
        str(small.window_db),
        "--seconds",
        "0.05",
        "--max-workers",
        "1",
        "--batch-size",
        "4",
    ]
    assert cli.main(["bench", *line, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["seq_length"] == small.seq_length
    assert 0 < result["mean_bases"] <= small.seq_length
    assert {"locate", "read", "encode", "collate"} <= set(result["stage_microseconds"])
    assert all(rate["windows_per_second"] > 0 for rate in result["loaders"])
    assert {(r["workers"], r["compact"]) for r in result["loaders"]} == {(w, c) for w in (0, 1) for c in (False, True)}
    assert cli.main(["bench", *line]) == 0
    out = capsys.readouterr().out
    assert "cold" in out
    assert re.search(r"limits the (rate|first pass)", out)  # so few windows: either may be measured


def test_bench_refuses_what_it_cannot_measure(small, tmp_path):
    with pytest.raises(UsageError, match="'thread' is not a start method here: use fork"):
        bench(small.sequence_db_dir, small.window_db, start_methods=["thread"])
    for seconds in (math.nan, math.inf, 0.0):
        with pytest.raises(UsageError, match="seconds above 0 and finite"):
            bench(small.sequence_db_dir, small.window_db, seconds=seconds)
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        bench(small.sequence_db_dir, small.window_db, batch_size=0)
    with pytest.raises(DatabaseError, match="no such window database"):
        bench(small.sequence_db_dir, tmp_path / "nothing.db")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_bench_counts_the_processors_that_it_may_use():
    one = min(os.sched_getaffinity(0))
    count = "from sharded_eden.jobs import usable_processors; print(usable_processors())"
    code = f"import os; os.sched_setaffinity(0, [{one}]); {count}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize("rates", [(900.0, 400.0, 300.0), (100.0, 400.0, 300.0), (100.0, 200.0, 300.0)])
@pytest.mark.parametrize("compact", [1.0, 3.0])
def test_the_verdict_agrees_with_the_measured_rates(rates, compact):
    loaders = [
        LoaderRate(workers=workers, start_method="fork", compact=is_compact, windows_per_second=rate * factor)
        for is_compact, factor in ((False, 1.0), (True, compact))
        for workers, rate in zip((0, 1, 2), rates, strict=True)
    ]
    result = BenchResult(
        windows=10,
        seq_length=64,
        batch_size=1,
        cold_windows_per_second=None,
        warm_windows_per_second=rates[0],
        mean_bases=60.0,
        stage_microseconds={"locate": 1.0, "read": 5.0},
        loaders=loaders,
    )
    verdict = _verdict(result, is_table=True)
    best = max(loaders, key=lambda loader: loader.windows_per_second)
    assert f"num_workers={best.workers}), compact={best.compact}: {best.windows_per_second:,.0f} windows/s" in verdict
    assert ("no workers are needed" in verdict) + ("more workers than" in verdict) <= 1
    if best.workers == 0:
        assert "more workers" not in verdict
    slow_disk = _verdict(replace(result, cold_windows_per_second=rates[0] / 4), is_table=True)
    assert "The disk limits the first pass (25% of the warm rate)" in slow_disk
