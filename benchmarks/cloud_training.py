"""`python -m benchmarks.cloud_training [--minutes 10]`: Lightning trains from a server that answers each request after 30 ms.

A tiny model takes 100 windows/s: micro batches of 8, and each step lasts 80 ms. One worker, rows of one byte per token
(`compact=True`). Writes to results/cloud_training.md and .json the share of the time that training waits for data, and the
memory of each process after each minute. The same from local files, for a minute before, shows what is not due to the storage.

At the end it trains over a link of 20 MB/s while all sequence databases, 1 GB, are copied (`cache_bytes`), and then from the
copies.
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
LINK_BYTES_PER_SECOND, COPIED_SAMPLES, COPYING_MINUTES = 20e6, 100, 2.0
"""While databases are copied: the link that copies and windows share, samples of 10 Mb each, and how long it trains."""


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
        copies: where databases are copied to; None for none.
    """

    def __init__(self, loader: LoaderStatistics, minutes: float, copies: Path | None) -> None:
        self._loader, self._minutes, self._copies = loader, minutes, copies
        self._began = time.perf_counter()
        self._seen: dict[str, float] = {}
        self.waiting: list[float] = []
        self.rates: list[float] = []
        self.copies: list[int] = []
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
            if self._copies is not None:
                self.copies.append(len(list(self._copies.rglob("*.sqlite"))))
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
    parser.add_argument("--minutes", type=float, default=10, help="1 or more; 10 to be saved with the results")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, serving(Path(name), DELAY_SECONDS) as server:
        folder = write_data(Path(name) / "data", "5 Mb", None)
        add_remote(folder / "w.db", f"{server}/data/seqs")
        local = _train(folder / "seqs", folder / "w.db", min(LOCAL_MINUTES, arguments.minutes))
        counts(server)
        notes = _train(f"{server}/data/seqs", folder / "w.db", arguments.minutes)
        served = counts(server)
    with (
        tempfile.TemporaryDirectory() as name,
        serving(Path(name), DELAY_SECONDS, LINK_BYTES_PER_SECOND) as server,
    ):
        folder = write_data(Path(name) / "data", "5 Mb", None, COPIED_SAMPLES)
        add_remote(folder / "w.db", f"{server}/data/seqs")
        minutes = min(COPYING_MINUTES, arguments.minutes)
        copying = _train(f"{server}/data/seqs", folder / "w.db", minutes, Path(name) / "copies")
    result = _result(local, notes, copying, served)
    print(write(result, describe(), arguments.minutes < 10, arguments.out))


def _train(sequences: object, window_db: Path, minutes: float, copies: Path | None = None) -> Memory:
    """Train for some minutes, from copies as soon as they are there if a folder is given; return what was noted."""
    data = ShardedEdenDataModule(
        sequences, window_db, seq_length=SIZE, stride=STRIDE, micro_batch_size=BATCH, global_batch_size=BATCH, num_workers=1,
        compact=True, cache_dir=copies, cache_bytes=None if copies is None else 10**11,
    )  # fmt: skip
    loader = LoaderStatistics(EVERY_STEPS)
    notes = Memory(loader, minutes, copies)
    pl.Trainer(
        max_steps=-1, max_epochs=-1, accelerator="cpu", devices=1, use_distributed_sampler=False, limit_val_batches=0,
        callbacks=[loader, notes], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Model(), data)  # fmt: skip
    return notes


def _result(local: Memory, notes: Memory, copying: Memory, served: dict[str, int]) -> Result:
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
    copied = sum(count < COPIED_SAMPLES for count in copying.copies) + 1  # measurements until the last copy was there
    link = f"link of {LINK_BYTES_PER_SECOND / 1e6:.0f} MB/s"
    for name, each, part in (
        ("local files", local, slice(1, None)),  # the first measurement includes the start of the worker
        ("server", notes, slice(1, None)),
        (f"server, {link}, while 1 GB is copied", copying, slice(1, copied)),
        ("from the copies", copying, slice(copied, None)),
    ):
        shares = each.waiting[part]
        if not shares:
            waiting.rows.append([name, "not measured: too few minutes", "", "", ""])
            continue
        share = f"{statistics.median(shares):.2%}"
        if each is notes:
            share += f" ({'reached' if statistics.median(shares) < MOST_WAITING else 'not reached'}: under {MOST_WAITING:.0%})"
        first = "" if part.start > 1 else f"{each.waiting[0]:.2%}"
        waiting.rows.append([name, f"{statistics.median(each.rates[part]):.1f}", share, f"{max(shares):.2%}", first])
    memory = Table("Resident memory, MB", "", ["process", "minute 1", f"minute {len(notes.memory)}", "over minute 1"])
    for name, first in notes.memory[0].items():
        last = notes.memory[-1].get(name, 0.0)
        memory.rows.append([name, f"{first:.0f}", f"{last:.0f}", verdict(last / first, MOST_GROWTH, at_most=True)])
    data = {
        "local_waiting": local.waiting,
        "waiting": notes.waiting,
        "rates": notes.rates,
        "copying": {"waiting": copying.waiting, "rates": copying.rates, "copies": copying.copies},
        "memory": notes.memory,
        "served": served,
    }
    return Result(
        "cloud_training", "Training from a server that answers each request after 30 ms", [waiting, memory], data
    )


if __name__ == "__main__":
    main()
