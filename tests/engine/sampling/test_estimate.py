"""The difference estimator: exact with all pairs, unbiased, and its intervals hold as often as they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gfo.engine.sampling.cell_estimates import CellEstimator
from gfo.engine.sampling.control import CleanRidge
from gfo.engine.sampling.drawing import LEAST
from gfo.engine.sampling.estimate import Z95
from gfo.engine.sampling.order import Order
from gfo.engine.sampling.sampler import Sampler
from gfo.engine.sampling.spec import SamplingSpec
from gfo.engine.sampling.strata import STRATA, Stratum, StratumName

# Sizes of classes, and shifts of the logits: rates in between, near 0 and near 1, a class that is unlike the others in
# number, five pictures a class.
HOSTILE = {
    "plain": ([60] * 10, -3.0, -1.0),
    "near 0": ([60] * 10, -8.0, -7.0),
    "near 1": ([60] * 10, 6.0, 8.0),
    "one large class": ([500, *[8] * 9], -3.0, -1.0),
    "five a class": ([5] * 12, -3.0, -1.0),
    "few right": ([150] * 6, -6.5, -5.0),
}


def truth(stratum: Stratum, right: np.ndarray) -> float:
    picture, row = stratum.pairs(np.arange(stratum.total))
    return float(stratum.weights(picture, row) @ right[picture, row] / stratum.total)


def drawn(stratum: Stratum, right: np.ndarray, count: int, seed: int) -> CellEstimator:
    estimator = CellEstimator(stratum)
    picture, row = stratum.pairs(Order(stratum.total, seed).first(count))
    for part in np.array_split(np.arange(count), 3):
        estimator.add(picture[part], row[part], right[picture[part], row[part]].astype(float))
    return estimator


@pytest.mark.parametrize("name", STRATA)
def test_with_all_pairs_it_is_exact(made: Callable[..., Any], name: StratumName) -> None:
    population, right = made([7, 0, 12, 3])
    stratum = population.stratum(name)
    found = drawn(stratum, right, stratum.total, 0).estimate()
    assert (found.half_width, found.pairs, found.total) == (0, stratum.total, stratum.total)
    assert found.value == pytest.approx(truth(stratum, right))


@pytest.mark.parametrize("name", STRATA)
@pytest.mark.parametrize("kind", HOSTILE)
def test_it_is_unbiased_and_its_intervals_hold(made: Callable[..., Any], kind: str, name: StratumName) -> None:
    """Of 400 intervals of 95 %, at least 92 %: below, by chance once in a thousand."""
    population, right = made(*HOSTILE[kind])
    stratum = population.stratum(name)
    wanted, count = truth(stratum, right), min(800, stratum.total // 2)
    found = [drawn(stratum, right, count, seed).estimate() for seed in range(400)]
    errors = np.array([one.value - wanted for one in found])
    widths = np.array([one.half_width for one in found])
    assert abs(errors.mean()) < 4 * errors.std() / 20 + 1e-9
    assert np.mean(np.abs(errors) <= widths) >= 0.92
    if 0.05 < wanted < 0.95:
        assert errors.std() == pytest.approx(widths.mean() / Z95, rel=0.2)


def test_the_control_variate_saves_pairs(made: Callable[..., Any]) -> None:
    population, right = made([60] * 10)
    stratum = population.stratum("unmatched")
    found = drawn(stratum, right, 1000, 0).estimate()
    share = found.value * (1 - found.value)
    simple = Z95 * np.sqrt((1 - 1000 / stratum.total) * share / 1000)
    assert found.half_width < 0.9 * simple


def test_stopping_at_a_width_keeps_the_coverage(made: Callable[..., Any]) -> None:
    population, right = made([150] * 6)
    stratum = population.stratum("unmatched")
    held, pairs = 0, list[int]()
    for seed in range(200):
        sampler = Sampler(population, SamplingSpec({"unmatched": 0.02}), seed)
        while looks := sampler.next_look():
            for name, (picture, row) in looks.items():
                sampler.add(name, picture, row, right[picture, row].astype(float))
        found = sampler.estimates["unmatched"]
        assert found.half_width <= 0.02
        assert found.pairs >= LEAST
        held += abs(found.value - truth(stratum, right)) <= found.half_width
        pairs.append(found.pairs)
    assert held >= 181  # of 190 expected, by chance once in a thousand
    assert max(pairs) < stratum.total / 2


def test_answers_that_are_all_alike_are_not_exact(made: Callable[..., Any]) -> None:
    """500 wrong ones of 3,000 leave up to 0.6 % of right ones (the rule of three)."""
    population, right = made([300] * 10)
    stratum = population.stratum("matched")
    found = drawn(stratum, np.zeros_like(right), 500, 0).estimate()
    assert found.value == pytest.approx(0)
    assert 0.004 < found.half_width < 0.008


@pytest.mark.parametrize("name", STRATA)
@pytest.mark.parametrize("sizes", [[1] * 4 + [90] * 8, [10] * 5 + [250] * 5, [40] * 5 + [200] * 5])
def test_small_classes_are_seen_before_it_ends(made: Callable[..., Any], sizes: list[int], name: StratumName) -> None:
    """They weigh most and are drawn least: 200 replays."""
    population, right = made(sizes)
    stratum = population.stratum(name)
    wanted, held = truth(stratum, right), 0
    for seed in range(200):
        sampler = Sampler(population, SamplingSpec({name: 0.05}), seed)
        while looks := sampler.next_look():
            for cell, (picture, row) in looks.items():
                sampler.add(cell, picture, row, right[picture, row].astype(float))
        found = sampler.estimates[name]
        held += abs(found.value - wanted) <= found.half_width + 1e-9
    assert held >= 181  # of 190 expected, by chance once in a thousand


@pytest.mark.parametrize("without", [None, 0, 1])
def test_the_ridge_is_that_of_least_squares_with_rows_for_its_penalty(
    made: Callable[..., Any], without: int | None
) -> None:
    population, right = made([20, 10, 30])
    stratum, n = population.stratum("unmatched"), 60
    picture, row = stratum.pairs(Order(stratum.total, 0).first(n))
    correct, fold = right[picture, row].astype(float), np.arange(n) % 2
    ridge = CleanRidge(stratum)
    ridge.add(picture[:23], row[:23], correct[:23], fold[:23])
    ridge.add(picture[23:], row[23:], correct[23:], fold[23:])
    found = ridge.fit(without)
    design = np.concatenate([population.features[picture], np.eye(3)[population.own[picture]], np.eye(3)[row]], axis=1)
    ours = np.ones(n, dtype=bool) if without is None else fold != without
    penalty = np.diag(np.sqrt([1e-6, *[1.0] * 7, *[8.0] * 6]))
    above = np.concatenate([design[ours], penalty]), np.concatenate([correct[ours], np.zeros(len(penalty))])
    coefficients = np.linalg.lstsq(*above, rcond=None)[0]
    assert found.of(picture, row) == pytest.approx(design @ coefficients, abs=1e-6)
    hat = design @ np.linalg.inv(design.T @ design + penalty**2) @ design.T
    assert ridge.degrees() == pytest.approx(np.trace(hat), abs=1e-6)


def test_parts_by_class_and_occluder_sum_to_the_estimate(made: Callable[..., Any]) -> None:
    population, right = made([30, 0, 50, 40])
    for name, count in (("matched", 60), ("unmatched", 200), ("unmatched", 360)):
        stratum = population.stratum(name)
        estimator = drawn(stratum, right, count, 1)
        parts, shares = estimator.unbiased_cells(), stratum.shares()
        assert (parts * shares).sum() == pytest.approx(estimator.estimate().value)
        expected = estimator.expected_cells()
        assert np.array_equal(np.isnan(expected), shares == 0)
        assert count < stratum.total or expected == pytest.approx(np.where(shares > 0, parts, np.nan), nan_ok=True)
        assert np.nanmin(expected) >= 0
        assert np.nanmax(expected) <= 1
