"""Workers end within 10 seconds of the death of the process that started them, with batches of the sizes that fill the pipe."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import worlds

T, STRIDE = 8192, 7992
SECONDS = 10

PLAIN = """
import sys, time
from torch.utils.data import DataLoader
from sharded_eden import ShardedEdenDataset, Stream

if __name__ == "__main__":
    folder, start, rows, compact = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "compact"
    dataset = ShardedEdenDataset.open(f"{folder}/seqs", f"{folder}/windows.db", compact=compact)
    stream = Stream(dataset, num_samples=10**6)
    loader = DataLoader(stream, batch_size=rows, num_workers=2, multiprocessing_context=start, collate_fn=stream.collate_fn)
    batches = iter(loader)
    next(batches)
    print(*(worker.pid for worker in batches._workers), flush=True)
    time.sleep(1000)
"""

LIGHTNING = """
import multiprocessing, sys, time, torch
import lightning.pytorch as pl
from sharded_eden import ShardedEdenDataModule

class Slow(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(0.2)
        return self.weight.sum()

if __name__ == "__main__":
    folder, start, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
    module = ShardedEdenDataModule(
        f"{folder}/seqs", f"{folder}/windows.db", micro_batch_size=rows, global_batch_size=rows, num_workers=2,
        multiprocessing_context=start, num_epochs=1000,
    )
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(Slow(), module)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bases = "".join(random.Random(1).choices("ACGT", k=40 * T))
    return worlds.write(tmp_path_factory.mktemp("orphans"), {"A__ECT-S0__CT1-1": bases}, T, STRIDE)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize(
    ("program", "start", "rows", "kind", "how"),
    [
        (PLAIN, "fork", 1, "full", signal.SIGKILL),
        (PLAIN, "forkserver", 1, "full", signal.SIGTERM),
        pytest.param(LIGHTNING, "fork", 1, "full", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(PLAIN, "fork", 4, "full", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(PLAIN, "fork", 8, "compact", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(PLAIN, "spawn", 1, "full", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(LIGHTNING, "fork", 1, "full", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(LIGHTNING, "spawn", 1, "full", signal.SIGTERM, marks=pytest.mark.slow),
    ],
    ids=lambda value: {PLAIN: "plain", LIGHTNING: "lightning"}.get(value) if isinstance(value, str) else None,
)
def test_workers_end_with_their_parent(folder, tmp_path, program, start, rows, kind, how):
    script = tmp_path / "train.py"
    script.write_text(program)
    command = [sys.executable, str(script), str(folder), start, str(rows), kind]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with (
        (tmp_path / "errors").open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as parent,
    ):
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        try:
            assert len(workers) == 2, (tmp_path / "errors").read_text()
            time.sleep(1)  # until the workers have filled the pipe
            assert all(map(is_running, workers))
            parent.send_signal(how)
            parent.wait(120)  # Lightning ends a job in its own time
            end = time.monotonic() + SECONDS
            while time.monotonic() < end and any(map(is_running, workers)):
                time.sleep(0.1)
            assert not [pid for pid in workers if is_running(pid)]
        finally:
            parent.kill()
            for pid in filter(is_running, workers):
                os.kill(pid, signal.SIGKILL)
