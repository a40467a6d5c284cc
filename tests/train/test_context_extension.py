"""Context extension: a model trained on windows of 1,024 goes on with 4,096, with its weights only and a new stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import polars as pl_frames
import pytest
import torch
import worlds
from resume import row_hashes

from sharded_eden import ShardedEdenDataModule, ShardedEdenDataset, Stream
from sharded_eden.errors import GeometryMismatch, StateError
from sharded_eden.windows.precompute import precompute_window_database

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

CONTIGS = {f"BCR__ECT-S{k % 2}__CT1-{k}": worlds.random_sequence(3_000 + 2_000 * k, k) for k in range(6)}


class Model(pl.LightningModule):
    """A tiny model that records the rows of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 256)
        self.rows: list[str] = []
        self.lengths: set[int] = set()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.rows += row_hashes(batch["tokens"])
        self.lengths.add(batch["tokens"].shape[1])
        return torch.nn.functional.cross_entropy(
            self.embedding(batch["tokens"]).flatten(0, 1), batch["labels"].flatten()
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, model: Model, steps: int, **options: Any) -> Path:
    """Train and save a checkpoint; `ckpt_path` resumes."""
    resumed = {"ckpt_path": path} if (path := options.pop("ckpt_path", None)) else {}
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    module = ShardedEdenDataModule(
        folder / "seqs",
        folder / "windows.db",
        micro_batch_size=2,
        global_batch_size=4,
        num_workers=0,
        rc_aug=True,
        **options,
    )
    trainer.fit(model, module, **resumed)
    saved = folder / f"{options['seq_length']}-{steps}.ckpt"
    trainer.save_checkpoint(saved)
    return saved


def stream_rows(dataset: ShardedEdenDataset, count: int) -> list[str]:
    stream = Stream(dataset)
    return [row for k in range(count) for row in row_hashes(stream[k]["tokens"][None])]


def test_from_1024_to_4096(tmp_path: Path) -> None:
    worlds.oracle.write_sequence_dbs(tmp_path / "seqs", CONTIGS)
    split = tmp_path / "split.parquet"
    pl_frames.DataFrame({"contig_id": list(CONTIGS), "length": [len(s) for s in CONTIGS.values()]}).write_parquet(split)
    for name, size in (("windows.db", 1024), ("wanted.db", 4096)):
        precompute_window_database(split, tmp_path / name, size, sequences=tmp_path / "seqs")

    short = Model()
    saved = fit(tmp_path, short, 3, seq_length=1024)
    assert short.lengths == {1024}

    with pytest.raises(GeometryMismatch, match="derive_windows=True"):
        fit(tmp_path, Model(), 1, seq_length=4096)
    with pytest.raises(StateError, match="window_size"):
        fit(tmp_path, Model(), 6, seq_length=4096, derive_windows=True, ckpt_path=saved)

    long = Model.load_from_checkpoint(saved)
    assert torch.equal(long.embedding.weight, short.embedding.weight)
    middle = fit(tmp_path, long, 2, seq_length=4096, derive_windows=True)
    assert long.lengths == {4096}
    assert not torch.equal(long.embedding.weight, short.embedding.weight)
    resumed = Model()
    fit(tmp_path, resumed, 5, seq_length=4096, derive_windows=True, ckpt_path=middle)

    with ShardedEdenDataset(None, tmp_path / "seqs", tmp_path / "wanted.db", 4096, rc_aug=True) as expected:
        assert long.rows + resumed.rows == stream_rows(expected, 20)
    with ShardedEdenDataset(None, tmp_path / "seqs", tmp_path / "windows.db", 1024, rc_aug=True) as expected:
        assert short.rows == stream_rows(expected, 12)
