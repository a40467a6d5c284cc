"""Checks before timing: contenders that claim to give the same training example must do so, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.checksum import digest
from benchmarks.data import World

CHECKED_WINDOWS = 50


class NotTheSameExample(Exception):
    """The examples of a contender differ from what it claims."""


def windows_to_check(world: World) -> list[int]:
    """Return windows at random places, the first and the last."""
    total = len(world.order)
    return [0, total - 1, *(int(window) for window in world.order[: CHECKED_WINDOWS - 2])]


def compare(name: str, expected: list[str], found: Iterable[str]) -> None:
    """Raise an error if the checksums of a contender differ.

    Raises:
        NotTheSameExample: with the number of examples that differ.
    """
    found = list(found)
    wrong = sum(a != b for a, b in zip(expected, found, strict=True))
    if wrong:
        raise NotTheSameExample(f"{name}: {wrong} of {len(expected)} examples differ from the naive loader's")


__all__ = ["NotTheSameExample", "compare", "digest", "windows_to_check"]
