"""A small causal model that learns from genomes on two CPU cores in a minute or two.

The base to come is predicted from the last 4, 6 and 8 bases, each an entry of an embedding table, and from causal dilated
convolutions that reach about 190 bases back. It emits one of five things: A, C, G, T or anything else.
"""

from __future__ import annotations

import math

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F

KMERS = (4, 6, 8)
DILATIONS = (3, 6, 12, 24, 48, 96)
OTHER = 4
"""The class of every token that is none of the four bases."""


class TinyGenomeModel(pl.LightningModule):
    """Embedded k-mers, a running mean, and gated dilated convolutions.

    Args:
        width: features a position.
        learning_rate: of Adam, at its highest.
        warmup_steps: optimizer steps until it is that high; it then falls along a cosine.
    """

    def __init__(self, width: int = 48, learning_rate: float = 6e-3, warmup_steps: int = 40) -> None:
        super().__init__()
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        classes = torch.full((256,), OTHER)
        classes[list(b"ACGT")] = torch.arange(4)
        self.register_buffer("classes", classes)  # token id -> class
        self.last = nn.Embedding(5, width)
        self.kmers = nn.ModuleList(nn.Embedding(4**k, width) for k in KMERS)
        for table in self.kmers:
            nn.init.normal_(table.weight, std=0.02)
        self.mean = nn.Linear(width, width)
        self.layers = nn.ModuleList(nn.Linear(2 * width, 2 * width) for _ in DILATIONS)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (B, T, 5) of the next token's class; position t sees tokens 0 to t only.

        Args:
            tokens: (B, T) int64.
        """
        classes = self.classes[tokens]
        length = tokens.shape[1]
        x = self.last(classes)  # (B, T, width)
        base = classes.clamp(max=3)
        kmer = base  # the number that the last k bases spell
        for k in range(2, max(KMERS) + 1):
            kmer = kmer + back(base, k - 1) * 4 ** (k - 1)
            if k in KMERS:
                x = x + self.kmers[KMERS.index(k)](kmer)
        x = x + self.mean(x.cumsum(1) / (torch.arange(1, length + 1, device=x.device)[:, None] + 20))
        for dilation, layer in zip(DILATIONS, self.layers, strict=True):
            x = x + F.glu(layer(torch.cat([x, back(x, dilation)], dim=-1)), dim=-1)
        return self.out(self.norm(x))

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean of -ln p(label) over the labels that count, in nats."""
        logits = self(batch["tokens"])
        each = F.cross_entropy(logits.flatten(0, 1), self.classes[batch["labels"]].flatten(), reduction="none")
        counts = batch["loss_mask"].flatten()
        return (each * counts).sum() / counts.sum()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss of a micro batch."""
        return self.loss(batch)

    def configure_optimizers(self) -> dict[str, object]:
        """Adam, warmed up, then down along a cosine to the last step."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate, betas=(0.9, 0.99), fused=True)
        steps = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            return min(1, (step + 1) / self.warmup_steps) * (0.5 + 0.5 * math.cos(math.pi * min(1, step / steps)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def back(x: torch.Tensor, steps: int) -> torch.Tensor:
    """Return x (B, T, ...) as it was `steps` positions ago, zeros before the start."""
    zeros = torch.zeros_like(x[:, :steps])
    return torch.cat([zeros, x[:, : x.shape[1] - steps]], dim=1)
