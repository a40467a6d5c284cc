"""Packing: useful tokens, the cost of preparing and loading, and the training time of a model for the same loss.

Useful tokens are all but padding: bases, headers and EOS. Loading is one process, one core, batches of 32 collated rows,
packed and padded interleaved on the same windows. Training is the demo's model on its draft assemblies, for the same bases.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
import torch

from benchmarks.contenders import BATCH
from benchmarks.data import ROOT, STRIDE, WINDOW_SIZE, World
from benchmarks.report import Result, Table, ratio, small, verdict
from sharded_eden.build.build import build_sequence_dbs
from sharded_eden.load.dataset import ShardedEdenDataset
from sharded_eden.split import write_splits
from sharded_eden.train.lightning.datamodule import ShardedEdenDataModule
from sharded_eden.train.stream import Stream
from sharded_eden.windows.pack import PackResult, best_fit, pack_window_database
from sharded_eden.windows.precompute import precompute_window_database

DEMO = Path(__file__).resolve().parent.parent / "demo"
USEFUL, ASSIGNED, COMMAND, ROWS, TOKENS = 0.995, 0.7e6, 0.3e6, 0.43, 0.9


def run(world: World, quick: bool, say: Callable[[str], None]) -> Result:
    """Measure all four: filling, preparing, loading, training."""
    repeats = 3 if quick else 5
    say("packing log-normal contigs")
    filled, data = _fill(100_000 if quick else 1_000_000, repeats)
    say("packing draft assemblies")
    drafts = _prepare_drafts()
    filled.rows.append(["draft assemblies, pooled", *_filling(drafts), "", ""])
    loading, data["loading"] = _load(world, repeats, 1.0 if quick else 3.0, say)
    training, data["training"] = _train(200_000 if quick else 1_000_000, say)
    return Result("packing", "Packing", [filled, loading, training], data)


def _fill(contigs: int, repeats: int) -> tuple[Table, dict[str, Any]]:
    folder = ROOT / "packing"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    lengths = np.maximum(rng.lognormal(np.log(2200), (2 * np.log(4.0 / 2.2)) ** 0.5, contigs), 200).astype(np.int64)
    ids = polars.select("BCR__ECT-S1__CT1-" + polars.int_range(contigs).cast(polars.String).str.zfill(9)).to_series()
    split, windows = folder / "split.parquet", folder / "windows.db"
    polars.DataFrame({"contig_id": ids, "length": lengths}).write_parquet(split)
    precompute_window_database(split, windows, WINDOW_SIZE, STRIDE)
    costs = rng.permutation(np.minimum(lengths, WINDOW_SIZE - 3) + 3)
    commands, assignments = [], []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = pack_window_database(windows)
        commands.append(result.windows / (time.perf_counter() - begun))
        begun = time.perf_counter()
        for first in range(0, len(costs), 4096):
            best_fit(costs[first : first + 4096], WINDOW_SIZE)
        assignments.append(len(costs) / (time.perf_counter() - begun))
    table = Table(
        "What packing fills",
        f"Rows of {WINDOW_SIZE:,} tokens; {contigs:,} contigs of log-normal lengths (median 2.2 kb, mean 4 kb), and the draft "
        "assemblies of the demo. Assignment alone, and the whole command, in windows/s on one core.",
        ["", "useful, padded", "useful, packed", "rows", "assignment", "command"],
    )
    table.rows.append(
        [
            "log-normal contigs",
            *_filling(result),
            _at_least(statistics.median(assignments), ASSIGNED),
            _at_least(statistics.median(commands), COMMAND),
        ]
    )
    return table, {"windows": result.windows, "assignment": assignments, "command": commands}


def _filling(result: PackResult) -> list[str]:
    reached = "**" if result.useful >= USEFUL else ""
    return [
        f"{result.useful_padded:.1%}",
        f"{reached}{result.useful:.2%}{reached} {small(f'at least {USEFUL:.1%}')}",
        verdict(result.packs / result.windows, ROWS, at_most=True),
    ]


def _at_least(rate: float, target: float) -> str:
    reached = "**" if rate >= target else ""
    return f"{reached}{rate / 1e6:.2f} M/s{reached} {small(f'at least {target / 1e6:g}')}"


def _prepare_drafts() -> PackResult:
    """Build the drafts of the demo's genomes, split by contig, with packs."""
    folder = ROOT / "packing-drafts"
    shutil.rmtree(folder, ignore_errors=True)
    build_sequence_dbs(sorted((DEMO / "genomes").glob("*_draft.fa.xz")), folder / "sequences")
    write_splits(folder / "sequences", folder / "splits", by="contig", val=0.05, test=0)
    for split in ("train", "val"):
        result = precompute_window_database(
            folder / "splits" / f"{split}_split.parquet", folder / f"{split}.db", WINDOW_SIZE, STRIDE, pack=True
        )
        if split == "train":
            assert result.packs is not None
            of_training = result.packs
    return of_training


def _useful_tokens_per_second(dataset: ShardedEdenDataset, first: int, seconds: float) -> tuple[float, int]:
    """Return the rate of tokens that are not padding, and the last position of the stream."""
    stream = Stream(dataset)
    tokens, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        batch = stream.collate_fn(stream.__getitems__(range(first, first + BATCH)))
        pause = time.perf_counter()
        tokens += int((batch["tokens"] != 0).sum())
        begun += time.perf_counter() - pause  # counting is not loading
        first += BATCH
    return tokens / (time.perf_counter() - begun), first


def _load(world: World, repeats: int, seconds: float, say: Callable[[str], None]) -> tuple[Table, dict[str, Any]]:
    pack_window_database(world.window_db)
    world.warm()
    rates: dict[str, list[float]] = {"padded": [], "packed": [], "padded, compact": [], "packed, compact": []}
    table = Table(
        f"Loading {world.shape.title}, packed over padded",
        "Useful tokens/s from the loader in one process: a packed row holds as many windows as fit, and each is still read.",
        ["", "padded", "packed", "ratio"],
    )
    for compact in (False, True):
        suffix = ", compact" if compact else ""
        options = {"stride": STRIDE, "rc_aug": True, "compact": compact}
        with (
            closing(ShardedEdenDataset(None, world.sequence_db_dir, world.window_db, WINDOW_SIZE, **options)) as padded,
            closing(
                ShardedEdenDataset(None, world.sequence_db_dir, world.window_db, WINDOW_SIZE, packed=True, **options)
            ) as packed,
        ):
            at = {"padded": 0, "packed": 0}
            for repeat in range(repeats):
                say(f"loading{suffix}, repeat {repeat + 1} of {repeats}")
                for name, dataset in (("padded", padded), ("packed", packed)):
                    source = _Expanded(dataset) if compact else dataset
                    rate, at[name] = _useful_tokens_per_second(source, at[name], seconds)
                    rates[name + suffix].append(rate)
        medians = [statistics.median(rates[name + suffix]) for name in ("padded", "packed")]
        table.rows.append(
            [
                "compact batches, expanded" if compact else "tensors",
                *(small(f"{m / 1e6:,.0f} M tokens/s") for m in medians),
                verdict(medians[1] / medians[0], TOKENS),
            ]
        )
    return table, rates


class _Expanded:
    """A compact dataset whose batches are expanded as they are collated."""

    def __init__(self, dataset: ShardedEdenDataset) -> None:
        self._dataset = dataset
        self._expand = dataset.expander()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, indices: Any) -> Any:
        return self._dataset.__getitems__(indices)

    def collate_fn(self, rows: Any) -> Any:
        """Collate and expand."""
        return self._expand(self._dataset.collate_fn(rows))


def _train(bases: int, say: Callable[[str], None]) -> tuple[Table, dict[str, Any]]:
    """Train the demo's model on the drafts, padded and packed, for a number of bases."""
    sys.path.insert(0, str(DEMO))
    from model import TinyGenomeModel

    folder = ROOT / "packing-drafts"
    found: dict[str, list[dict[str, float]]] = {"padded": [], "packed": []}
    for seed in (1, 2):
        for name, runs in found.items():
            say(f"training {name}, seed {seed}")
            runs.append(_train_once(TinyGenomeModel, folder, name == "packed", seed, bases))
    table = Table(
        f"The demo's model, trained on {bases / 1e6:g} million bases of draft assemblies",
        f"Rows of {WINDOW_SIZE:,} tokens, one row a step; the learning rate falls with the bases seen. Loss: nats a base on "
        "held-out contigs, the same padded rows for both. Two seeds: the difference between them is the noise.",
        ["", "loss, seed 1", "loss, seed 2", "steps", "time", "time over padded"],
    )
    padded_seconds = statistics.mean(r["seconds"] for r in found["padded"])
    for name, runs in found.items():
        seconds = statistics.mean(r["seconds"] for r in runs)
        table.rows.append(
            [
                name,
                *(f"{r['loss']:.4f}" for r in runs),
                f"{statistics.mean(r['steps'] for r in runs):,.0f}",
                f"{seconds:.0f} s",
                ratio(seconds / padded_seconds),
            ]
        )
    return table, found


def _train_once(model_class: Any, folder: Path, packed: bool, seed: int, bases: int) -> dict[str, float]:
    warnings.filterwarnings("ignore")
    pl.seed_everything(seed, verbose=False)
    model = model_class(total_steps=1)
    data = ShardedEdenDataModule(
        sequence_db_dir=folder / "sequences",
        train_window_db_path=folder / "train.db",
        seq_length=WINDOW_SIZE,
        stride=STRIDE,
        micro_batch_size=1,
        global_batch_size=1,
        num_workers=1,
        num_epochs=1000,
        seed=seed,
        rc_aug=True,
        packed=packed,
        tokenizer=None,
    )
    data.setup("fit")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.99))
    seen = steps = 0
    begun = time.perf_counter()
    for batch in data.train_dataloader():
        counted = float(batch["loss_mask"].sum())
        progress = seen / bases
        for group in optimizer.param_groups:  # by bases, not by steps: packed and padded then have the same schedule
            group["lr"] = 1e-2 * min(1.0, (progress + 0.002) / 0.05) * 0.5 * (1 + np.cos(np.pi * progress))
        optimizer.zero_grad()
        # The loss of a row counts by its bases, so that a row of few bases is no larger step than a full one.
        (model.loss(batch) * counted / WINDOW_SIZE).backward()
        optimizer.step()
        seen += int(counted)
        steps += 1
        if seen >= bases:
            break
    seconds = time.perf_counter() - begun
    with torch.no_grad(), ShardedEdenDataset(None, folder / "sequences", folder / "val.db", WINDOW_SIZE) as held_out:
        total = count = 0.0
        for first in range(0, len(held_out), 8):
            batch = held_out.collate_fn(held_out.__getitems__(range(first, min(first + 8, len(held_out)))))
            total += float(model.losses(batch).sum())
            count += float(batch["loss_mask"].sum())
    return {"loss": total / count, "steps": steps, "seconds": seconds, "bases": seen}
