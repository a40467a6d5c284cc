"""Stitch marks, the `@` and `#` of stitched transcripts: tokens of their own, whose labels never count in the loss. Pure.

Where one token is one letter, their weight in the tables of weights is 0. All other tokenizers are refused for such windows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sharded_eden.format.schema import STITCH_MARKS

LEAST_PLAIN = ord("A")
"""The first byte that is a letter: stitch marks are below. So one comparison shows whether a window has any."""


def weighs_plainly(weights: NDArray[np.float32] | None) -> bool:
    """Return whether all letters have weight 1; `weights` (256,) float32 of each byte as a label, None for none."""
    return weights is not None and bool((weights[LEAST_PLAIN:] == 1).all())


def marks_alone_are_below(codes: NDArray[np.uint8]) -> bool:
    """Return whether all printable bytes below `LEAST_PLAIN` in codes, of any shape, are stitch marks.

    Then the comparison with `LEAST_PLAIN` gives plain weights, in a fifth of the time of a lookup in their table.
    """
    below = np.count_nonzero(codes - np.uint8(_LEAST) < LEAST_PLAIN - _LEAST)
    return not below or below == sum(np.count_nonzero(codes == ord(mark)) for mark in STITCH_MARKS)


_LEAST = ord(" ")


def has_stitch_marks(bases: NDArray[np.uint8]) -> bool:
    """Return whether bases, (n,) uint8, hold stitch marks."""
    return any(bool((bases == ord(mark)).any()) for mark in STITCH_MARKS)


def refuse_stitch_marks(bases: NDArray[np.uint8]) -> None:
    """Raise an error for stitch marks in bases, (n,) uint8, for a tokenizer that could put them into a token with bases.

    Raises:
        UnicodeError: with the first one.
    """
    if has_stitch_marks(bases):
        mark = next(chr(base) for base in bases.tolist() if chr(base) in STITCH_MARKS)
        raise UnicodeError(
            f"{mark!r} joins parts of a stitched transcript and must not count in the loss, which needs a tokenizer with one "
            "id per letter"
        )
