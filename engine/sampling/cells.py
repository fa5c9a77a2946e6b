"""The cells of a sampled run, with their intervals over pairs that were not drawn, and over classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from ...export.errors import InputError
from ..evaluation.bootstrap import Bootstrapped
from ..evaluation.metrics import REPLICATES
from ..evaluation.results import PENDING, Accuracy, ClassRow, Ratio, RatioName, Results
from ..evaluation.sample import CellName
from ..evaluation.summary import Run
from .cell_estimates import CellEstimator
from .estimate import Estimate
from .spec import stratum_of
from .strata import Floats, Population, Stratum, StratumName

Estimators = Mapping[StratumName, CellEstimator]
RATIO_OF: Final[Mapping[StratumName, RatioName]] = {"matched": "matched/clean", "unmatched": "unmatched/clean"}


def estimate_of(cell: CellName, population: Population, estimates: Mapping[StratumName, Estimate]) -> Estimate:
    """Return a cell's estimate: `clean` is exact, and so is what a ratio divides by."""
    stratum = stratum_of(cell)
    if stratum is None:
        return Estimate(population.clean, 0.0, len(population), len(population))
    found = estimates[stratum]
    if "/" not in cell:
        return found
    below = population.stratum(stratum).clean
    return Estimate(found.value / below, found.half_width / below, found.pairs, found.total)


def check_ratio(cell: CellName, population: Population) -> None:
    """Raise `InputError` for a ratio where no clean answer is right."""
    stratum = stratum_of(cell)
    if "/" in cell and stratum is not None and not population.stratum(stratum).clean:
        raise InputError(f"{cell}: no clean answer is right, so that there is no ratio; ask for {stratum} alone")


def expected_matrix(population: Population, estimators: Estimators) -> Floats:
    """Return accuracy[k, c], what the regressions expect of occluder k on pictures of class c, [K, K], 0 … 1.

    Each is drawn towards the effects of its occluder and of its class. It is NaN where nothing was drawn.
    """
    found = np.full((population.rows, population.rows), np.nan)
    for estimator in estimators.values():
        found = np.where(np.isnan(found), estimator.expected_cells(), found)
    return found


@dataclass(frozen=True)
class _Draws:
    """How often each class is in each replicate, [R, K], and the seed's generator for pictures."""

    classes: Floats
    generator: np.random.Generator


def results_of(
    run: Run, population: Population, estimators: Estimators, estimates: Mapping[StratumName, Estimate]
) -> Results:
    """Return the numbers of a sampled run; what was not drawn is null.

    Intervals over classes resample these with their occluders. Those of a full run resample the pictures, too, and are
    wider where a class has few.
    """
    rows, generator = population.rows, np.random.default_rng(run.seed)
    classes = generator.multinomial(rows, np.full(rows, 1 / rows), size=REPLICATES).astype(float)
    draws = _Draws(classes, generator)
    present = int((population.counts > 0).sum())
    clean = _clean(population, draws)
    cells: dict[str, Any] = {"clean": clean.accuracy(present, len(population))}
    ratios = PENDING.ratios.copy()
    for name, estimator in estimators.items():
        estimate, stratum = estimates[name], estimator.stratum
        cell = _cell(estimate.value, estimator.unbiased_cells(), stratum, draws)
        below = _cell(stratum.clean, np.nan_to_num(population.clean_by_class), stratum, draws)
        pictures = len(np.unique(estimator.picture))
        interval = cell.intervals(present)[1]
        cells[name] = Accuracy(estimate.value, None, interval, pictures, estimate.half_width)
        if below.value:
            ratio = cell / below
            ratios[RATIO_OF[name]] = Ratio(
                ratio.value, None, ratio.intervals(present)[1], estimate.half_width / below.value
            )
    rows_of = _class_rows(run, population, estimators) if "matched" in estimators else ()
    return replace(PENDING, **cells, ratios=ratios, classes=rows_of)


def _clean(population: Population, draws: _Draws) -> Bootstrapped:
    """Return clean accuracy with the replicates of both bootstraps."""
    counts, present = population.counts, population.counts > 0
    means = np.nan_to_num(population.clean_by_class)
    drawn = draws.generator.binomial(counts, means, size=(REPLICATES, len(counts))) / np.maximum(counts, 1)
    with np.errstate(invalid="ignore"):
        classes = (draws.classes * drawn).sum(axis=1) / draws.classes[:, present].sum(axis=1)
    return Bootstrapped(population.clean, drawn[:, present].mean(axis=1), classes)


def _cell(value: float, cells: Floats, stratum: Stratum, draws: _Draws) -> Bootstrapped:
    """Return the mean of cells [k, c] (or [c], the same under every occluder) with its replicates over classes.

    A cell counts as often as its occluder and its class are drawn; one of a class with its own occluder once, as both
    are.
    """
    shares = stratum.shares()
    weighted = shares * cells
    if stratum.matched:
        above, below = (draws.classes @ np.diag(part) for part in (weighted, shares))
    else:
        above, below = (
            np.einsum("rk,kc,rc->r", draws.classes, part, draws.classes, optimize=True) for part in (weighted, shares)
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        return Bootstrapped(value, np.full(REPLICATES, np.nan), above / below)


def _class_rows(run: Run, population: Population, estimators: Estimators) -> tuple[ClassRow, ...]:
    matrix = expected_matrix(population, estimators)
    found: list[ClassRow] = []
    for row, class_id in enumerate(run.class_ids):
        pictures = int(population.counts[row])
        if not pictures:
            continue
        others = np.delete(matrix[row], row)
        others = others[np.isfinite(others)]
        found.append(
            ClassRow(
                class_id=class_id,
                folder=run.folders[str(class_id)],
                name=run.class_names[str(class_id)],
                pictures=pictures,
                clean=float(population.clean_by_class[row]),
                matched=float(matrix[row, row]),
                matched_wilson95=None,
                top_wrong_label=None,
                unmatched_by_occluder=float(others.mean()) if len(others) else None,
            )
        )
    return tuple(found)
