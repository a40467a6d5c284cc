"""`python -m benchmarks.cloud_training [--minutes 10]`: Lightning trains from a server that answers each request after 30 ms.

A tiny model takes 100 windows/s: micro batches of 8, and each step lasts 80 ms. One worker, rows of one byte per token
(`compact=True`). Writes to results/cloud_training.md and .json the share of the time that training waits for data, and the
memory of each process after each minute. The same from local files, for a minute before, shows what is not due to the storage.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from benchmarks.cloud import DELAY_SECONDS, ROOT, SIZE, STRIDE, counts, serving, write_data
from benchmarks.machine import describe
from benchmarks.report import Result, Table, verdict, write
from sharded_eden import ShardedEdenDataModule
from sharded_eden.train.lightning.statistics import LoaderStatistics
from sharded_eden.windows.remote_index import add_remote

BATCH, STEP_SECONDS = 8, 0.080
EVERY_STEPS = 125
"""Steps of one measurement: 10 s."""
MOST_WAITING, MOST_GROWTH = 0.02, 1.05
"""The targets: the share of the time, and memory at the end over that after the first minute."""
LOCAL_MINUTES = 1.1


class Model(pl.LightningModule):
    """The next base from this one; a step lasts as long as that of a larger model on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Embedding(256, 4)

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Return a loss, after the time of a step."""
        until = time.perf_counter() + STEP_SECONDS
        loss = self.layers(batch["tokens"][:, ::64]).square().mean()
        time.sleep(max(0.0, until - time.perf_counter()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Memory(Callback):
    """Notes the waiting share at each measurement, and the memory of all processes each minute.

    Args:
        loader: gives the waiting share.
        minutes: when training ends.
    """

    def __init__(self, loader: LoaderStatistics, minutes: float) -> None:
        self._loader, self._minutes = loader, minutes
        self._began = time.perf_counter()
        self._seen: dict[str, float] = {}
        self.waiting: list[float] = []
        self.rates: list[float] = []
        self.memory: list[dict[str, float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Note what is new."""
        if self._loader.latest is not self._seen and self._loader.latest:
            self._seen = self._loader.latest
            self.waiting.append(self._seen["loader/waiting_share"])
            self.rates.append(self._seen["loader/windows_per_second"])
        minutes = (time.perf_counter() - self._began) / 60
        if minutes >= len(self.memory) + 1:
            self.memory.append(memory())
            print(f"minute {len(self.memory)}: {self.memory[-1]} MB, waiting {self.waiting}", flush=True)
        trainer.should_stop = minutes >= self._minutes


def memory() -> dict[str, float]:
    """Return the resident memory of this process, of its workers, and of the processes that fetch for them, in MB."""
    processes = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = dict(line.split(":", 1) for line in (path / "status").read_text().splitlines())
            command = (path / "cmdline").read_text()
        except OSError:
            continue
        processes[int(path.name)] = int(fields["PPid"]), int(fields.get("VmRSS", "0 kB").split()[0]) / 1000, command
    names = {os.getpid(): "training"}
    while more := {pid: parent for pid, (parent, _, _) in processes.items() if parent in names and pid not in names}:
        for pid in more:
            is_fetcher = "storage.fetcher" in processes[pid][2]
            is_server = "range_server" in processes[pid][2]
            names[pid] = "server" if is_server else "fetcher" if is_fetcher else "worker"
    found: dict[str, float] = {}
    for pid, name in names.items():
        if name == "server":
            continue
        found[name] = found.get(name, 0.0) + processes[pid][1]
    return {name: round(value, 1) for name, value in found.items()}


def main() -> None:
    """Train, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, serving(Path(name), DELAY_SECONDS) as server:
        folder = write_data(Path(name) / "data", "5 Mb", None)
        add_remote(folder / "w.db", f"{server}/data/seqs")
        local = _train(folder / "seqs", folder / "w.db", min(LOCAL_MINUTES, arguments.minutes))
        counts(server)
        notes = _train(f"{server}/data/seqs", folder / "w.db", arguments.minutes)
        served = counts(server)
    result = _result(local, notes, served)
    print(write(result, describe(), arguments.minutes < 10, arguments.out))


def _train(sequences: object, window_db: Path, minutes: float) -> Memory:
    """Train for some minutes; return what was noted."""
    data = ShardedEdenDataModule(
        sequences, window_db, seq_length=SIZE, stride=STRIDE, micro_batch_size=BATCH, global_batch_size=BATCH, num_workers=1,
        compact=True,
    )  # fmt: skip
    loader = LoaderStatistics(EVERY_STEPS)
    notes = Memory(loader, minutes)
    pl.Trainer(
        max_steps=-1, max_epochs=-1, accelerator="cpu", devices=1, use_distributed_sampler=False, limit_val_batches=0,
        callbacks=[loader, notes], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Model(), data)  # fmt: skip
    return notes


def _result(local: Memory, notes: Memory, served: dict[str, int]) -> Result:
    waiting = Table(
        "Waiting for data",
        f"Micro batches of {BATCH}, {STEP_SECONDS * 1000:.0f} ms each: at most {BATCH / STEP_SECONDS:.0f} windows/s. Shares of "
        f"{EVERY_STEPS} steps each, by `LoaderStatistics`.",
        [
            "",
            "windows/s, median",
            "share of the time, median",
            "largest share",
            "share of the first steps, with the start",
        ],
    )
    for name, each in (("local files", local), ("server", notes)):
        later = each.waiting[1:]  # the first measurement includes the start of the worker
        share = f"{statistics.median(later):.2%}"
        if each is notes:
            share += f" ({'reached' if statistics.median(later) < MOST_WAITING else 'not reached'}: under {MOST_WAITING:.0%})"
        waiting.rows.append([
            name, f"{statistics.median(each.rates):.1f}", share, f"{max(later):.2%}", f"{each.waiting[0]:.2%}",
        ])  # fmt: skip
    memory = Table("Resident memory, MB", "", ["process", "minute 1", f"minute {len(notes.memory)}", "over minute 1"])
    for name, first in notes.memory[0].items():
        last = notes.memory[-1].get(name, 0.0)
        memory.rows.append([name, f"{first:.0f}", f"{last:.0f}", verdict(last / first, MOST_GROWTH, at_most=True)])
    data = {
        "local_waiting": local.waiting,
        "waiting": notes.waiting,
        "rates": notes.rates,
        "memory": notes.memory,
        "served": served,
    }
    return Result(
        "cloud_training", "Training from a server that answers each request after 30 ms", [waiting, memory], data
    )


if __name__ == "__main__":
    main()
