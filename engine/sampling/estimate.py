"""The model-assisted difference estimator of a cell, with a 95 % interval over the pairs that were not drawn.

Sources: Cassel, Särndal and Wretman, Biometrika 63 (1976), for the estimator; Chernozhukov et al., The Econometrics
Journal 21 (2018), for the cross-fitting; Chow and Robbins, The Annals of Mathematical Statistics 36 (1965), for
stopping at a width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from .control import FOLDS, Expected, Ridge
from .order import Ints
from .strata import Floats, Stratum

Z95: Final = 1.959963984540054
# Answers that the regression misses, added to those that were seen: where hardly any are, as with an accuracy near 0,
# their number says little of the variance (Agresti and Coull, The American Statistician 52, 1998, add two of a kind).
_ADDED = 2.0


@dataclass(frozen=True)
class Estimate:
    """A cell from `pairs` of its `total` pairs: the 95 % interval is `value` ± `half_width`.

    It is about these very pictures: what all pairs would have given. It holds at one look, or where sampling stops at
    a width; a claim that is looked at time and again needs a `ConfidenceSequence`. It is exact with all pairs only.
    """

    value: float
    half_width: float
    pairs: int
    total: int


class DifferenceEstimator:
    """The estimate of a cell from pairs that are drawn uniformly without replacement, and added in that order.

    Each pair is compared with what a regression on the other fold expects of it:

        value = Σ_f n_f/n · (mean over all pairs of m_f + mean over the pairs of fold f of (correct − m_f))

    all means weighted as the cell is. Whatever the regression is worth, its bias is far below the half-width: it comes
    from fold f being drawn from what the other fold has left.
    """

    def __init__(self, stratum: Stratum) -> None:
        self.stratum = stratum
        self.ridge = Ridge(stratum)
        self.picture, self.row = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.correct = np.zeros(0)

    def __len__(self) -> int:
        return len(self.correct)

    def add(self, picture: Ints, row: Ints, correct: Floats) -> None:
        """Add the pairs that were drawn next: pictures as places in the population, rows, and 1.0 or 0.0, [n] each."""
        self.ridge.add(picture, row, correct, (len(self) + np.arange(len(correct))) % FOLDS)
        self.picture, self.row = np.append(self.picture, picture), np.append(self.row, row)
        self.correct = np.append(self.correct, correct)

    def estimate(self) -> Estimate:
        """Return the estimate from the pairs so far, at least two of each fold; with all pairs it is exact."""
        stratum, n = self.stratum, len(self)
        weights = stratum.weights(self.picture, self.row)
        if n == stratum.total:
            return Estimate(float((weights * self.correct).mean()), 0.0, n, n)
        fits = [self.ridge.fit(without=fold) for fold in range(FOLDS)]
        fold = np.arange(n) % FOLDS
        value, squares = 0.0, 0.0
        for which, expected in enumerate(fits):
            left = weights[fold == which] * (self.correct - expected.of(self.picture, self.row))[fold == which]
            share = len(left) / n
            value += share * (stratum.weighted(*expected) / stratum.total + float(left.mean()))
            squares += share * float(left.var(ddof=1))
        # The folds are fitted on each other, which the variance within them leaves out: in replays with 100 classes,
        # and a coefficient for 11 pairs, it was a tenth too small.
        squares = (squares + _ADDED / n) * (1 + self.ridge.degrees() / n)
        drawn = n / stratum.total
        # The two regressions differ, which does not vanish as the pairs run out: half of the difference of two means,
        # each over half of the sample.
        disagreement = weights * (self._of(fits[0]) - self._of(fits[1]))
        variance = (1 - drawn) * squares / n + drawn * float(disagreement.var(ddof=1)) / (4 * n)
        return Estimate(value, Z95 * math.sqrt(variance), n, stratum.total)

    def _of(self, expected: Expected) -> Floats:
        return expected.of(self.picture, self.row)

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
                missed = (weights * (self.correct - self._of(expected)))[ours] / n
                np.add.at(left, (self.row[ours], classes[ours]), missed)
        return means + np.divide(left, shares, out=np.zeros_like(left), where=there)

    def _cells_of(self, expected: Expected) -> Floats:
        """Return the means of expectations by occluder and class, [K, K]; NaN where a class has no picture."""
        population = self.stratum.population
        with np.errstate(invalid="ignore"):
            sums = np.bincount(population.own, expected.by_picture, population.rows) / population.counts
        return expected.by_row[:, None] + sums[None, :]
