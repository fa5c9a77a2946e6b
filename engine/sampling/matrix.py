"""The all-pairs matrix of a sampled run, as the regressions expect it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...export.errors import InputError
from ..evaluation.store import RunStore
from ..evaluation.summary import Summary
from .cell_estimates import CellEstimator
from .cells import expected_matrix
from .drawing import orders, totals
from .population import SAMPLE, population_of
from .store import PairStore
from .strata import STRATA, Floats, StratumName


def sampled_matrix(run: Path, summary: Summary) -> tuple[Floats, list[int]]:
    """Compute accuracy[k, c] of occluder row k (clean, the bank, noise) on pictures of class c.

    Clean accuracies are exact. Those of occluders are expectations, drawn towards the effects of the occluder and of
    the class: a sample has few pairs of each.

    Returns
    -------
    tuple
        float64 [K + 2, C] in 0 … 1, NaN where nothing was drawn, and for noise; the C class ids, those of the bank.

    Raises
    ------
    InputError
        The answers are missing or damaged.
    """
    assert summary.sample is not None
    store = RunStore.open(run / SAMPLE)
    population = population_of(store)
    kept = PairStore(store.path.parent, totals(population, STRATA), writable=False)
    drawn = {cell.cell: cell.pairs for cell in summary.sample.cells}
    estimators: dict[StratumName, CellEstimator] = {}
    placed = orders(population, summary.seed)
    for name in STRATA:
        if name not in drawn:
            continue
        estimators[name] = CellEstimator(population.stratum(name))
        picture, row = estimators[name].stratum.pairs(placed[name].first(drawn[name]))
        images = population.pictures[picture]
        found = kept.answers(name, 0, images, row)
        if found is None:
            raise InputError(f"{kept.path}: answers are missing; run the same gfo-eval again")
        estimators[name].add(picture, row, (found == store.labels[images]).astype(float))
    rows = population.rows
    matrix = np.full((rows + 2, rows), np.nan)
    matrix[0] = population.clean_by_class
    matrix[1:-1] = expected_matrix(population, estimators)
    return matrix, list(summary.class_ids)
