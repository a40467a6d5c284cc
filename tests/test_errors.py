"""How messages quote values and names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sharded_eden.errors import printable, shown


class Broken:
    def __repr__(self) -> str:
        raise ValueError("no repr")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("c1", "'c1'"),
        ("it's", '"it\'s"'),
        (b"\xff", r"b'\xff'"),
        ("a\x1b[2J\ud800", r"'a\x1b[2J\ud800'"),
        ("A" * 80, f"'{'A' * 80}'"),
        ("A" * 81, f"'{'A' * 80}...'"),
        (b"A" * 3_000_000, f"b'{'A' * 80}...'"),
        (7, "7"),
        (None, "None"),
    ],
)
def test_quoted_values(value: object, expected: str) -> None:
    assert shown(value) == expected


def test_quoted_values_are_bounded() -> None:
    assert shown(10**5000) == "<int>"
    assert shown(Broken()).startswith("<Broken")
    for value in ("\0" * 100, ["A" * 1000] * 1000, {str(i): i for i in range(1000)}, 10**300, "é" * 1000):
        assert len(shown(value)) <= 90


def test_names_without_quotes() -> None:
    assert printable("reads.fa") == "reads.fa"
    assert printable(os.fsdecode(b"a\xff\x1b[2J.fa")) == r"a\xff\x1b[2J.fa"
    assert printable("a \ud800 é") == r"a \ud800 é"
    assert printable("A" * 100, limit=8) == "AAAAAAAA..."


class Lines:
    def __repr__(self) -> str:
        return "two\nlines \x1b[31m"


@pytest.mark.parametrize(
    "value",
    ["\ud800" * 1000, "\U000e0001" * 1000, b"\xff" * 10**6, bytearray(10**6), 10**1000, 10**10000, list(range(10**6)),
     {"k" * 1000: "v" * 1000}, [[[["x" * 1000] * 10] * 10] * 10], [Broken()], (b"\x00" * 10**6,), np.arange(10**6),
     Path("x" * 5000), Lines(), [Lines()], "\u202e"],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize("limit", [80, 12])
def test_every_value_is_bounded_and_printable(value: object, limit: int) -> None:
    text = shown(value, limit)
    assert len(text) <= limit + len("bytearray(b''...)")
    assert text.isprintable()
    text.encode()


def test_a_path_is_quoted_as_text() -> None:
    assert shown(Path("a") / "b") == "'a/b'"
