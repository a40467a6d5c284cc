"""The examples run unchanged on one and two processes, stop and resume, and their models receive the stream."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import worlds
from resume import assert_same_stream, row_hashes

from sharded_eden import Stream

HELPERS = Path(__file__).resolve().parent / "helpers"

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MICRO, GLOBAL = 2, 8
"""The batch sizes of the examples."""

MOST_SECONDS = 600
"""Two ranks and their launcher import PyTorch and transformers, and unload them: a minute of processor time."""


def run(example: str, folder: Path, ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an example in a folder under `watched.py`; with several ranks, start it as `torchrun` does."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    program = [str(HELPERS / "watched.py"), "seen", str(ROOT / "examples" / example)]
    environment = {
        "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1",
    }  # fmt: skip
    command = [sys.executable, *launcher, *program, *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        out, err = _tracebacks_of(process, folder)
        pytest.fail(f"{example} on {ranks} ranks took longer than {MOST_SECONDS} s\n{out}\n{err}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _tracebacks_of(process: subprocess.Popen[str], folder: Path) -> tuple[str, str]:
    """End all processes of a run, each with a traceback on stderr, and return what they wrote: those without a parent too."""
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.pid != os.getpid() and Path(each.cwd()) == folder.resolve():
                print(each.pid, each.ppid(), each.status(), each.cpu_times()[:2], each.cmdline())
                each.send_signal(signal.SIGABRT)
                time.sleep(0.5)
    return process.communicate(timeout=60)


def global_batches(folder: Path, ranks: int) -> list[list[str]]:
    """The rows of each optimizer step, in the documented order: by micro step, then by rank."""
    told = [(folder / "seen" / f"{rank}.txt").read_text().split("step\n") for rank in range(ranks)]
    assert all(steps.pop() == "" for steps in told), "fed beyond the last optimizer step"
    batches = []
    for shares in zip(*(map(str.split, steps) for steps in told), strict=True):
        assert {len(rows) for rows in shares} == {GLOBAL // ranks}
        batches.append(
            [row for t in range(0, GLOBAL // ranks, MICRO) for rows in shares for row in rows[t : t + MICRO]]
        )
    return batches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "history"),
    [
        ("plain_loop.py", [(1, 2), (1, 5)]),
        # On one rank, then on two, then on one: four micro batches, two, four. Six micro batches are no multiple of four.
        ("accelerate_loop.py", [(1, 2), (2, 5), (1, 6)]),
        ("transformers_trainer.py", [(1, 2), (2, 5), (1, 6)]),
    ],
)
def test_example_trains_on_the_stream_after_any_restarts(small, tmp_path, example, history):
    paths = [str(small.sequence_db_dir), str(small.window_db)]
    trained, done = [], 0
    for ranks, steps in history:
        ran = run(example, tmp_path, ranks, *paths, "--steps", str(steps))
        assert ran.returncode == 0, ran.stderr
        trained += global_batches(tmp_path, ranks)
        asked = [int(p) for p in (tmp_path / "seen" / "positions.txt").read_text().split()]
        assert min(asked) == done * GLOBAL, "resuming loaded what was trained on before"
        assert len(set(asked)) == len(asked), "ranks loaded the same positions"
        (tmp_path / "seen" / "positions.txt").unlink()
        done = steps
    with small.dataset(rc_aug=True) as dataset:
        stream = Stream(dataset)
        expected = [row_hashes(stream[p]["tokens"][None])[0] for p in range(done * GLOBAL)]
    assert_same_stream(trained, expected)

    again = run(example, tmp_path, 1, *paths, "--steps", str(done))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "seen" / "0.txt").read_text() == "", "trained on although all steps were done"

    choose = random.Random(0)
    other = worlds.write(tmp_path / "other", {"A__ECT-S0__CT1-1": "".join(choose.choices("ACGT", k=900))})
    refused = run(example, tmp_path, 1, str(other / "seqs"), str(other / "windows.db"), "--steps", str(done + 1))
    assert refused.returncode == 1
    assert "StateError: the checkpoint belongs to another stream: fingerprint was" in refused.stderr


@pytest.mark.slow
def test_checkpoint_of_another_global_batch_size_is_an_error(small, tmp_path):
    """Otherwise the Trainer would multiply its steps by the new size."""
    paths = [str(small.sequence_db_dir), str(small.window_db)]
    example = ROOT / "examples" / "transformers_trainer.py"
    assert run(example.name, tmp_path, 1, *paths, "--steps", "1").returncode == 0
    text = example.read_text()
    assert text.count("global_batch_size=8") == text.count("steps * 8") == 1
    changed = tmp_path / "changed.py"
    changed.write_text(text.replace("global_batch_size=8", "global_batch_size=4").replace("steps * 8", "steps * 4"))
    refused = run(str(changed), tmp_path, 1, *paths, "--steps", "3")
    assert refused.returncode == 1
    assert "StateError: 8 samples were trained on, not 4" in refused.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_documentation_quotes_the_example(example):
    text = example.read_text()
    quoted = textwrap.dedent(text[text.index("# <docs>\n") + len("# <docs>\n") : text.index("    # </docs>\n")])
    page = (ROOT / "docs" / "trainers.md").read_text()
    assert f"```python\n{quoted}```" in page, f"docs/trainers.md quotes another text than {example.name}"
    assert f"examples/{example.name}" in page


def test_examples_are_short():
    assert len(EXAMPLES) >= 3
    for example in EXAMPLES:
        assert len(example.read_text().splitlines()) <= 100, example.name
