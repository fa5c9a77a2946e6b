"""A confidence sequence for a cell: a 95 % interval that holds at every look at once, so that a claim may stop early.

Source: Waudby-Smith and Ramdas, Confidence sequences for sampling without replacement, NeurIPS 2020 (empirical
Bernstein, Theorem 2), with a control variate: at each pair, what a regression on the pairs before expects of it, less
the mean of that over the pairs that are left, which is known. The increments stay a martingale, and the inequality
holds whatever the regression is worth.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from .control import Expected
from .order import Ints
from .strata import Floats, Stratum

_LARGEST: Final = 0.75  # of the bets; the inequality holds below 1


class ConfidenceSequence:
    """Bounds on a cell from pairs that are drawn uniformly without replacement, and added in that order.

    Parameters
    ----------
    stratum
        The cell's pairs.
    error
        Probability, at most, that the cell is ever outside of the bounds.

    Attributes
    ----------
    low, high
        The bounds so far; they only come closer.
    """

    def __init__(self, stratum: Stratum, error: float = 0.05) -> None:
        self._stratum, self._bar = stratum, math.log(2 / error)
        self.low, self.high = 0.0, 1.0
        self._picture, self._row = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._sum = 0.0  # of weight × correct so far
        # Sums over the pairs so far: bets × increments, bets × what the cell counts in them, and their variation.
        self._bet_on, self._bets, self._variation = 0.0, 0.0, 0.0
        self._squares = 0.25  # of the scaled differences: a first guess counts as one pair

    def __len__(self) -> int:
        return len(self._picture)

    def add(self, picture: Ints, row: Ints, correct: Floats, expected: Expected | None) -> None:
        """Add the pairs that were drawn next, [n] each, and what the pairs *before* them lead to expect.

        `expected` of None expects 1/2 of each pair, as before the first regression.
        """
        stratum = self._stratum
        total, before, n = stratum.total, len(self), len(correct)
        if expected is None:
            expected = Expected(np.full(len(stratum.population), 0.5), np.zeros(stratum.population.rows))
        weights = stratum.weights(picture, row)
        foreseen = weights * np.clip(expected.of(picture, row), 0, 1)
        past = stratum.weights(self._picture, self._row)
        earlier = past * np.clip(expected.of(self._picture, self._row), 0, 1)
        answers = weights * correct
        left = total - before - np.arange(n)  # pairs that were left when each was drawn
        of_left = (stratum.weighted_within(*expected) - earlier.sum() - _before(foreseen)) / left
        drawn = self._sum + _before(answers)
        # In 0 ± 1: a prediction within 0 … 1 misses by at most the weight.
        missed = (answers - foreseen) / stratum.heaviest
        spread = (self._squares + _before(missed**2)) / (before + np.arange(n) + 1)
        time = before + np.arange(1, n + 1)
        bets = np.minimum(np.sqrt(2 * self._bar / (spread * time * np.log1p(time))), _LARGEST)
        # Given the past, the mean of answers is (total · cell − drawn) / left, that of foreseen is `of_left`.
        bet_on = self._bet_on + np.cumsum(bets * (answers - foreseen + of_left + drawn / left))
        counted = self._bets + np.cumsum(bets * total / left)
        variation = self._variation + np.cumsum((-np.log1p(-bets) - bets) * missed**2)
        half_width = stratum.heaviest * (self._bar + variation) / counted
        # What is certain: pairs not drawn yet are all wrong, or all right.
        surely = drawn + answers
        weight_left = total - past.sum() - np.cumsum(weights)
        low = np.maximum(bet_on / counted - half_width, surely / total)
        high = np.minimum(bet_on / counted + half_width, (surely + weight_left) / total)
        self.low, self.high = max(self.low, float(low.max())), min(self.high, float(high.min()))
        self._bet_on, self._bets, self._variation = float(bet_on[-1]), float(counted[-1]), float(variation[-1])
        self._squares += float((missed**2).sum())
        self._sum += float(answers.sum())
        self._picture, self._row = np.append(self._picture, picture), np.append(self._row, row)


def _before(values: Floats) -> Floats:
    """Return the sum of the values before each."""
    return np.cumsum(values) - values
