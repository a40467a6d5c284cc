"""A Lightning job on the stages of a recipe, as a separate process: resumes from its last checkpoint, and records rows.

    python mixture_job.py RECIPE.toml FOLDER

Runs in the folder of the recipe, to which its paths are relative. Appends to `FOLDER/STAGE/rows.txt` one line for each micro
batch: optimizer step, loss, hashes of rows. A stage begins with the weights of the one before it, and a stream of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from resume import row_hashes

from sharded_eden import ShardedEdenDataModule

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11
    import tomli as tomllib

MICRO, GLOBAL = 4, 8


class Model(pl.LightningModule):
    """Predicts the next base from the last one."""

    def __init__(self, rows: Path) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 256)
        self.rows = rows

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        losses = torch.nn.functional.cross_entropy(
            self.embedding(batch["tokens"]).flatten(0, 1), batch["labels"].flatten(), reduction="none"
        )
        loss = (losses * batch["loss_mask"].flatten()).sum() / batch["loss_mask"].sum()
        with self.rows.open("a") as file:
            file.write(f"{self.trainer.global_step} {loss.item():.4f} {' '.join(row_hashes(batch['tokens']))}\n")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def train(recipe: dict[str, Any], stage: dict[str, Any], folder: Path, weights: Path | None) -> Path:
    """Train one stage from its last checkpoint, else from the weights of the stage before it; return those it ends with."""
    trained = folder / "trained.ckpt"
    if trained.exists():
        return trained
    folder.mkdir(exist_ok=True)
    module = ShardedEdenDataModule(
        None,
        mixture=stage["mixture"],
        micro_batch_size=MICRO,
        global_batch_size=GLOBAL,
        num_workers=1,
        **recipe["options"],
        **stage["options"],
    )
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=5, save_last=True)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[saving],
        max_steps=stage["steps"], max_epochs=-1, default_root_dir=folder,
    )  # fmt: skip
    model = Model(folder / "rows.txt")
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    last = folder / "last.ckpt"
    trainer.fit(model, datamodule=module, ckpt_path=last if last.exists() else None)
    trainer.save_checkpoint(folder / "unfinished.ckpt", weights_only=True)
    os.replace(folder / "unfinished.ckpt", trained)
    return trained


def main(path: str, folder: Path) -> None:
    torch.set_num_threads(1)
    recipe = tomllib.loads(Path(path).read_text())
    weights = None
    for name, stage in recipe["stages"].items():
        weights = train(recipe, stage, folder / name, weights)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
