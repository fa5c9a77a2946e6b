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

from .control import FOLDS, Expectation, Ridge
from .order import Ints
from .strata import Floats, Stratum

Z95: Final = 1.959963984540054
# Answers that the regression misses, added to those that were seen: where hardly any are, as with an accuracy near 0 or
# beside a run in bf16, their number says little of the variance (Agresti and Coull, The American Statistician 52, 1998,
# add two of a kind). They weigh as much as any pair: those that count most are drawn least.
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

    all means weighted as the cell is. `ridge` makes the regressions. Whatever they are worth, the bias is far below the
    half-width: it comes from fold f being drawn from what the other fold has left.
    """

    def __init__(self, stratum: Stratum, ridge: Ridge[Expectation]) -> None:
        self.stratum = stratum
        self._ridge = ridge
        self.picture, self.row = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.correct = np.zeros(0)

    def __len__(self) -> int:
        return len(self.correct)

    def add(self, picture: Ints, row: Ints, correct: Floats) -> None:
        """Add the pairs that were drawn next: pictures as places in the population, rows, and 1.0 or 0.0, [n] each."""
        self._ridge.add(picture, row, correct, (len(self) + np.arange(len(correct))) % FOLDS)
        self.picture, self.row = np.append(self.picture, picture), np.append(self.row, row)
        self.correct = np.append(self.correct, correct)

    def estimate(self) -> Estimate:
        """Return the estimate from the pairs so far, at least two of each fold; with all pairs it is exact."""
        stratum, n = self.stratum, len(self)
        weights = stratum.weights(self.picture, self.row)
        if n == stratum.total:
            return Estimate(float((weights * self.correct).mean()), 0.0, n, n)
        fits = [self._ridge.fit(without=fold) for fold in range(FOLDS)]
        fold = np.arange(n) % FOLDS
        value, squares = 0.0, 0.0
        for which, expected in enumerate(fits):
            left = weights[fold == which] * (self.correct - expected.of(self.picture, self.row))[fold == which]
            share = len(left) / n
            value += share * (expected.mean(stratum) + float(left.mean()))
            squares += share * float(left.var(ddof=1))
        # The folds are fitted on each other, which the variance within them leaves out: in replays with 100 classes,
        # and a coefficient for 11 pairs, it was a tenth too small.
        squares = (squares + _ADDED * stratum.heaviest**2 / n) * (1 + self._ridge.degrees() / n)
        drawn = n / stratum.total
        # The two regressions differ, which does not vanish as the pairs run out: half of the difference of two means,
        # each over half of the sample.
        disagreement = weights * np.subtract(*(expected.of(self.picture, self.row) for expected in fits))
        variance = (1 - drawn) * squares / n + drawn * float(disagreement.var(ddof=1)) / (4 * n)
        return Estimate(value, Z95 * math.sqrt(variance), n, stratum.total)
