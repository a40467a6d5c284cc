"""(seed, epoch, position) -> window index: a keyed bijection of [0, N), evaluated anywhere in O(1) memory. Pure.

An unbalanced Feistel network over the smallest 2**bits >= N, walked along its cycle until the value falls below N again: since
the network is a bijection of [0, 2**bits), the walk is one of [0, N). Fewer than two steps are needed on average.

Sources: Luby and Rackoff, "How to construct pseudorandom permutations from pseudorandom functions", SIAM J. Comput. 17, 1988
(Feistel networks); Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002 (cycle walking); Steele, Lea and
Flood, OOPSLA 2014 (the mixing inside a round). Not cryptography: there are as many rounds as it takes for statistics to be
unable to tell the order from a uniform one, see tests/test_order.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sharded_eden.errors import UsageError
from sharded_eden.seeds import derive_keys

MAX_LENGTH = 1 << 62
ROUNDS = 12

_U = np.uint64
_MULTIPLIER = _U(0x9E3779B97F4A7C15)
_SECOND = _U(0xD6E8FEB86659FD93)
_HALF = _U(32)


class Order:
    """The order in which epoch `epoch` visits `length` windows.

    Args:
        length: N, the number of windows, 0 to 2**62.
        seed: the job's seed.
        epoch: the pass over the data; each has an order of its own.

    Raises:
        UsageError: a length outside that range.
    """

    def __init__(self, length: int, seed: int, epoch: int) -> None:
        if not 0 <= length <= MAX_LENGTH:
            raise UsageError(f"an order needs 0 to 2**62 windows, not {length}")
        self.length = length
        bits = max(2, (length - 1).bit_length())
        # The value is (left, right): a round mixes one side into the other, by turns.
        self._right_bits = _U(bits // 2)
        self._right_mask = _U((1 << (bits // 2)) - 1)
        self._left_shift = _U(64 - (bits - bits // 2))
        self._right_shift = _U(64 - bits // 2)
        self._keys = tuple(_U(key) for key in derive_keys(ROUNDS, "order", seed, epoch, length))

    def __call__(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Return the window index at each position.

        Args:
            positions: (n,) integers in [0, length).

        Returns:
            (n,) int64, a bijection of [0, length).

        Raises:
            IndexError: a position outside [0, length).
        """
        values = np.array(positions, dtype=np.uint64)
        if values.size and int(values.max()) >= self.length:
            raise IndexError(f"position {int(values.max())} is outside an order of {self.length} windows")
        values = self._network(values)
        outside = np.flatnonzero(values >= _U(self.length))
        while outside.size:
            walked = self._network(values[outside])
            values[outside] = walked
            outside = outside[walked >= _U(self.length)]
        return values.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the image of each value under the bijection of [0, 2**bits)."""
        left = values >> self._right_bits
        right = values & self._right_mask
        for k in range(0, ROUNDS, 2):
            left ^= _scramble(right, self._keys[k], self._left_shift)
            right ^= _scramble(left, self._keys[k + 1], self._right_shift)
        return (left << self._right_bits) | right


def _scramble(half: NDArray[np.uint64], key: np.uint64, shift: np.uint64) -> NDArray[np.uint64]:
    """Return the top bits of a keyed hash of each value."""
    mixed = (half ^ key) * _MULTIPLIER
    mixed ^= mixed >> _HALF
    mixed *= _SECOND
    mixed ^= mixed >> _HALF
    mixed *= _MULTIPLIER
    mixed >>= shift
    return mixed
