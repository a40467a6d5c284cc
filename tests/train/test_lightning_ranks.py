"""Lightning on several processes: a stopped job resumes with other ranks, strategies, sizes and workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from resume import assert_same_stream, row_hashes
from test_lightning_resume import GLOBAL_BATCH

from sharded_eden import Stream

HELPERS = Path(__file__).resolve().parent.parent / "helpers"

pytestmark = pytest.mark.slow

PROGRAM = HELPERS / "lightning_ranks.py"


def attempt(strategy: str, ranks: int, micro: int, workers: int, saved: int, **options) -> dict:
    return {"strategy": strategy, "ranks": ranks, "micro": micro, "workers": workers, "saved": saved, **options}


def run(small, folder: Path, attempts: list[dict]) -> list[list[dict]]:
    """The output of each rank of each attempt, see lightning_ranks.py."""
    job = {"sequences": str(small.sequence_db_dir), "windows": str(small.window_db), "folder": str(folder)}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps({**job, "attempts": attempts})], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def trained_on(ranks: list[dict], attempt: dict, first: int) -> list[list[str]]:
    """The global batches of one attempt until its checkpoint: by micro step, then by data-parallel rank."""
    size = ranks[0]["ranks"]
    by_rank: dict[int, list[list[str]]] = {}
    for told in ranks:
        assert told["ranks"] == size
        peers = by_rank.setdefault(told["rank"], told["steps"])
        assert told["steps"] == peers, "tensor-parallel peers saw different batches"
    assert sorted(by_rank) == list(range(size))
    batches, micro = [], attempt["micro"]
    for k in range(attempt["saved"] - first):
        shares = [by_rank[rank][k] for rank in range(size)]
        assert {len(rows) for rows in shares} == {GLOBAL_BATCH // size}
        batches.append(
            [row for t in range(0, GLOBAL_BATCH // size, micro) for rows in shares for row in rows[t : t + micro]]
        )
    return batches


def assert_trains_on_the_stream(small, folder: Path, attempts: list[dict]) -> list[list[dict]]:
    answers = run(small, folder, attempts)
    trained, first = [], 0
    for ranks, told in zip(answers, attempts, strict=True):
        assert len(ranks[0]["steps"]) == told["saved"] + 1 - first, "it should have gone on beyond its checkpoint"
        trained += trained_on(ranks, told, first)
        first = told["saved"]
    with small.dataset(rc_aug=True) as dataset:
        stream = Stream(dataset)
        assert first * GLOBAL_BATCH > 2 * len(dataset), "the history should end in the third pass"
        expected = [row_hashes(stream[p]["tokens"][None])[0] for p in range(first * GLOBAL_BATCH)]
    assert_same_stream(trained, expected)
    return answers


def test_ddp_goes_on_with_other_ranks_micro_batches_and_workers(small, tmp_path):
    """Passes have eight or nine steps; every checkpoint but one is inside a pass."""
    assert_trains_on_the_stream(
        small,
        tmp_path,
        [
            attempt("ddp", 2, 1, 0, saved=3),
            attempt("ddp", 2, 2, 2, saved=5),
            attempt("auto", 1, 2, 0, saved=7),
            attempt("auto", 1, 8, 2, saved=12),
            attempt("ddp", 2, 4, 2, saved=14, trainer={"val_check_interval": 1}),
            attempt("ddp", 2, 1, 0, saved=22, trainer={"limit_train_batches": 12, "num_sanity_val_steps": 0}),
        ],
    )


def test_sharded_and_tensor_parallel_models_go_on_in_other_layouts(small, tmp_path):
    """FSDP on two ranks, tensor parallelism on two, both on four, and back: ranks as the Trainer's strategy has them."""
    layouts = [
        attempt("model_parallel", 2, 1, 0, saved=3, tensor_parallel=1),
        attempt("model_parallel", 2, 2, 2, saved=7, tensor_parallel=2),
        attempt("model_parallel", 4, 2, 0, saved=13, tensor_parallel=2),
        attempt("model_parallel", 2, 4, 0, saved=22, tensor_parallel=1),
    ]
    answers = assert_trains_on_the_stream(small, tmp_path, layouts)
    found = [sorted((told["rank"], told["ranks"]) for told in ranks) for ranks in answers]
    assert found == [[(0, 2), (1, 2)], [(0, 1), (0, 1)], [(0, 2), (0, 2), (1, 2), (1, 2)], [(0, 2), (1, 2)]]
