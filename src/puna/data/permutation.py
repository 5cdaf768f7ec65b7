"""A seeded permutation of `0 ... n-1` that is computed, not stored: the order of an epoch needs no memory.

A generalised Feistel network over the pairs `(left, right)` with `left < a`, `right < b`, `a * b >= n`: each round
adds a hash of one half to the other, modulo its size, which can be undone, so the whole is a bijection on `a * b`
places. A place outside `0 ... n-1` is sent on until it falls inside ("cycle walking"); fewer than `2 / sqrt(n)` of
the places need it. Only integer arithmetic with defined overflow is used: the order is the same on every machine
and NumPy version.

Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, methods 2 and 3.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6


def seed_of(*parts: int | str) -> int:
    """A 64-bit seed that depends on every part."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a good 64-bit hash of each value.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 16.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Permutation:
    """A permutation of `0 ... n-1`.

    Args:
        n: Size, at least 1.
        seed: 64 bits; each seed has its own order.
    """

    def __init__(self, n: int, seed: int) -> None:
        assert n >= 1, f"n is {n}"
        self._n = np.uint64(n)
        side = math.isqrt(n - 1) + 1
        self._a, self._b = np.uint64(side), np.uint64(-(-n // side))
        keys = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        self._keys = mix(keys ^ np.uint64(seed))

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """What stands at each place of the order."""
        values = self._network(places.astype(np.uint64))
        while (outside := np.flatnonzero(values >= self._n)).size:
            values[outside] = self._network(values[outside])
        return values.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values % self._a, values // self._a
        for index, key in enumerate(self._keys):
            if index % 2:
                right = (right + mix(left + key) % self._b) % self._b
            else:
                left = (left + mix(right + key) % self._a) % self._a
        return left + self._a * right


def shuffled(n: int, seed: int) -> NDArray[np.int64]:
    """A random order of a few things, by sorting hashes."""
    return np.argsort(mix(np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(seed)))
