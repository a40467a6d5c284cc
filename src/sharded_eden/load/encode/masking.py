"""Masked language modelling: which bases of a window are masked, and what stands in their place. Pure.

    letters   A   C   g   N   T   A        0.8 of the masked bases become MASK, 0.1 one of A, C, G and T at random, and 0.1
    tokens    A  MASK g   N   C   A        stay as they are. N, other letters, special tokens and padding are never masked.
    labels    A   C   g   N   T   A        The labels are the tokens before masking, not shifted.
    loss      0   1   w   0   1   0        w is `soft_mask_weight`: g was masked, and stayed as it is.

What is masked depends on (seed, epoch, window index) and the place in the window alone: not on workers, batches, packing, or
the special tokens of a row. Place p of a window draws the 64-bit number p of a SplitMix64 generator, whose state is the key of
the window. Its highest 32 bits decide whether a span begins there, the next 24 what becomes of that span, and the lowest 2 the
random base.

Input: the letters of a window. Output: one byte per letter; a masked base becomes a code from `FIRST_MASKED` on, which says
both its letter and its token. So compact batches hold masked rows in one byte per token.

Sources: Devlin et al., "BERT", NAACL 2019 (0.15 masked; 0.8, 0.1 and 0.1); Joshi et al., "SpanBERT", TACL 2020 (one decision
for all bases of a span); Steele, Lea and Flood, OOPSLA 2014 (SplitMix64).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import UsageError
from sharded_eden.shuffle import MASK64, derive_keys, mix64, mix64_in_place

LETTERS = b"ACGTacgt"
"""The letters that are masked."""

FIRST_MASKED = 128
"""The code of `A` that is masked by MASK. Code `FIRST_MASKED + 5 * letter + token`: token 0 is MASK, 1 to 4 are A, C, G, T."""

TOKENS_EACH = 5

MOST_SPAN = 1 << 20
"""The longest span: the memory of a masked window grows with it."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK_BELOW = np.uint32(round(0.8 * (1 << 24)) << 8)
_RANDOM_BELOW = np.uint32(round(0.9 * (1 << 24)) << 8)
_KEPT = TOKENS_EACH


def _make_codes() -> NDArray[np.uint8]:
    """Return the code of each letter under each token, and under itself last: (6 * 256,) uint8; of other bytes, themselves."""
    codes = np.tile(np.arange(256, dtype=np.uint8), (TOKENS_EACH + 1, 1))
    for number, letter in enumerate(LETTERS):
        codes[:TOKENS_EACH, letter] = FIRST_MASKED + TOKENS_EACH * number + np.arange(TOKENS_EACH)
        codes[_KEPT, letter] = codes[1 + number % 4, letter]
    return codes.reshape(-1)


_CODES = _make_codes()


@dataclass(frozen=True)
class Masking:
    """How windows are masked.

    Raises:
        UsageError: a share that is not between 0 and 1, or a span below 1.
    """

    mask_id: int
    """The id of MASK."""
    share: float = 0.15
    """The expected share of the bases that are masked."""
    span: int = 1
    """The length of masked spans, in bases. They may overlap, and are cut at the ends of a window."""
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"mlm_share must lie between 0 and 1, but is {self.share}")
        if self.span < 1:
            raise UsageError(f"mlm_span must be at least 1, but is {self.span}")
        if self.span > MOST_SPAN:
            raise UsageError(f"mlm_span must be at most {MOST_SPAN:,}, but is {self.span:,}")

    @property
    def begins_below(self) -> int:
        """A span begins where the highest 32 bits of a number are below this.

        A base is masked where any of `span` numbers begins a span: with probability 1 - (1 - q)**span = share.
        """
        begins: float = 1 - (1 - self.share) ** (1 / self.span)
        return min(max(1, round(begins * (1 << 32))), (1 << 32) - 1)

    @property
    def as_rows(self) -> dict[str, int | float]:
        """What a checkpoint compares: masks decide the tokens of a row."""
        return {"mlm_mask_id": self.mask_id, "mlm_share": self.share, "mlm_span": self.span}

    def mask(self, letters: NDArray[np.uint8], epoch: int, window_idx: int) -> None:
        """Replace the masked bases of a window by their codes.

        Args:
            letters: (n,) uint8, the bases that the row shows, on their strand; written.
            epoch: the pass.
            window_idx: the window.
        """
        if not len(letters):
            return
        (key,) = derive_keys(1, "mlm", self.seed, epoch)
        state = mix64((window_idx * _GOLDEN + key) & MASK64)
        before = self.span - 1  # spans that begin before the window reach into it
        numbers = _steps(len(letters) + before) + np.uint64(state)
        mix64_in_place(numbers)
        begins = numbers < np.uint64(self.begins_below << 32)
        if before:
            latest = np.maximum.accumulate(np.where(begins, np.arange(len(numbers)), -self.span))
            latest = latest[before:]  # of each base: where the latest span at or before it begins
            places = np.flatnonzero(np.arange(before, len(numbers)) - latest <= before)
            decision = numbers[latest[places]].astype(np.uint32)  # the lowest 32 bits
            random = numbers[places + before].astype(np.uint8)
        else:
            places = np.flatnonzero(begins)
            decision = numbers[places].astype(np.uint32)
            random = decision.astype(np.uint8)
        random &= 3
        token = np.where(decision < _RANDOM_BELOW, random + np.uint8(1), np.uint8(_KEPT)).astype(np.intp)
        token[decision < _MASK_BELOW] = 0
        letters[places] = _CODES[token * 256 + letters[places]]


@lru_cache(maxsize=4)
def _steps(count: int) -> NDArray[np.uint64]:
    """Return what the generator adds to its state for the numbers 0 to `count` - 1: (count,) uint64."""
    return np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)


def masked_codes(
    ids: NDArray[np.int64], mask_id: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
    """Return the codes of masked bases, and of each its letter and the id of its token: (40,) each.

    Args:
        ids: (256,) int64, the id of each letter.
        mask_id: the id of MASK.
    """
    letters = np.repeat(np.frombuffer(LETTERS, dtype=np.uint8), TOKENS_EACH)
    codes = (FIRST_MASKED + np.arange(len(letters))).astype(np.uint8)
    return codes, letters, np.tile([mask_id, *ids[list(b"ACGT")]], len(LETTERS))
