"""The confidence sequence: it holds at every look together, comes closer, and ends at the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gfo.engine.sampling.control import CleanRidge, Expected
from gfo.engine.sampling.order import Order
from gfo.engine.sampling.sequence import ConfidenceSequence
from gfo.engine.sampling.strata import STRATA, Stratum, StratumName


def truth(stratum: Stratum, right: np.ndarray) -> float:
    picture, row = stratum.pairs(np.arange(stratum.total))
    return float(stratum.weights(picture, row) @ right[picture, row] / stratum.total)


def bounds(
    stratum: Stratum, right: np.ndarray, seed: int, part: int, error: float = 0.05
) -> Iterator[tuple[float, float]]:
    """Draw all pairs, `part` between two looks, each with a regression on those before."""
    sequence, ridge = ConfidenceSequence(stratum, error), CleanRidge(stratum)
    picture, row = stratum.pairs(Order(stratum.total, seed).first(stratum.total))
    for start in range(0, stratum.total, part):
        own = slice(start, start + part)
        correct = right[picture[own], row[own]].astype(float)
        sequence.add(picture[own], row[own], correct, ridge.fit() if start else None)
        ridge.add(picture[own], row[own], correct, np.arange(len(correct)) % 2)
        yield sequence.low, sequence.high


@pytest.mark.parametrize("name", STRATA)
@pytest.mark.parametrize("shift", [-1.0, 4.0])
def test_the_truth_stays_inside_at_every_look(made: Callable[..., Any], name: StratumName, shift: float) -> None:
    """At an error of one half, where it would show: of 300 paths at most half may ever be wrong."""
    population, right = made([30, 20, 60, 10], shift, shift)
    stratum = population.stratum(name)
    wanted, wrong = truth(stratum, right), 0
    for seed in range(300):
        path = list(bounds(stratum, right, seed, 40))
        missed = any(not low - 1e-9 <= wanted <= high + 1e-9 for low, high in path)
        wrong += missed
        lows, highs = np.transpose(path)
        assert (np.diff(lows) >= 0).all()
        assert (np.diff(highs) <= 0).all()
        assert missed or path[-1] == pytest.approx((wanted, wanted), abs=1e-9)
    assert wrong <= 150 + 27  # by chance once in a thousand


def test_it_is_that_of_the_paper_without_a_control_variate() -> None:
    """Equal weights and an expectation of 1/2: Theorem 2 of Waudby-Smith and Ramdas (2020), pair by pair."""
    rng = np.random.default_rng(0)
    total, count, error = 1000, 400, 0.05
    answers = (rng.random(total) < 0.3).astype(float)

    class Plain:
        population = type("P", (), {"rows": 1, "__len__": lambda self: total})()
        total, heaviest = 1000, 1.0

        def weights(self, picture: np.ndarray, row: np.ndarray) -> np.ndarray:
            return np.ones(len(picture))

        def weighted_within(self, a: np.ndarray, b: np.ndarray) -> float:
            return float(np.clip(a + b[0], 0, 1).sum())

    sequence: Any = ConfidenceSequence(Plain(), error)  # type: ignore[arg-type]
    places, rows = np.arange(count), np.zeros(count, np.int64)
    half = Expected(np.full(total, 0.5), np.zeros(1))
    for own in np.array_split(places, 7):
        sequence.add(places[own], rows[own], answers[own], half)
    above, below, variation, squares, best = 0.0, 0.0, 0.0, 0.25, (0.0, 1.0)
    for i in range(count):
        past, left = answers[:i].sum(), total - i
        bet = min(np.sqrt(2 * np.log(2 / error) / (squares / (i + 1) * (i + 1) * np.log(2 + i))), 0.75)
        above += bet * (answers[i] + past / left)
        below += bet * (1 + i / left)
        variation += (-np.log(1 - bet) - bet) * (answers[i] - 0.5) ** 2
        squares += (answers[i] - 0.5) ** 2
        width = (np.log(2 / error) + variation) / below
        surely = answers[: i + 1].sum() / total, (answers[: i + 1].sum() + left - 1) / total
        best = max(best[0], above / below - width, surely[0]), min(best[1], above / below + width, surely[1])
    assert (sequence.low, sequence.high) == pytest.approx(best, abs=1e-9)


def test_the_control_variate_decides_earlier(made: Callable[..., Any]) -> None:
    population, right = made([100] * 10, unmatched=-0.5)
    stratum = population.stratum("unmatched")
    picture, row = stratum.pairs(Order(stratum.total, 0).first(2000))
    correct = right[picture, row].astype(float)
    helped, plain, ridge = ConfidenceSequence(stratum), ConfidenceSequence(stratum), CleanRidge(stratum)
    for own in np.array_split(np.arange(2000), 8):
        helped.add(picture[own], row[own], correct[own], ridge.fit() if len(helped) else None)
        plain.add(picture[own], row[own], correct[own], None)
        ridge.add(picture[own], row[own], correct[own], own % 2)
    assert helped.high - helped.low < 0.95 * (plain.high - plain.low)
