"""Draws pairs of each cell and tells when there are enough: widths are reached and claims are decided."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from ..evaluation.sample import CellName, DecidedClaim, Sample, SampledCell
from .cell_estimates import CellEstimator
from .cells import check_ratio, estimate_of
from .control import Expected
from .drawing import Drawing, orders, totals
from .estimate import Estimate
from .order import Ints
from .sequence import ConfidenceSequence
from .spec import CELLS, Claim, SamplingSpec, stratum_of
from .strata import STRATA, Floats, Population, StratumName

ERROR: Final = 0.05
"""Probability, at most, that any claim of a call is decided wrongly."""
DESIGN: Final = "matched and unmatched pairs each in a seeded, uniform order without replacement; every picture clean"
ESTIMATOR: Final = "model-assisted difference estimator; two-fold cross-fitted ridge regression on the clean answers"


def _there(spec: SamplingSpec, population: Population) -> SamplingSpec:
    """Return the specification with those of its widths whose cells there are; it may have none."""
    names = {name for name, total in totals(population, STRATA).items() if total}
    ratios = population.clean > 0
    cells: list[CellName] = [cell for cell in spec.until if stratum_of(cell) in names and (ratios or "/" not in cell)]
    until: dict[CellName, float] = {cell: spec.until[cell] for cell in cells}
    return replace(spec, until=until)


class Sampler(Drawing[CellEstimator]):
    """The state of a sampled evaluation.

    Parameters
    ----------
    population
        The pictures.
    spec
        When to end.
    seed
        Of the orders.

    Raises
    ------
    InputError
        A cell that something is asked of has no pairs, or a ratio no denominator.
    """

    def __init__(self, population: Population, spec: SamplingSpec, seed: int) -> None:
        if spec.as_there_are:
            spec = _there(spec, population)
        self._spec = spec
        spec.check_classes(population.rows)
        for cell in spec.cells:
            check_ratio(cell, population)
        strata = population.strata
        self.totals = totals(population, STRATA)
        asked = {stratum_of(cell) for cell in spec.cells}
        names: list[StratumName] = [name for name in STRATA if name in asked]
        estimators: dict[StratumName, CellEstimator] = {name: CellEstimator(strata[name]) for name in names}
        super().__init__(population, estimators, orders(population, seed), spec.max_pairs)
        claimed: list[StratumName] = [
            name for name in names if name in {stratum_of(claim.cell) for claim in spec.claims}
        ]
        self._sequences: dict[StratumName, ConfidenceSequence] = {
            name: ConfidenceSequence(strata[name], ERROR / len(claimed)) for name in claimed
        }

    def enough_of(self, name: StratumName) -> bool:
        """See `Drawing.enough_of`: every width is reached, and every claim decided."""
        widths = all(
            self._estimate(cell).half_width <= mark
            for cell, mark in self._spec.until.items()
            if stratum_of(cell) == name
        )
        return widths and all(
            self.decision(claim) is not None for claim in self._spec.claims if stratum_of(claim.cell) == name
        )

    def add(self, name: StratumName, picture: Ints, row: Ints, correct: Floats) -> None:
        """See `Drawing.add`."""
        if name in self._sequences:
            estimator = self.estimators[name]
            expected: Expected | None = estimator.ridge.fit() if len(estimator) else None
            self._sequences[name].add(picture, row, correct, expected)
        super().add(name, picture, row, correct)
        found = self.estimates[name]
        if name in self._sequences and found.pairs < found.total:  # where a claim may end the sampling, only they hold
            sequence = self._sequences[name]
            half_width = max(sequence.high - found.value, found.value - sequence.low)
            self.estimates[name] = replace(found, half_width=half_width)

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
        """See `Drawing.reached`."""
        shares = [1.0]
        for name in self.estimators:
            if name not in self.estimates:
                return 0.0
            for cell, mark in self._spec.until.items():
                if stratum_of(cell) == name:
                    shares.append(self.reached_of(name, self._estimate(cell).half_width, mark))
            needed = (self.needed(claim) for claim in self._spec.claims if stratum_of(claim.cell) == name)
            shares.extend(min(1.0, self.drawn(name) / count) for count in needed if count)
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
