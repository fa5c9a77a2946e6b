"""Draws pairs of each cell and tells when there are enough: widths are reached and claims are decided."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final, TypeAlias

import numpy as np

from ..evaluation.sample import CellName, DecidedClaim, Sample, SampledCell
from .cells import check_ratio, estimate_of
from .control import Expected
from .estimate import DifferenceEstimator, Estimate
from .order import Ints, Order
from .sequence import ConfidenceSequence
from .spec import CELLS, LEAST, LOOK, Claim, SamplingSpec, stratum_of
from .strata import STRATA, Floats, Population, StratumName

ERROR: Final = 0.05
"""Probability, at most, that any claim of a call is decided wrongly."""
_GROWTH = 8  # a look takes at least this part of the pairs before it
# Pairs of each class whose pairs weigh more than twice the mean, or all of them, before the sampling may end: they
# decide the variance, and are few.
_OF_HEAVY = 10
DESIGN: Final = "matched and unmatched pairs each in a seeded, uniform order without replacement; every picture clean"
ESTIMATOR: Final = "model-assisted difference estimator; two-fold cross-fitted ridge regression on the clean answers"


Pairs: TypeAlias = tuple[Ints, Ints]
"""Pictures, as places in the population, and rows of the bank, int64 [n] each."""


def totals(population: Population) -> dict[StratumName, int]:
    """Return how many pairs each cell has."""
    return {name: stratum.total for name, stratum in population.strata.items()}


def orders(population: Population, seed: int) -> dict[StratumName, Order]:
    """Return the order of the pairs of each cell."""
    return {name: Order(total, seed, place) for place, (name, total) in enumerate(totals(population).items())}


def _there(spec: SamplingSpec, population: Population) -> SamplingSpec:
    """Return the specification with those of its widths whose cells there are; it may have none."""
    names = {name for name, total in totals(population).items() if total}
    ratios = population.clean > 0
    cells: list[CellName] = [cell for cell in spec.until if stratum_of(cell) in names and (ratios or "/" not in cell)]
    until: dict[CellName, float] = {cell: spec.until[cell] for cell in cells}
    return replace(spec, until=until)


class Sampler:
    """The state of a sampled evaluation.

    Use it look by look: `next_look` draws pairs of each cell, `add` takes their answers.

    Parameters
    ----------
    population
        The pictures.
    spec
        When to end.
    seed
        Of the orders.

    Attributes
    ----------
    estimators
        By cell, of those that something is asked of.

    Raises
    ------
    InputError
        A cell that something is asked of has no pairs, or a ratio no denominator.
    """

    def __init__(self, population: Population, spec: SamplingSpec, seed: int) -> None:
        self.population = population
        if spec.as_there_are:
            spec = _there(spec, population)
        self._spec = spec
        spec.check_classes(population.rows)
        for cell in spec.cells:
            check_ratio(cell, population)
        strata = population.strata
        self.totals = totals(population)
        asked = {stratum_of(cell) for cell in spec.cells}
        names: list[StratumName] = [name for name in STRATA if name in asked]
        self.estimators: dict[StratumName, DifferenceEstimator] = {
            name: DifferenceEstimator(strata[name]) for name in names
        }
        self.estimates: dict[StratumName, Estimate] = {}
        claimed: list[StratumName] = [
            name for name in names if name in {stratum_of(claim.cell) for claim in spec.claims}
        ]
        self._sequences: dict[StratumName, ConfidenceSequence] = {
            name: ConfidenceSequence(strata[name], ERROR / len(claimed)) for name in claimed
        }
        self._orders = orders(population, seed)

    def drawn(self, name: StratumName) -> int:
        """Return how many pairs of a cell have been added."""
        return len(self.estimators[name])

    def next_look(self) -> dict[StratumName, Pairs]:
        """Return the pairs of each cell to add before the next look; empty where the sampling ends."""
        wanted: dict[StratumName, Pairs] = {}
        left = (
            math.inf if self._spec.max_pairs is None else self._spec.max_pairs - sum(map(len, self.estimators.values()))
        )
        for name in self.estimators:
            if self._enough(name):
                continue
            n = self.drawn(name)
            size = max(LOOK, n // _GROWTH // LOOK * LOOK, LEAST - n)
            size = min(size, self.totals[name] - n, left // LOOK * LOOK if left < math.inf else size)
            if size > 0:
                order = self._orders[name].first(n + int(size))[n:]
                wanted[name] = self.estimators[name].stratum.pairs(order)
                left -= size
        return wanted

    def _heavy_seen(self, name: StratumName) -> bool:
        """Return whether the variance can have seen the classes that weigh most."""
        estimator = self.estimators[name]
        stratum, population = estimator.stratum, self.population
        of_class = population.counts * (1 if stratum.matched else population.rows - 1)
        drawn = np.bincount(population.own[estimator.picture], minlength=population.rows)
        return bool((drawn >= np.minimum(of_class, _OF_HEAVY))[stratum.heavy].all())

    def _enough(self, name: StratumName) -> bool:
        n = self.drawn(name)
        if n == self.totals[name]:
            return True
        if n < LEAST or not self._heavy_seen(name):
            return False
        widths = all(
            self._estimate(cell).half_width <= mark
            for cell, mark in self._spec.until.items()
            if stratum_of(cell) == name
        )
        return widths and all(
            self.decision(claim) is not None for claim in self._spec.claims if stratum_of(claim.cell) == name
        )

    def add(self, name: StratumName, picture: Ints, row: Ints, correct: Floats) -> None:
        """Take the answers, 1.0 or 0.0, to the next pairs of a cell."""
        estimator = self.estimators[name]
        if name in self._sequences:
            expected: Expected | None = estimator.ridge.fit() if len(estimator) else None
            self._sequences[name].add(picture, row, correct, expected)
        estimator.add(picture, row, correct)
        found = estimator.estimate()
        if name in self._sequences and found.pairs < found.total:  # where a claim may end the sampling, only they hold
            sequence = self._sequences[name]
            found = replace(found, half_width=max(sequence.high - found.value, found.value - sequence.low))
        self.estimates[name] = found

    def _estimate(self, cell: CellName) -> Estimate:
        return estimate_of(cell, self.population, self.estimates)

    def bounds(self, cell: CellName) -> tuple[float, float]:
        """Return a cell's bounds of the confidence sequence; both are the cell itself where it is known."""
        name = stratum_of(cell)
        if name is None:
            return self.population.clean, self.population.clean
        found = self.estimates.get(name)
        sequence = self._sequences[name]
        low, high = sequence.low, sequence.high
        if found is not None and found.pairs == found.total:
            low = high = found.value
        below = self.population.stratum(name).clean if "/" in cell else 1.0
        return low / below, high / below

    def decision(self, claim: Claim) -> bool | None:
        """Return whether a claim holds; None where that is not decided."""
        return claim.decided(*self.bounds(claim.cell))

    def reached(self) -> float:
        """Return how far the sampling probably is, 0 … 1: a width shrinks as the square root of the pairs grows."""
        shares = [1.0]
        for name in self.estimators:
            if name not in self.estimates:
                return 0.0
            n, total = self.drawn(name), self.totals[name]
            for cell, mark in self._spec.until.items():
                if stratum_of(cell) == name:
                    half_width = self._estimate(cell).half_width
                    shares.append(1.0 if half_width <= mark else max((mark / half_width) ** 2, n / total))
            needed = (self.needed(claim) for claim in self._spec.claims if stratum_of(claim.cell) == name)
            shares.extend(min(1.0, n / count) for count in needed if count)
        return min(shares)

    def needed(self, claim: Claim) -> int | None:
        """Return after how many pairs of its cell a claim will probably be decided; None where it is."""
        name = stratum_of(claim.cell)
        if name is None or self.decision(claim) is not None:
            return None
        low, high = self.bounds(claim.cell)
        n, total = self.drawn(name), self.totals[name]
        away = abs(self._estimate(claim.cell).value - claim.bound)
        if away <= 0:
            return total
        return min(total, max(n, math.ceil(n * ((high - low) / 2 / away) ** 2)))

    def _known(self, cell: CellName) -> bool:
        name = stratum_of(cell)
        return name is None or (name in self.estimates and ("/" not in cell or self.population.clean > 0))

    def __str__(self) -> str:
        parts = [
            f"{name} {estimate.value:.3f} ± {estimate.half_width:.3f}" for name, estimate in self.estimates.items()
        ]
        return ", ".join(parts)

    def record(self) -> Sample:
        """Return what has been drawn and decided."""
        words = {True: "yes", False: "no", None: "undecided"}
        cells: list[SampledCell] = []
        for cell in filter(self._known, CELLS):
            found, wanted = self._estimate(cell), self._spec.until.get(cell)
            cells.append(SampledCell(cell, found.value, found.half_width, wanted, found.pairs, found.total))
        claims = [
            DecidedClaim(str(claim), words[self.decision(claim)], self.bounds(claim.cell), self.needed(claim))  # type: ignore[arg-type]
            for claim in self._spec.claims
        ]
        return Sample(DESIGN, ESTIMATOR, tuple(cells), tuple(claims))
