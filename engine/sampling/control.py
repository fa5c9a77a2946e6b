"""The control variate: what a ridge regression on the clean answers expects of each pair."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from .order import Ints
from .strata import Floats, Stratum

# Penalties on the coefficients of pictures' features and on the effects of classes and occluders: an effect is shrunk
# by half where a class or an occluder has as many pairs in the sample.
_OF_FEATURES, _OF_EFFECTS = 1.0, 8.0
FOLDS: Final = 2


class Expected(NamedTuple):
    """An expectation of correctness: a of the picture [N] + b of the occluder [K]."""

    by_picture: Floats
    by_row: Floats

    def of(self, picture: Ints, row: Ints) -> Floats:
        """Return what is expected of some pairs, [n]."""
        return self.by_picture[picture] + self.by_row[row]


class Ridge:
    """Ridge regression of correctness on the clean answer's features, with effects of classes and of occluders.

    Pairs are added as they are drawn, in turn to one of two folds, so that `fit` can leave out those that it is to
    judge.
    """

    def __init__(self, stratum: Stratum) -> None:
        self._stratum = stratum
        features, rows = stratum.population.features.shape[1], stratum.population.rows
        # Under matched pairs, an occluder is its class.
        self._columns = features + rows * (1 if stratum.matched else 2)
        self._products = np.zeros((FOLDS, self._columns, self._columns))
        self._with_correct = np.zeros((FOLDS, self._columns))
        self._penalty = np.full(self._columns, _OF_EFFECTS)
        self._penalty[:features] = _OF_FEATURES
        self._penalty[0] = 1e-6  # the mean is free
        self._features = features

    def add(self, picture: Ints, row: Ints, correct: Floats, fold: Ints) -> None:
        """Add pairs to their folds."""
        for which in range(FOLDS):
            ours = fold == which
            design = self._design(picture[ours], row[ours])
            self._products[which] += design.T @ design
            self._with_correct[which] += correct[ours] @ design

    def _design(self, picture: Ints, row: Ints) -> Floats:
        population, n = self._stratum.population, len(picture)
        design = np.zeros((n, self._columns))
        design[:, : self._features] = population.features[picture]
        design[np.arange(n), self._features + population.own[picture]] = 1
        if not self._stratum.matched:
            design[np.arange(n), self._features + population.rows + row] = 1
        return design

    def fit(self, without: int | None = None) -> Expected:
        """Return what the pairs added lead to expect, those of fold `without` left out."""
        folds = [fold for fold in range(FOLDS) if fold != without]
        products = self._products[folds].sum(axis=0) + np.diag(self._penalty)
        coefficients = np.linalg.solve(products, self._with_correct[folds].sum(axis=0))
        population, rows = self._stratum.population, self._stratum.population.rows
        of_features, of_classes, of_rows = np.split(coefficients, [self._features, self._features + rows])
        by_picture = population.features @ of_features + of_classes[population.own]
        return Expected(by_picture, of_rows if len(of_rows) else np.zeros(rows))

    def degrees(self) -> float:
        """Return the effective number of coefficients of a regression on all pairs: what the penalty leaves of them."""
        products = self._products.sum(axis=0)
        return float(np.trace(np.linalg.solve(products + np.diag(self._penalty), products)))
