"""Pairs of each cell in the order in which they are drawn, look by look, and what they say of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Final, Generic, TypeAlias, TypeVar

from .estimate import DifferenceEstimator, Estimate
from .order import Ints, Order
from .strata import Floats, Population, StratumName

LOOK: Final = 250
"""Pairs of a cell between two looks at its interval."""
LEAST: Final = 500
"""Pairs of a cell before the first look that may end the drawing: a variance from fewer is not to be trusted."""
_GROWTH = 8  # a look takes at least this part of the pairs before it

Pairs: TypeAlias = tuple[Ints, Ints]
"""Pictures, as places in the population, and rows of the bank, int64 [n] each."""
E = TypeVar("E", bound=DifferenceEstimator)


def totals(population: Population, names: Iterable[StratumName]) -> dict[StratumName, int]:
    """Return how many pairs some cells have."""
    return {name: population.stratum(name).total for name in names}


def orders(population: Population, seed: int) -> dict[StratumName, Order]:
    """Return the order of the pairs of each cell."""
    strata = population.strata.values()
    return {stratum.name: Order(stratum.total, seed, place) for place, stratum in enumerate(strata)}


class Drawing(ABC, Generic[E]):
    """The state of an evaluation of pairs that are drawn.

    Use it look by look: `next_look` draws pairs of each cell, `add` takes their answers.

    Parameters
    ----------
    population
        The pictures.
    estimators
        By cell, of those that are drawn.
    orders
        Of the pairs of each of these cells.
    max_pairs
        The most pairs to draw; None for as many as it takes.

    Attributes
    ----------
    estimates
        What the pairs so far say, by cell.
    """

    def __init__(
        self,
        population: Population,
        estimators: Mapping[StratumName, E],
        orders: Mapping[StratumName, Order],
        max_pairs: int | None,
    ) -> None:
        self.population, self.estimators = population, estimators
        self.estimates: dict[StratumName, Estimate] = {}
        self._orders, self._max_pairs = orders, max_pairs

    @abstractmethod
    def reached(self) -> float:
        """Return how far the drawing probably is, 0 … 1."""

    @abstractmethod
    def enough_of(self, name: StratumName) -> bool:
        """Return whether the pairs drawn of a cell say what is asked, once they are enough to tell."""

    def reached_of(self, name: StratumName, half_width: float, mark: float) -> float:
        """Return how far a width is, 0 … 1: it shrinks as the square root of the pairs grows."""
        if half_width <= mark:
            return 1.0
        return max((mark / half_width) ** 2, self.drawn(name) / self.estimators[name].stratum.total)

    def drawn(self, name: StratumName) -> int:
        """Return how many pairs of a cell have been added."""
        return len(self.estimators[name])

    def next_look(self) -> dict[StratumName, Pairs]:
        """Return the pairs of each cell to add before the next look; empty where the drawing ends."""
        wanted: dict[StratumName, Pairs] = {}
        left = math.inf if self._max_pairs is None else self._max_pairs - sum(map(len, self.estimators.values()))
        for name, estimator in self.estimators.items():
            if self._enough(name):
                continue
            n = self.drawn(name)
            size = max(LOOK, n // _GROWTH // LOOK * LOOK, LEAST - n)
            size = min(size, estimator.stratum.total - n, left // LOOK * LOOK if left < math.inf else size)
            if size > 0:
                order = self._orders[name].first(n + int(size))[n:]
                wanted[name] = estimator.stratum.pairs(order)
                left -= size
        return wanted

    def _enough(self, name: StratumName) -> bool:
        n = self.drawn(name)
        if n == self.estimators[name].stratum.total:
            return True
        return n >= LEAST and self.enough_of(name)

    def add(self, name: StratumName, picture: Ints, row: Ints, correct: Floats) -> None:
        """Take the answers, 1.0 or 0.0, to the next pairs of a cell."""
        self.estimators[name].add(picture, row, correct)
        self.estimates[name] = self.estimators[name].estimate()

    def __str__(self) -> str:
        parts = [
            f"{name} {estimate.value:.3f} ± {estimate.half_width:.3f}" for name, estimate in self.estimates.items()
        ]
        return ", ".join(parts)
