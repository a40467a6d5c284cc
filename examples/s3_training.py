"""Lightning from object storage: killed at any time and started again, it goes on with the next window.

sharded-eden index SEQDB WINDOWS.db                      # before the upload of SEQDB to the URL
sharded-eden index --at s3://bucket/seqdb WINDOWS.db
python examples/s3_training.py s3://bucket/seqdb WINDOWS.db [--steps 20] [--checkpoint s3_training]
"""

from argparse import ArgumentParser
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy

from sharded_eden import ShardedEdenDataModule


class Model(pl.LightningModule):
    """The next base from this one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Embedding(256, 64), torch.nn.Linear(64, 256))

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Return the mean loss of a micro batch."""
        losses = cross_entropy(self.layers(batch["tokens"]).flatten(0, 1), batch["labels"].flatten(), reduction="none")
        loss = (losses * batch["loss_mask"].flatten()).sum() / batch["loss_mask"].sum()
        print(f"step {self.global_step + 1}   loss {loss.item():.4f}", flush=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def train(url: str, windows: str, seq_length: int, steps: int, checkpoint: str) -> None:
    """Train to a number of optimizer steps, those before the last checkpoint included."""
    # <docs>
    data = ShardedEdenDataModule(
        url, windows, seq_length=seq_length, micro_batch_size=2, global_batch_size=8, num_workers=2, rc_aug=True,
        requests_in_flight=32, request_seconds=60,
    )  # fmt: skip
    saved = Path(checkpoint) / "last.ckpt"
    trainer = pl.Trainer(
        max_steps=steps, accelerator="auto", devices=1, use_distributed_sampler=False, limit_val_batches=0,
        callbacks=[ModelCheckpoint(checkpoint, every_n_train_steps=1, save_top_k=0, save_last=True)],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Model(), data, ckpt_path=str(saved) if saved.exists() else None)
    # </docs>


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", metavar="URL", help="the sequence databases in object storage")
    parser.add_argument("windows", metavar="WINDOWS.db", help="the window database of the training split")
    parser.add_argument("--seq-length", type=int, default=8192, help="the window size of the window database")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps, earlier runs included")
    parser.add_argument("--checkpoint", default="s3_training", help="a folder to save to, and to go on from")
    train(**vars(parser.parse_args()))
