# SPDX-License-Identifier: MIT
"""The pseudo-random numbers of Mesa's tests: std::mt19937 with libstdc++'s distributions, glibc's rand().

Mesa's test_executor.cpp takes weights, biases and inputs from xtensor (0.24, ``xt::random``), whose default
engine is std::mt19937 and which fills arrays in storage order; the scales of ADD come from rand(). One of
our tests compiles a program against Debian's libxtensor-dev, and compares its numbers with these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = 1 << 32
_RAND_MAX = 0x7FFFFFFF


class Twister:
    """std::mt19937 with the distributions of libstdc++ 11 and later."""

    def __init__(self, seed: int) -> None:
        # numpy's legacy seeding by a whole number is the standard's.
        self._generator = np.random.MT19937()
        self._generator._legacy_seeding(seed)

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return the next ``count`` outputs of the engine, 32 bits each."""
        raw: NDArray[np.uint64] = self._generator.random_raw(count)
        return raw

    def integers(self, count: int, low: int, high: int) -> NDArray[np.int64]:
        """Return whole numbers of ``low``..``high`` - 1, as ``xt::random::randint``.

        libstdc++'s std::uniform_int_distribution: the upper half of word * range, some words left out
        (bits/uniform_int_dist.h, _S_nd).
        """
        span = high - low
        threshold = np.uint64(_WORD % span)
        parts: list[NDArray[np.uint64]] = []
        missing = count
        while missing:
            products = self.words(missing) * np.uint64(span)
            kept = products[(products & np.uint64(_WORD - 1)) >= threshold]
            parts.append(kept >> np.uint64(32))
            missing -= kept.size
        values = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
        return values.astype(np.int64) + low

    def bytes(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return bytes of 0..254, as ``xt::random::randint<uint8_t>(shape, 0, 255)``."""
        count = int(np.prod(shape, dtype=np.int64))
        return self.integers(count, 0, 255).astype(np.uint8).reshape(shape)

    def floats(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return numbers of 0..1, as ``xt::random::rand<float>(shape)``."""
        count = int(np.prod(shape, dtype=np.int64))
        values = self.words(count).astype(np.float32) / np.float32(_WORD)
        below_one = np.nextafter(np.float32(1), np.float32(0))
        return np.minimum(values, below_one).reshape(shape)


class CRandom:
    """glibc's srand() and rand(): additive feedback over 31 words (stdlib/random_r.c, TYPE_3)."""

    def __init__(self, seed: int) -> None:
        state = [seed or 1]
        for _ in range(30):
            # Schrage's method on signed words, as srandom_r computes it.
            high, low = divmod(abs(state[-1]), 127773)
            if state[-1] < 0:
                high, low = -high, -low
            word = 16807 * low - 2836 * high
            state.append(word + _RAND_MAX if word < 0 else word)
        self._state = [word % _WORD for word in state]
        self._front, self._rear = 3, 0
        for _ in range(310):
            self.number()

    def number(self) -> int:
        """Return the next number, 0 to 2**31 - 1."""
        value = (self._state[self._front] + self._state[self._rear]) % _WORD
        self._state[self._front] = value
        self._front = (self._front + 1) % 31
        self._rear = (self._rear + 1) % 31
        return value >> 1

    def fraction(self, low: float, high: float) -> Any:
        """Return a float32 of ``low``..``high``, as ``randf`` of test_executor.cpp on arm64.

        GCC contracts its product and sum into one fused operation there: computed in double precision,
        where the product is exact, and rounded once.
        """
        first, last = np.float32(low), np.float32(high)
        part = np.float32(np.float32(self.number()) / np.float32(_RAND_MAX))
        return np.float32(np.float64(last - first) * np.float64(part) + np.float64(first))
