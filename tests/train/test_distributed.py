"""One stream in real processes: over workers, start methods, ranks and micro batches, through SIGKILL, under Megatron."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mixtures import WEIGHTS, write_sources
from resume import assert_same_stream, row_hashes

from sharded_eden import Stream
from sharded_eden.train.mixture_file import mixture_config

HELPERS = Path(__file__).resolve().parent.parent / "helpers"

pytestmark = pytest.mark.slow

JOB = HELPERS / "rank_job.py"
GLOBAL = 16


def start(small, folder: Path, **options) -> list[subprocess.Popen]:
    """Start every rank of a job as a separate process."""
    job = {
        "folder": str(folder), "sequences": str(small.sequence_db_dir), "windows": str(small.window_db),
        "seq_length": small.seq_length, "stride": small.stride, "rc_aug": True, "compact": False, "global": GLOBAL,
        "micro": 2, "ranks": 1, "workers": 0, "method": "fork", "steps": 7, "attempt": 0, **options,
    }  # fmt: skip
    (folder / "out").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return [
        subprocess.Popen(
            [sys.executable, str(JOB), json.dumps({**job, "rank": rank})], env=environment, start_new_session=True
        )
        for rank in range(job["ranks"])
    ]


def finish(processes: list[subprocess.Popen]) -> None:
    assert [process.wait(timeout=240) for process in processes] == [0] * len(processes)


def global_batches(folder: Path, attempt: int, ranks: int, first: int, last: int) -> list[list[str]]:
    """What each step of one attempt trained on, in the order of the design: by micro step, then by rank."""
    lines: dict[tuple[int, int, int], list[str]] = {}
    for rank in range(ranks):
        for line in (folder / "out" / f"{attempt}_{rank}.txt").read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                step, micro_step, *rows = line.split()
                lines[int(step), int(micro_step), rank] = rows
    return [[row for key in sorted(lines) if key[0] == step for row in lines[key]] for step in range(first, last)]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> dict:
    """Packed sources of several samples with two phases; the second begins inside a block."""
    folder = tmp_path_factory.mktemp("sources")
    folders = write_sources(folder, packed_for=3)
    sources = {
        f"source {k}": {
            "window_db_path": str(each / "windows.db"),
            "sequence_db_dir": str(each / "seqs"),
            "weight": weight,
        }
        for k, (each, weight) in enumerate(zip(folders, WEIGHTS, strict=True))
    }
    return {"sources": sources, "phases": [[5 * GLOBAL + 3, [1, 0.5, 0]]], "skip": [[20, 29]]}


def rows_of_mixture(mixture: dict, count: int, rc_aug: bool = True) -> list[str]:
    options = {"seq_length": 64, "rc_aug": rc_aug, "packed": True, "sequence_db_dir": None}
    stream = mixture_config(mixture).open(tokenizer=None, seed=42, **options)
    return [row_hashes(stream[p]["tokens"][None])[0] for p in range(count)]


def expected_rows(small, count: int, rc_aug: bool = True) -> list[str]:
    with small.dataset(rc_aug=rc_aug) as dataset:
        stream = Stream(dataset)
        return [row_hashes(stream[p]["tokens"][None])[0] for p in range(count)]


def sha256(rows: list[str]) -> str:
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


AXES = [
    *({"workers": n} for n in (1, 4)),
    *({"workers": 2, "method": method} for method in ("spawn", "forkserver")),
    *({"ranks": n} for n in (2, 4)),
    *({"micro": m} for m in (1, 8)),
    {"compact": True},
]


@pytest.mark.parametrize("rc_aug", [True, False])
def test_the_hash_of_the_stream_is_one_value_over_every_axis(small, tmp_path, rc_aug, capsys):
    """Two passes and more, each axis alone, then random combinations."""
    steps = -(-2 * len(small.dataset()) // GLOBAL)
    wanted = sha256(expected_rows(small, steps * GLOBAL, rc_aug))
    choose = random.Random(3)
    mixed = [
        {
            "workers": choose.choice([0, 1, 2]), "method": choose.choice(["fork", "spawn", "forkserver"]),
            "ranks": choose.choice([1, 2, 4]), "micro": choose.choice([1, 2, 4]), "compact": choose.random() < 0.5,
        }
        for _ in range(12)
    ]  # fmt: skip
    for k, options in enumerate([{}, *(AXES if rc_aug else AXES[::3]), *mixed]):
        folder = tmp_path / str(k)
        finish(start(small, folder, steps=steps, rc_aug=rc_aug, **options))
        rows = [row for batch in global_batches(folder, 0, options.get("ranks", 1), 0, steps) for row in batch]
        with capsys.disabled():
            print(f"  rc_aug={rc_aug} {sha256(rows)[:16]}  {options or 'one process'}")
        assert sha256(rows) == wanted, options


def test_the_hash_of_a_mixture_is_one_value_over_every_axis(small, mixture, tmp_path, capsys):
    """Two phases, packed sources and a skipped range: each axis alone, then combinations."""
    steps = 12
    wanted = sha256(rows_of_mixture(mixture, steps * GLOBAL))
    mixed = [
        {"workers": 4, "ranks": 2, "micro": 1, "compact": True},
        {"workers": 1, "ranks": 4, "micro": 4, "method": "spawn"},
        {"workers": 2, "ranks": 2, "micro": 8, "method": "forkserver", "compact": True},
    ]
    for k, options in enumerate([{}, *AXES, *mixed]):
        folder = tmp_path / str(k)
        finish(start(small, folder, steps=steps, mixture=mixture, **options))
        rows = [row for batch in global_batches(folder, 0, options.get("ranks", 1), 0, steps) for row in batch]
        with capsys.disabled():
            print(f"  mixture {sha256(rows)[:16]}  {options or 'one process'}")
        assert sha256(rows) == wanted, options


@pytest.mark.parametrize(
    ("seed", "of_mixture"), [*((seed, False) for seed in range(10)), (0, True), (1, True), (2, True)]
)
def test_jobs_killed_at_random_moments_train_on_the_uninterrupted_stream(small, mixture, tmp_path, seed, of_mixture):
    job = {"mixture": mixture} if of_mixture else {}
    choose = random.Random(seed)
    steps, done, attempt, trained = 40, 0, 0, []
    while done < steps:
        ranks, micro = choose.choice([1, 2, 4]), choose.choice([1, 2, 4])
        workers = choose.choice([0, 0, 1])
        processes = start(
            small, tmp_path, attempt=attempt, ranks=ranks, micro=micro, workers=workers, steps=steps, pause=0.02, **job
        )
        saved = tmp_path / "out" / f"{attempt}.saved"
        while not saved.exists() and any(p.poll() is None for p in processes):
            time.sleep(0.005)
        if attempt < 3:
            time.sleep(choose.random() * 0.4)
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)
        for process in processes:
            process.wait(timeout=240)
        reached = json.loads((tmp_path / "state.json").read_text())["consumed_samples"] // GLOBAL
        trained += global_batches(tmp_path, attempt, ranks, done, reached)
        done, attempt = reached, attempt + 1
        assert attempt < 30
    assert attempt > 1, "nothing was ever killed"
    expected = rows_of_mixture(mixture, steps * GLOBAL) if of_mixture else expected_rows(small, steps * GLOBAL)
    assert_same_stream(trained, expected)


def test_tensor_parallel_peers_get_the_same_batches_and_data_parallel_ranks_different_ones(small, tmp_path):
    finish(start(small, tmp_path, ranks=4, tensor_parallel=2, steps=6))
    told = [(tmp_path / "out" / f"0_{rank}.txt").read_text() for rank in range(4)]
    assert told[0] == told[1]
    assert told[2] == told[3]
    rows = [[line.split()[2:] for line in text.splitlines()] for text in (told[0], told[2])]
    union = [row for one, other in zip(*rows, strict=True) for row in one + other]
    assert_same_stream([union], expected_rows(small, 6 * GLOBAL))
