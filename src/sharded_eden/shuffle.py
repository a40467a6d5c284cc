"""Seeds to keys, and a keyed bijection of [0, N) that is evaluated anywhere in O(1) memory. Pure.

Seeds are never added to one another: a key is BLAKE2b (RFC 7693) over the whole tuple, so neighbouring seeds, epochs and
purposes are independent.

The permutation is an unbalanced Feistel network over the smallest 2**bits >= N, applied repeatedly until the value is
below N ("cycle walking"): since the network is a bijection of [0, 2**bits), the result is a bijection of [0, N). Fewer
than two steps are needed on average.

Sources: Luby and Rackoff, "How to construct pseudorandom permutations from pseudorandom functions", SIAM J. Comput. 17, 1988
(Feistel networks); Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002 (cycle walking); Steele, Lea and
Flood, OOPSLA 2014 (the mixing inside a round). This is not cryptography: the number of rounds is the smallest for which
statistical tests cannot tell the result from a uniform permutation, see tests/train/test_order.py.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sharded_eden.errors import UsageError

MASK64 = (1 << 64) - 1


@lru_cache(maxsize=256, typed=True)
def derive_keys(count: int, *parts: int | str) -> tuple[int, ...]:
    """Return `count` independent 64-bit keys for a tuple such as ("strand", seed, epoch)."""
    # A NumPy integer or a bool must hash like the Python integer that it equals.
    message = repr(tuple(p if isinstance(p, str) else operator.index(p) for p in parts)).encode()
    return tuple(
        int.from_bytes(blake2b(message, digest_size=8, salt=k.to_bytes(16, "little")).digest(), "little")
        for k in range(count)
    )


def mix64(value: int) -> int:
    """Return a 64-bit integer in which every bit depends on every bit of `value`.

    The finalizer of SplitMix64. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
    with the constants of Stafford's variant 13.
    """
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)


def mix64_many(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return `mix64` of each value, (n,) uint64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def mix64_in_place(values: NDArray[np.uint64]) -> None:
    """Replace each value, (n,) uint64, by its `mix64`: several times faster than `mix64_many`, which allocates."""
    shifted = np.empty_like(values)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(values, np.uint64(shift), out=shifted)
        np.bitwise_xor(values, shifted, out=values)
        np.multiply(values, np.uint64(factor), out=values)
    np.right_shift(values, np.uint64(31), out=shifted)
    np.bitwise_xor(values, shifted, out=values)


EPOCHS = 1 << 63
"""Epochs are below this: access logs have 8 bytes for one."""
MAX_LENGTH = 1 << 62
ROUNDS = 12

FEW = 6
"""Up to this many values, Python integers are faster: a NumPy call costs the same for one value as for a hundred."""

_MULTIPLIER = 0x9E3779B97F4A7C15
_SECOND = 0xD6E8FEB86659FD93
_HALF = 32
_WORD = (1 << 64) - 1


def _u64(value: int) -> NDArray[np.uint64]:
    """Return a constant as an array without dimensions, which NumPy handles fastest."""
    return np.array(value, dtype=np.uint64)


_MULTIPLIER_U64, _SECOND_U64, _HALF_U64 = _u64(_MULTIPLIER), _u64(_SECOND), _u64(_HALF)


class Permutation:
    """A bijection of [0, length).

    Args:
        length: N, 0 to 2**62.
        key: selects the bijection: a purpose and numbers, hashed together with the length.

    Raises:
        UsageError: a length outside that range.
    """

    def __init__(self, length: int, *key: int | str) -> None:
        if not 0 <= length <= MAX_LENGTH:
            raise UsageError(f"an order needs 0 to 2**62 windows, not {length}")
        self.length = length
        bits = max(2, (length - 1).bit_length())
        # The value is (left, right): rounds mix one side into the other, alternately.
        self._right_bits = bits // 2
        self._left_shift = 64 - (bits - bits // 2)
        self._right_shift = 64 - bits // 2
        self._keys = tuple(derive_keys(ROUNDS, *key, length))
        self._keys_u64 = tuple(_u64(each) for each in self._keys)
        shifts = self._right_bits, self._left_shift, self._right_shift
        self._parameters = np.array([*self._keys, *shifts, length], dtype=np.uint64)

    def __call__(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Return the image of each position.

        Args:
            positions: (n,) integers in [0, length).

        Returns:
            (n,) int64, a bijection of [0, length).

        Raises:
            IndexError: a position outside [0, length).
        """
        try:
            values = np.array(positions, dtype=np.uint64)
        except OverflowError:  # below 0, or beyond 64 bits
            raise IndexError(f"a position is outside an order of {self.length} windows") from None
        if values.size and int(values.max()) >= self.length:
            raise IndexError(f"position {int(values.max())} is outside an order of {self.length} windows")
        outside: NDArray[np.int64] | None = None  # values that are still outside [0, length); None: all of them
        while values.size > FEW and (outside is None or outside.size > FEW):
            walked = self._network(values if outside is None else values[outside])
            if outside is None:
                values = walked
                outside = np.flatnonzero(values >= self.length)
            else:
                values[outside] = walked
                outside = outside[walked >= self.length]
        for k in range(values.size) if outside is None else outside.tolist():
            values[k] = self._walk(int(values[k]))
        return values.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the image of each value under the bijection of [0, 2**bits)."""
        right_bits, right_mask = _u64(self._right_bits), _u64((1 << self._right_bits) - 1)
        left_shift, right_shift = _u64(self._left_shift), _u64(self._right_shift)
        left, right = values >> right_bits, values & right_mask
        mixed, shifted = np.empty_like(left), np.empty_like(left)
        for k in range(0, ROUNDS, 2):
            left ^= _scramble(right, self._keys_u64[k], left_shift, mixed, shifted)
            right ^= _scramble(left, self._keys_u64[k + 1], right_shift, mixed, shifted)
        return (left << right_bits) | right

    def _walk(self, value: int) -> int:
        """Return the image of one value: the same network in Python integers."""
        right_bits, left_shift, right_shift = self._right_bits, self._left_shift, self._right_shift
        mask = (1 << right_bits) - 1
        while True:
            left, right = value >> right_bits, value & mask
            for k in range(0, ROUNDS, 2):
                mixed = (right ^ self._keys[k]) * _MULTIPLIER & _WORD
                mixed = (mixed ^ mixed >> _HALF) * _SECOND & _WORD
                left ^= ((mixed ^ mixed >> _HALF) * _MULTIPLIER & _WORD) >> left_shift
                mixed = (left ^ self._keys[k + 1]) * _MULTIPLIER & _WORD
                mixed = (mixed ^ mixed >> _HALF) * _SECOND & _WORD
                right ^= ((mixed ^ mixed >> _HALF) * _MULTIPLIER & _WORD) >> right_shift
            value = left << right_bits | right
            if value < self.length:
                return value


def _scramble(
    half: NDArray[np.uint64],
    key: NDArray[np.uint64],
    shift: NDArray[np.uint64],
    mixed: NDArray[np.uint64],
    shifted: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """Return the top bits of a keyed hash of each value, in the memory of `mixed`; `shifted` is written over."""
    np.bitwise_xor(half, key, out=mixed)
    np.multiply(mixed, _MULTIPLIER_U64, out=mixed)
    for factor in (_SECOND_U64, _MULTIPLIER_U64):
        np.right_shift(mixed, _HALF_U64, out=shifted)
        np.bitwise_xor(mixed, shifted, out=mixed)
        np.multiply(mixed, factor, out=mixed)
    return np.right_shift(mixed, shift, out=mixed)


def permute_each(permutations: Sequence[Permutation], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the image of each position under its own permutation: `permutations[k]([positions[k]])`, all at once.

    Args:
        permutations: (n,).
        positions: (n,) int64, each in [0, length) of its permutation.

    Raises:
        IndexError: a position outside.
    """
    if not len(permutations):
        return positions
    parameters = np.concatenate([each._parameters for each in permutations]).reshape(len(permutations), -1).T.copy()
    keys = parameters[:ROUNDS]  # (ROUNDS, n)
    right_bits, left_shift, right_shift, lengths = parameters[ROUNDS:]
    values = positions.astype(np.uint64)
    if (values >= lengths).any():
        raise IndexError("a position is outside of its order")
    right_mask = (np.uint64(1) << right_bits) - np.uint64(1)
    inputs = values
    outside = np.arange(len(values))
    while outside.size > FEW:
        left, right = inputs >> right_bits, inputs & right_mask
        mixed, shifted = np.empty_like(left), np.empty_like(left)
        for k in range(0, ROUNDS, 2):
            left ^= _scramble(right, keys[k], left_shift, mixed, shifted)
            right ^= _scramble(left, keys[k + 1], right_shift, mixed, shifted)
        walked = (left << right_bits) | right
        values[outside] = walked
        again = np.flatnonzero(walked >= lengths)
        outside, inputs = outside[again], walked[again]
        keys, lengths = keys[:, again], lengths[again]
        right_bits, right_mask, left_shift, right_shift = (
            part[again] for part in (right_bits, right_mask, left_shift, right_shift)
        )
    for k in outside.tolist():
        values[k] = permutations[k]._walk(int(values[k]))
    return values.astype(np.int64)
