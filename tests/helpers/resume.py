"""The resume assertion: for any history of crashes, the rows trained on are the uninterrupted stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch


def row_hashes(tokens: torch.Tensor) -> list[str]:
    """One short hash for each row of a (B, T) batch of tokens."""
    return [hashlib.sha256(row.contiguous().numpy().tobytes()).hexdigest()[:16] for row in tokens]


def assert_same_stream(global_batches: Iterable[Sequence[str]], expected: Sequence[str]) -> None:
    """Check that the global batches, in order, are the expected rows: none twice, missing or moved."""
    seen = [row for batch in global_batches for row in batch]
    for position, (row, wanted) in enumerate(zip(seen, expected, strict=False)):
        assert row == wanted, f"position {position}: {row} instead of {wanted}"
    assert len(seen) == len(expected)
