"""Weights and sums over the pairs of a cell against loops over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfo.engine.sampling.strata import STRATA, StratumName


@given(st.lists(st.integers(0, 6), min_size=2, max_size=5).filter(any), st.sampled_from(STRATA), st.integers(0, 3))
def test_sums_are_those_of_a_loop(made: Callable[..., Any], sizes: list[int], name: StratumName, seed: int) -> None:
    population, right = made(sizes)
    stratum, rng = population.stratum(name), np.random.default_rng(seed)
    a, b = rng.normal(0.5, 1, len(population)), rng.normal(0, 1, population.rows)
    picture, row = stratum.pairs(np.arange(stratum.total))
    wanted = {
        (i, k) for i in range(len(right)) for k in range(len(sizes)) if (population.own[i] == k) == stratum.matched
    }
    assert set(zip(picture.tolist(), row.tolist(), strict=True)) == wanted
    assert stratum.total == len(wanted)
    present = [c for c, size in enumerate(sizes) if size]
    accuracy = {(k, c): right[population.own == c, k].mean() for k in range(len(sizes)) for c in present}
    if stratum.matched:
        cell = np.mean([accuracy[c, c] for c in present])
    else:  # the mean over occluders of the mean over the other classes, those without one left out
        shares = {k: 1 / max(len([c for c in present if c != k]), 1) for k in range(len(sizes))}
        pairs = [(k, c) for k, c in accuracy if k != c]
        cell = sum(shares[k] * accuracy[k, c] for k, c in pairs) / sum(shares[k] for k, _ in pairs)
    weights = stratum.weights(picture, row)
    assert weights.mean() == pytest.approx(1)
    assert weights.max() == pytest.approx(stratum.heaviest)
    assert weights @ right[picture, row] / stratum.total == pytest.approx(cell)
    expected = a[picture] + b[row]
    assert stratum.weighted(a, b) == pytest.approx(float(weights @ expected), abs=1e-9)
    assert stratum.weighted_within(a, b) == pytest.approx(float(weights @ np.clip(expected, 0, 1)), abs=1e-9)
    shares_of = stratum.shares()
    assert shares_of.sum() == pytest.approx(1)
    assert sum(shares_of[k, c] * value for (k, c), value in accuracy.items()) == pytest.approx(cell)


def test_clean_is_a_mean_over_classes(made: Callable[..., Any]) -> None:
    population, _ = made([5, 1, 0, 9])
    means = [population.right[population.own == c].mean() for c in (0, 1, 3)]
    assert population.clean == pytest.approx(np.mean(means))
