"""Keys and bits out of seeds. Pure; everything random in this package is a function of what is hashed here.

Seeds are never added to one another: a key is BLAKE2b (RFC 7693) over the whole tuple, so that neighbouring seeds, epochs
and purposes have nothing in common.
"""

from __future__ import annotations

import operator
from functools import lru_cache
from hashlib import blake2b

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
