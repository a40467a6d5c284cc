"""A small causal model of DNA that learns on two CPU cores in about a minute.

Input: batches of `ShardedEdenDataset` with the built-in tokenizer (one id per byte: PAD 0, BOS 1, EOS 2, SEP 3, `A` 65,
`C` 67, `G` 71, `T` 84). Output: `train_loss` and `val_loss`, the masked mean of -ln p(next base) in nats.
Cost: 3.4 million weights, most of them rows of the table of 8-mers, of which a step reads few; about 4 million
multiply-adds per base for a training step.

The hidden state of a position is the sum of three causal views of the bases up to and including that position:

    last 4, 6 and 8 bases      one learned vector per k-mer           what usually follows this k-mer
    mean of all bases so far   through one matrix                     which genome this is
    gated dilated convolutions steps of 3, 6, 12, 24, 48, 96 bases    the position in the codon, and whether this is a gene

It predicts five classes: A, C, G, T, and any other letter; p is normalised over all five.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

Batch = dict[str, Tensor]


def shift(x: Tensor, steps: int, positions: Tensor) -> Tensor:
    """Shift the last axis to the right by `steps` within each window; positions without a predecessor get zero.

    Args:
        x: (B, ..., T).
        steps: bases.
        positions: (B, T) int64, positions within a window; in a packed row they restart at each window.
    """
    moved = F.pad(x, (steps, 0))[..., : x.shape[-1]]
    inside = positions >= steps
    return moved * (inside if x.dim() == 2 else inside[:, None]).to(x.dtype)


class TinyGenomeModel(pl.LightningModule):
    """Predicts the next base from k-mer embeddings, a running mean and dilated causal convolutions.

    Args:
        width: channels of the hidden state.
        kmers: lengths k of the k-mers; each length has an embedding table of 4 ** k rows.
        dilations: steps in bases of the convolutions; multiples of 3 keep the reading frame.
        learning_rate: the maximum, after 40 steps of warm-up; a cosine schedule then decreases it to zero.
        total_steps: optimizer steps until the rate is zero; None uses the trainer's number of steps.
    """

    classes: Tensor  # (256,) int64

    def __init__(
        self,
        width: int = 48,
        kmers: Sequence[int] = (4, 6, 8),
        dilations: Sequence[int] = (3, 6, 12, 24, 48, 96),
        learning_rate: float = 1e-2,
        total_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.kmers, self.dilations = tuple(kmers), tuple(dilations)
        self.learning_rate, self.total_steps = learning_rate, total_steps
        classes = torch.full((256,), 4)  # token id -> class: 0-3 are A, C, G, T; 4 is any other letter
        classes[list(b"ACGT")] = torch.arange(4)
        self.register_buffer("classes", classes, persistent=False)
        self.letter = nn.Embedding(5, width)
        self.words = nn.ModuleList(nn.Embedding(4**k, width) for k in self.kmers)
        for weight in self.words.parameters():
            nn.init.normal_(weight, std=0.02)
        self.mean = nn.Conv1d(width, width, 1)
        self.layers = nn.ModuleList(nn.Conv1d(2 * width, 2 * width, 1) for _ in dilations)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return (B, T, 5) logits of the token after each of `tokens` (B, T) int64.

        No logit depends on a later token or on another window of a packed row: `positions` (B, T) int64 restart at each window.
        """
        letters = self.classes[tokens]  # (B, T) int64
        bases = letters.clamp(max=3)
        x = self.letter(letters)
        for k, table in zip(self.kmers, self.words, strict=True):
            x = x + table(sum(shift(bases, j, positions) * 4**j for j in range(k)))
        x = x.transpose(1, 2)  # (B, width, T)
        # The cumulative sum within a window: that of the row minus its value before the window.
        total = x.cumsum(-1)
        begun = (torch.arange(x.shape[-1], device=x.device) - positions)[:, None].expand_as(x)
        x = x + self.mean((total - (total - x).gather(-1, begun)) / (positions[:, None] + 21))
        for dilation, layer in zip(self.dilations, self.layers, strict=True):
            x = x + F.glu(layer(torch.cat([x, shift(x, dilation, positions)], dim=1)), dim=1)
        logits: Tensor = self.head(self.norm(x.transpose(1, 2)))
        return logits

    def losses(self, batch: Batch) -> Tensor:
        """Return (B, T) float32: -ln p(label) in nats where `loss_mask` is 1, else 0."""
        logits = self(batch["tokens"], batch["position_ids"])
        nats = F.cross_entropy(logits.transpose(1, 2), self.classes[batch["labels"]], reduction="none")
        return nats * batch["loss_mask"]

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean of `losses` over the labels with `loss_mask` 1, in nats per base."""
        return self.losses(batch).sum() / batch["loss_mask"].sum().clamp(min=1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Log `train_loss` and return it."""
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log `val_loss`; the epoch mean weights every base equally."""
        self.log("val_loss", self.loss(batch), prog_bar=True, batch_size=int(batch["loss_mask"].sum()))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return Adam with 40 steps of warm-up and a cosine schedule that reaches zero at `total_steps`."""
        total_steps = self.total_steps or self.trainer.estimated_stepping_batches
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate, betas=(0.9, 0.99), fused=True)

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / 40) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
