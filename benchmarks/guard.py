"""Before anything is timed: contenders that claim the same training example must give it, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from benchmarks.data import World

CHECKED_WINDOWS = 50
FIELDS = {
    "tokens": torch.int64,
    "labels": torch.int64,
    "loss_mask": torch.float32,
    "position_ids": torch.int64,
}


class NotTheSameExample(Exception):
    """A contender gives something else than it claims."""


def windows_to_check(world: World) -> list[int]:
    """Return windows at random places, the first and the last."""
    total = len(world.order)
    return [0, total - 1, *(int(window) for window in world.order[: CHECKED_WINDOWS - 2])]


def digest(example: dict[str, Any]) -> str:
    """Return a checksum of one example: dtypes, shapes and values of its four tensors."""
    checksum = hashlib.sha256()
    for name in FIELDS:
        tensor = example[name]
        checksum.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        checksum.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return checksum.hexdigest()


def compare(name: str, expected: list[str], found: Iterable[str]) -> None:
    """Refuse a contender whose checksums differ.

    Raises:
        NotTheSameExample: with the number of examples that differ.
    """
    found = list(found)
    wrong = sum(a != b for a, b in zip(expected, found, strict=True))
    if wrong:
        raise NotTheSameExample(f"{name}: {wrong} of {len(expected)} examples differ from the naive loader's")
