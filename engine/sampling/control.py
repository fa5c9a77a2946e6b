"""The control variate: what a ridge regression on answers that are known expects of each pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from .order import Ints
from .strata import Floats, Stratum

# Penalties on the coefficients of pictures' features and on the effects of classes and occluders: an effect is shrunk
# by half where a class or an occluder has as many pairs in the sample.
_OF_FEATURES, _OF_EFFECTS = 1.0, 8.0
_FREE = 1e-6  # the mean is not shrunk
FOLDS: Final = 2


class Expectation(Protocol):
    """An expectation of the correctness of each pair."""

    def of(self, picture: Ints, row: Ints) -> Floats:
        """Return what is expected of some pairs, [n]."""
        ...

    def mean(self, stratum: Stratum) -> float:
        """Return the mean over all pairs of weight × what is expected."""
        ...


E_co = TypeVar("E_co", bound=Expectation, covariant=True)


class Ridge(ABC, Generic[E_co]):
    """Ridge regression of correctness on features of the pairs.

    Pairs are added as they are drawn, in turn to one of two folds, so that `fit` can leave out those that it is to
    judge.

    Parameters
    ----------
    penalty
        Of each coefficient, [F].
    """

    def __init__(self, penalty: Floats) -> None:
        self._penalty, count = np.diag(penalty), len(penalty)
        self._products = np.zeros((FOLDS, count, count))
        self._with_correct = np.zeros((FOLDS, count))

    @abstractmethod
    def design(self, picture: Ints, row: Ints) -> Floats:
        """Return the features of some pairs, [n, F]."""

    @abstractmethod
    def expectation(self, coefficients: Floats) -> E_co:
        """Return what coefficients [F] expect."""

    def add(self, picture: Ints, row: Ints, correct: Floats, fold: Ints) -> None:
        """Add pairs to their folds."""
        for which in range(FOLDS):
            ours = fold == which
            design = self.design(picture[ours], row[ours])
            self._products[which] += design.T @ design
            self._with_correct[which] += correct[ours] @ design

    def fit(self, without: int | None = None) -> E_co:
        """Return what the pairs added lead to expect, those of fold `without` left out."""
        folds = [fold for fold in range(FOLDS) if fold != without]
        products = self._products[folds].sum(axis=0) + self._penalty
        return self.expectation(np.linalg.solve(products, self._with_correct[folds].sum(axis=0)))

    def degrees(self) -> float:
        """Return the effective number of coefficients of a regression on all pairs: what the penalty leaves of them."""
        products = self._products.sum(axis=0)
        return float(np.trace(np.linalg.solve(products + self._penalty, products)))


class Expected(NamedTuple):
    """An expectation of correctness: a of the picture [N] + b of the occluder [K]."""

    by_picture: Floats
    by_row: Floats

    def of(self, picture: Ints, row: Ints) -> Floats:
        """Return what is expected of some pairs, [n]."""
        return self.by_picture[picture] + self.by_row[row]

    def mean(self, stratum: Stratum) -> float:
        """Return the mean over all pairs of weight × what is expected."""
        return stratum.weighted(self.by_picture, self.by_row) / stratum.total


class CleanRidge(Ridge[Expected]):
    """The regression on the clean answer's features, with effects of classes and of occluders."""

    def __init__(self, stratum: Stratum) -> None:
        self._stratum = stratum
        features, rows = stratum.population.features.shape[1], stratum.population.rows
        # Under matched pairs, an occluder is its class.
        effects = np.full(rows * (1 if stratum.matched else 2), _OF_EFFECTS)
        super().__init__(np.concatenate([[_FREE], np.full(features - 1, _OF_FEATURES), effects]))
        self._features = features

    def design(self, picture: Ints, row: Ints) -> Floats:
        """See `Ridge.design`."""
        population, n = self._stratum.population, len(picture)
        parts = [population.features[picture], np.zeros((n, population.rows))]
        parts[1][np.arange(n), population.own[picture]] = 1
        if not self._stratum.matched:
            parts.append(np.zeros((n, population.rows)))
            parts[2][np.arange(n), row] = 1
        return np.concatenate(parts, axis=1)

    def expectation(self, coefficients: Floats) -> Expected:
        """See `Ridge.expectation`."""
        population, rows = self._stratum.population, self._stratum.population.rows
        of_features, of_classes, of_rows = np.split(coefficients, [self._features, self._features + rows])
        by_picture = population.features @ of_features + of_classes[population.own]
        return Expected(by_picture, of_rows if len(of_rows) else np.zeros(rows))
