"""How messages quote values and names."""

from __future__ import annotations

import os

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
        (Broken(), "<Broken>"),
    ],
)
def test_quoted_values(value: object, expected: str) -> None:
    assert shown(value) == expected


def test_quoted_values_are_bounded() -> None:
    assert shown(10**5000) == "<int>"
    for value in ("\0" * 100, ["A" * 1000] * 1000, {str(i): i for i in range(1000)}, 10**300, "é" * 1000):
        assert len(shown(value)) <= 90


def test_names_without_quotes() -> None:
    assert printable("reads.fa") == "reads.fa"
    assert printable(os.fsdecode(b"a\xff\x1b[2J.fa")) == r"a\xff\x1b[2J.fa"
    assert printable("a \ud800 é") == r"a \ud800 é"
    assert printable("A" * 100, limit=8) == "AAAAAAAA..."
