"""The pairs whose mean is a cell: `matched` or `unmatched`, a finite population from which pairs are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from .order import Ints

Floats = NDArray[np.float64]
StratumName = Literal["matched", "unmatched", "clean"]
STRATA: Final[tuple[StratumName, ...]] = ("matched", "unmatched")
"""Those whose pairs are under an occluder."""
NO_OCCLUDER: Final = -1
"""Row of a pair that is a clean picture."""
_SPREAD = 3.0  # standard deviations beyond which a clean margin says no more than at them


@dataclass(frozen=True)
class Population:
    """The readable pictures of the bank's classes, and what the network says of each without an occluder.

    Attributes
    ----------
    pictures
        Places in the store, int64 [N].
    own
        Row of each picture's class in the bank, 0 … K − 1, int64 [N].
    right, margin
        Whether the clean answer is right, bool [N], and the margin of the true logit over the best other, float [N].
    rows
        K, the rows of the bank.
    """

    pictures: Ints
    own: Ints
    right: NDArray[np.bool_]
    margin: Floats
    rows: int

    def __len__(self) -> int:
        return len(self.pictures)

    @cached_property
    def counts(self) -> Ints:
        """Pictures of each row's class, int64 [K]."""
        return np.bincount(self.own, minlength=self.rows)

    @cached_property
    def features(self) -> Floats:
        """What is known of each picture, [N, 8]: 1, its correctness, a cubic in its margin, and both together."""
        scale = float(self.margin.std()) or 1.0
        z = np.clip(self.margin / scale, -_SPREAD, _SPREAD)
        powers = np.stack([z, z**2, z**3], axis=1)
        right = self.right[:, None].astype(float)
        return np.concatenate([np.ones_like(right), right, powers, right * powers], axis=1)

    @cached_property
    def clean_by_class(self) -> Floats:
        """Clean accuracy of each row's class, [K]; NaN where it has no picture."""
        with np.errstate(invalid="ignore"):
            return np.bincount(self.own, self.right, self.rows) / self.counts

    @property
    def clean(self) -> float:
        """Clean accuracy, the mean over classes."""
        return float(np.nanmean(self.clean_by_class))

    @cached_property
    def strata(self) -> Mapping[StratumName, Stratum]:
        """The pairs of each cell."""
        names: tuple[StratumName, ...] = (*STRATA, "clean")
        return {name: Stratum(name, self) for name in names}

    def stratum(self, name: StratumName) -> Stratum:
        """Return the pairs of a cell."""
        return self.strata[name]


class Stratum:
    """The pairs of a cell, numbered from 0, and the weight of each.

    A cell is a mean over classes, so that a pair of a class with fewer pictures weighs more. Weights are a product of
    the picture's and the occluder's, and 1 on average: the cell is the mean of weight × correctness.

    Attributes
    ----------
    total
        How many pairs there are.
    by_picture, by_row
        The factors of the weights, [N] and [K].
    heaviest
        The largest weight.
    """

    def __init__(self, name: StratumName, population: Population) -> None:
        self.name: Final[StratumName] = name
        self.population = population
        rows, count = population.rows, len(population)
        self.total = count * self.of_picture
        self.by_picture, self.by_row = _shares(population), np.ones(rows)
        if name == "unmatched":  # as in the summary, every occluder counts the same, whatever the number of its pairs
            present = population.counts > 0
            self.by_row = 1 / np.maximum(present.sum() - present, 1)
        self.by_picture = self.by_picture * (self.total / max(self._sum_of_weights(), 1e-300))
        self.heaviest = float(self.by_picture.max(initial=0) * self.by_row.max(initial=0))

    @property
    def matched(self) -> bool:
        """Whether each picture meets the occluder of its own class, and no other."""
        return self.name == "matched"

    @property
    def of_picture(self) -> int:
        """Pairs of each picture."""
        return self.population.rows - 1 if self.name == "unmatched" else 1

    def _sum_of_weights(self) -> float:
        return self.weighted(np.ones(len(self.population)), np.zeros(self.population.rows))

    @cached_property
    def clean(self) -> float:
        """Accuracy of the same pairs without an occluder: what a ratio divides the cell by."""
        return self.weighted(self.population.right.astype(float), np.zeros(self.population.rows)) / self.total

    def weighted(self, by_picture: Floats, by_row: Floats) -> float:
        """Return the sum over all pairs of weight × (a of the picture [N] + b of the occluder [K])."""
        own = self.by_row[self.population.own] * (by_picture + by_row[self.population.own])
        if self.name != "unmatched":
            return float(self.by_picture @ own)
        every = self.by_row.sum() * by_picture + self.by_row @ by_row
        return float(self.by_picture @ (every - own))

    def weighted_within(self, by_picture: Floats, by_row: Floats) -> float:
        """Return what `weighted` does of a + b brought within 0 … 1."""
        own = self.by_row[self.population.own] * np.clip(by_picture + by_row[self.population.own], 0, 1)
        if self.name != "unmatched":
            return float(self.by_picture @ own)
        order = np.argsort(by_row)
        b, u = by_row[order], self.by_row[order]
        weights, products = (np.concatenate([[0.0], np.cumsum(values)]) for values in (u, u * b))
        low, high = np.searchsorted(b, -by_picture), np.searchsorted(b, 1 - by_picture)
        every = by_picture * (weights[high] - weights[low]) + products[high] - products[low]
        return float(self.by_picture @ (every + weights[-1] - weights[high] - own))

    def shares(self) -> Floats:
        """Return the weight of all pairs of occluder k and class c, of all weight, [K, K]; 0 where there are none."""
        of_classes = np.bincount(self.population.own, self.by_picture, self.population.rows)
        shares = self.by_row[:, None] * of_classes[None, :] / max(self.total, 1)
        return np.where(np.eye(self.population.rows, dtype=bool) == self.matched, shares, 0)

    def pairs(self, numbers: Ints) -> tuple[Ints, Ints]:
        """Return the pictures, as places in the population, and the occluders' rows of some pairs, int64 [n] each."""
        if self.name != "unmatched":
            return numbers, self.population.own[numbers] if self.matched else np.full_like(numbers, NO_OCCLUDER)
        picture, row = np.divmod(numbers, self.population.rows - 1)
        return picture, row + (row >= self.population.own[picture])

    def weights(self, picture: Ints, row: Ints) -> Floats:
        """Return the weights of some pairs, [n]."""
        return self.by_picture[picture] * self.by_row[row]


def _shares(population: Population) -> Floats:
    """Return how much each picture counts in a mean over classes, [N]; they sum to 1."""
    present = max(int((population.counts > 0).sum()), 1)
    return 1 / (present * population.counts[population.own])
