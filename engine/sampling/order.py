"""A seeded, uniform order without replacement of the pairs of a cell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Order:
    """A uniformly random order of 0 … `total` − 1, drawn as far as it is asked for.

    Draws with replacement, in the order in which each number first comes up, are such an order. The second half, for
    which that would take ever more draws, is a permutation of what is left. A billion pairs cost nothing until then.
    """

    def __init__(self, total: int, *seed: int) -> None:
        self._total = total
        self._generator = np.random.default_rng(seed)
        self._drawn = np.zeros(0, np.int64)
        self._order = np.zeros(0, np.int64)

    def first(self, count: int) -> Ints:
        """Return the first `count` numbers of the order, int64; a longer answer begins with every shorter one."""
        half = self._total // 2
        while len(self._order) < min(count, half):
            more = self._generator.integers(self._total, size=max(1024, len(self._drawn)))
            self._drawn = np.concatenate([self._drawn, more])
            _, places = np.unique(self._drawn, return_index=True)
            self._order = self._drawn[np.sort(places)][:half]
        if count > len(self._order):
            left = np.ones(self._total, dtype=bool)
            left[self._order] = False
            self._order = np.concatenate([self._order, self._generator.permutation(np.flatnonzero(left))])
        return self._order[:count]
