"""`make demo`: real genomes become sequence databases, splits and window databases, and a small model learns from them.

Runs the commands that a user would type, trains through the data module with a standard Lightning Trainer, and compares the
loss on held-out contigs with ln 4 and the order-0 entropy of the genomes.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import shutil
import sqlite3
import sys
import time
import warnings
from itertools import chain
from pathlib import Path

import lightning.pytorch as pl
import torch

from entropy import order0_entropy, order0_entropy_within
from model import TinyGenomeModel
from sharded_eden import NucleotideTokenizer, ShardedEdenDataModule, ShardedEdenDataset, Stream, cli
from sharded_eden.format.schema import discover_sample_databases

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / ".demo"
SEQUENCES, SPLITS, LOGS = WORK / "sequences", WORK / "splits", WORK / "logs"
WINDOW_SIZE, STRIDE = 1024, 1021
MICRO_BATCH, GLOBAL_BATCH = 8, 8
STEPS = 700
MAX_SECONDS = 110
NUM_WORKERS = 1


def main() -> int:
    """Run the demo; return 0 if the model ends below the baselines on held-out contigs."""
    shutil.rmtree(WORK, ignore_errors=True)
    prepare()
    genomes = sequences()
    baselines = {
        "uniform bases (ln 4)": math.log(4),
        "order-0 entropy of these genomes": order0_entropy(chain.from_iterable(genomes.values())),
        "order-0 entropy, each by itself": order0_entropy_within(genomes),
    }
    show_loading_speed()
    show_packing()
    losses = train()
    is_below = report(losses, baselines)
    write_html()
    return 0 if is_below else 1


def prepare() -> None:
    """Build, split and precompute with the commands that a user would type."""
    command(f"build {relative(HERE / 'genomes')} --out {relative(SEQUENCES)}")
    command(f"split {relative(SEQUENCES)} --out {relative(SPLITS)} --by contig --val 0.05 --test 0.1 --seed 2")
    for split in ("train", "val", "test"):
        command(
            f"precompute {relative(SPLITS / f'{split}_split.parquet')} {relative(windows(split))} "
            f"--window-size {WINDOW_SIZE} --stride {STRIDE} --keep-tail --pack"
        )


def command(line: str) -> None:
    """Run a sharded-eden command in this process, and stop at an error."""
    print(f"\n$ sharded-eden {line}", flush=True)
    if (status := cli.main(shlex.split(line))) != 0:
        sys.exit(status)


def relative(path: Path) -> str:
    """Return a path relative to the current folder if it is inside it, quoted for a shell."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def windows(split: str) -> Path:
    """Return the path of the window database of a split."""
    return WORK / f"{split}_windows.db"


def sequences() -> dict[str, list[str]]:
    """Return the contigs of each sample, read with the standard library."""
    found = {}
    for sample, database in discover_sample_databases(SEQUENCES).items():
        connection = sqlite3.connect(database)
        found[sample] = [sequence for (sequence,) in connection.execute("SELECT nt_sequence FROM sequences")]
        connection.close()
    return found


def show_loading_speed() -> None:
    """Measure one shuffled pass in this process."""
    with ShardedEdenDataset(None, SEQUENCES, windows("train"), WINDOW_SIZE, stride=STRIDE, rc_aug=True) as dataset:
        stream = Stream(dataset)
        count, bases, started = len(stream) // 32 * 32, 0.0, time.perf_counter()
        for first in range(0, count, 32):
            batch = stream.collate_fn(stream.__getitems__(range(first, first + 32)))
            bases += float(batch["loss_mask"].sum())
        seconds = time.perf_counter() - started
        print(
            f"\nloading: {count:,} windows of {WINDOW_SIZE:,} in random order, one process: "
            f"{count / seconds:,.0f} windows/s, {bases / seconds / 1e6:.0f} million bases/s"
        )


def show_packing() -> None:
    """Compare the useful tokens of a training pass, padded and packed."""
    options = {"seq_length": WINDOW_SIZE, "stride": STRIDE}
    useful, rows = {}, {}
    for packed in (False, True):
        with ShardedEdenDataset(None, SEQUENCES, windows("train"), packed=packed, **options) as dataset:
            tokens = 0
            for first in range(0, len(dataset), 32):
                batch = dataset.collate_fn(dataset.__getitems__(range(first, min(first + 32, len(dataset)))))
                tokens += int((batch["tokens"] != NucleotideTokenizer.pad_id).sum())
            rows[packed], useful[packed] = len(dataset), tokens / (len(dataset) * WINDOW_SIZE)
    print(
        f"packing: {useful[False]:.2%} of the tokens are useful in {rows[False]:,} padded rows, {useful[True]:.2%} in "
        f"{rows[True]:,} packed ones"
    )


class Waiting(pl.Callback):
    """Measures the share of the step time spent waiting for the next batch, and prints the loss every 100 steps."""

    def __init__(self) -> None:
        self.waiting_seconds = self.total_seconds = 0.0
        self.recent: list[float] = []
        self._ended = self._begun = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Record when a batch has arrived."""
        self._begun = time.perf_counter()
        if self._ended:
            self.waiting_seconds += self._begun - self._ended

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: object, *_: object) -> None:
        """Record when a step has ended."""
        now = time.perf_counter()
        if self._ended:
            self.total_seconds += now - self._ended
        self._ended = now
        self.recent.append(float(outputs["loss"] if isinstance(outputs, dict) else outputs))
        if trainer.global_step % 100 == 0:
            print(f"  step {trainer.global_step:4d}   loss {sum(self.recent) / len(self.recent):.4f} nats", flush=True)
            self.recent.clear()

    @property
    def share(self) -> float:
        """The share of the time between two steps spent waiting for data."""
        return self.waiting_seconds / max(self.total_seconds, 1e-9)


def train() -> dict[str, float]:
    """Train on the training contigs; return the losses on held-out ones, in nats a base."""
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    pl.seed_everything(0)
    # The worker needs one core: threads that share a busy core are slower than fewer threads.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - NUM_WORKERS))
    data_module = ShardedEdenDataModule(
        sequence_db_dir=SEQUENCES,
        train_window_db_path=windows("train"),
        val_window_db_path=windows("val"),
        test_window_db_path=windows("test"),
        seq_length=WINDOW_SIZE,
        stride=STRIDE,
        micro_batch_size=MICRO_BATCH,
        global_batch_size=GLOBAL_BATCH,
        num_workers=NUM_WORKERS,
        rc_aug=True,
        log_windows=True,
        log_dir=LOGS,
    )
    model = TinyGenomeModel()
    waiting = Waiting()
    trainer = pl.Trainer(
        max_steps=STEPS,
        max_time={"seconds": MAX_SECONDS},
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[waiting],
        default_root_dir=WORK,
    )
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"\ntraining: {parameters:.1f} million parameters, {STEPS} steps of {GLOBAL_BATCH} windows", flush=True)
    started = time.perf_counter()
    trainer.fit(model, data_module)
    seconds = time.perf_counter() - started
    print(
        f"trained on {data_module.consumed_samples:,} windows in {seconds:.0f} s; "
        f"{waiting.share:.1%} of the step time was spent waiting for data"
    )
    losses = {}
    for split, loader in (("validation", data_module.val_dataloader()), ("test", data_module.test_dataloader())):
        losses[split] = held_out_loss(model, loader)
    return losses


@torch.no_grad()
def held_out_loss(model: TinyGenomeModel, loader: torch.utils.data.DataLoader) -> float:
    """Return the mean of -ln p(next base) over all bases of a split."""
    model.eval()
    total = bases = 0.0
    for batch in loader:
        counted = float(batch["loss_mask"].sum())
        total += float(model.loss(batch)) * counted
        bases += counted
    return total / bases


def report(losses: dict[str, float], baselines: dict[str, float]) -> bool:
    """Print the losses and the baselines; return whether every loss is below every baseline."""
    print(f"\n{'':38s} nats a base")
    rows = baselines | {f"model, held-out contigs ({split})": loss for split, loss in losses.items()}
    for name, nats in rows.items():
        print(f"{name:38s} {nats:.4f}")
    below = max(losses.values()) < min(baselines.values())
    print(f"The model is {'below' if below else 'NOT below'} every baseline on contigs it has never seen.")
    return below


def write_html() -> None:
    """Write the report of the data, and of what the training and the evaluations read."""
    databases = " ".join(relative(windows(split)) for split in ("train", "val", "test"))
    command(f"report {relative(WORK / 'report.html')} {relative(SEQUENCES)} {databases} --logs {relative(LOGS)}")


if __name__ == "__main__":
    sys.exit(main())
