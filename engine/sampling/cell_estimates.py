"""The estimator of a sampled run: that of a cell, and of its parts by occluder and class."""

from __future__ import annotations

import numpy as np

from .control import FOLDS, CleanRidge, Expected
from .estimate import DifferenceEstimator
from .strata import Floats, Stratum


class CellEstimator(DifferenceEstimator):
    """The difference estimator whose regression is on the clean answers."""

    def __init__(self, stratum: Stratum) -> None:
        self.ridge = CleanRidge(stratum)
        super().__init__(stratum, self.ridge)

    def expected_cells(self) -> Floats:
        """Return what is expected of occluder k on pictures of class c, [K, K], within 0 … 1.

        It is NaN where a class has no picture, and where this stratum has no pair: on the diagonal or off it. With all
        pairs it is what they gave.
        """
        known = len(self) == self.stratum.total
        found = self.unbiased_cells() if known else self._cells_of(self.ridge.fit())
        return np.where(self.stratum.shares() > 0, np.clip(found, 0, 1), np.nan)

    def unbiased_cells(self) -> Floats:
        """Return the estimate's parts by occluder k and class c, [K, K]; weighted by `shares` they sum to it.

        Each is unbiased, and rests on few pairs: it may lie outside of 0 … 1. It is 0 where there is no pair.
        """
        shares, n = self.stratum.shares(), len(self)
        there = shares > 0
        classes = self.stratum.population.own[self.picture]
        left, means = np.zeros_like(shares), np.zeros_like(shares)
        weights = self.stratum.weights(self.picture, self.row)
        if n == self.stratum.total:
            np.add.at(left, (self.row, classes), weights * self.correct / n)
        else:
            fold = np.arange(n) % FOLDS
            for which in range(FOLDS):
                expected, ours = self.ridge.fit(without=which), fold == which
                means += ours.mean() * np.where(there, self._cells_of(expected), 0)
                missed = (weights * (self.correct - expected.of(self.picture, self.row)))[ours] / n
                np.add.at(left, (self.row[ours], classes[ours]), missed)
        return means + np.divide(left, shares, out=np.zeros_like(left), where=there)

    def _cells_of(self, expected: Expected) -> Floats:
        """Return the means of expectations by occluder and class, [K, K]; NaN where a class has no picture."""
        population = self.stratum.population
        with np.errstate(invalid="ignore"):
            sums = np.bincount(population.own, expected.by_picture, population.rows) / population.counts
        return expected.by_row[:, None] + sums[None, :]
