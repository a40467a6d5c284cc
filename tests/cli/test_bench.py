"""`sharded-eden bench` measures a user's own data."""

from __future__ import annotations

import json

import pytest

from sharded_eden import bench, cli
from sharded_eden.errors import DatabaseError, UsageError


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
    assert "bounds it" in out


def test_bench_refuses_what_it_cannot_measure(small, tmp_path):
    with pytest.raises(UsageError, match="'thread' is no start method here: use fork"):
        bench(small.sequence_db_dir, small.window_db, start_methods=["thread"])
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        bench(small.sequence_db_dir, small.window_db, batch_size=0)
    with pytest.raises(DatabaseError, match="no such window database"):
        bench(small.sequence_db_dir, tmp_path / "nothing.db")
