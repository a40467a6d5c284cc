"""A Lightning job on a mixture, as a separate process: resumes from its last checkpoint, and records the rows of each step.

    python mixture_job.py MIXTURE.toml FOLDER STEPS

Appends to `FOLDER/rows.txt` one line for each micro batch: optimizer step, loss, hashes of rows.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from resume import row_hashes

from sharded_eden import ShardedEdenDataModule

OPTIONS: dict[str, Any] = {"seq_length": 1024, "packed": True, "compact": True, "rc_aug": True}
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


def main(mixture: str, folder: Path, steps: int) -> None:
    torch.set_num_threads(1)
    module = ShardedEdenDataModule(
        None, mixture=mixture, micro_batch_size=MICRO, global_batch_size=GLOBAL, num_workers=1, **OPTIONS
    )
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=5, save_last=True)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[saving],
        max_steps=steps, max_epochs=-1, default_root_dir=folder,
    )  # fmt: skip
    last = folder / "last.ckpt"
    trainer.fit(Model(folder / "rows.txt"), datamodule=module, ckpt_path=last if last.exists() else None)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
