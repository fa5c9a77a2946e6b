"""The cheap answers as a control variate: their means are those of a loop, and pairs are read as they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gfo.engine.evaluation.store import RunStore
from gfo.engine.evaluation.summary import Summary
from gfo.engine.sampling.cheap import CheapAnswers, CheapRidge
from gfo.engine.sampling.population import population_of
from gfo.engine.sampling.strata import NO_OCCLUDER


@pytest.fixture(scope="module")
def answers(full: tuple[Path, Summary]) -> tuple[RunStore, CheapAnswers]:
    store = RunStore.open(full[0])
    return store, CheapAnswers(store, population_of(store))


def test_accuracies_are_those_of_the_summary(
    answers: tuple[RunStore, CheapAnswers], full: tuple[Path, Summary]
) -> None:
    _, found = answers
    for name in ("clean", "matched", "unmatched"):
        assert found.accuracy(name) == pytest.approx(getattr(full[1], name).accuracy)


def test_means_are_those_of_every_pair(answers: tuple[RunStore, CheapAnswers]) -> None:
    store, found = answers
    population = population_of(store)
    for name, stratum in population.strata.items():
        picture, row = stratum.pairs(np.arange(stratum.total))
        features = found.features(picture, row)
        assert found.means[name] == pytest.approx(stratum.weights(picture, row) @ features / stratum.total)
        fitted = CheapRidge(found)
        fitted.add(picture, row, features[:, 1], np.arange(len(row)) % 2)
        expected = fitted.fit()
        assert expected.mean(stratum) == pytest.approx(
            stratum.weights(picture, row) @ expected.of(picture, row) / stratum.total
        )
        assert expected.mean(stratum) == pytest.approx(found.accuracy(name), abs=0.01)


def test_pairs_are_read_as_they_are_stored(answers: tuple[RunStore, CheapAnswers]) -> None:
    store, _ = answers
    population, generator = population_of(store), np.random.default_rng(0)
    found = CheapAnswers(store, population)
    margins, predictions = store.margins(0, len(store)), store.predictions(0, len(store))
    for count in (300, 1, 500):
        picture, row = generator.integers(len(population), size=count), generator.integers(-1, 3, size=count)
        assert NO_OCCLUDER in row or count == 1
        places = population.pictures[picture]
        one, right, *ramps = found.features(picture, row).T
        assert (one == 1).all()
        assert np.array_equal(right, predictions[places, row + 1] == store.labels[places])
        assert np.array_equal(right, found.right(picture, row))
        z = margins[places, row + 1] / population.margin.std()
        for ramp, width in zip(ramps, (0.02, 0.1, 0.5), strict=True):
            assert ramp == pytest.approx(np.clip(z / width, -1, 1), abs=1e-5)


def test_other_answers_have_another_digest(answers: tuple[RunStore, CheapAnswers]) -> None:
    store, found = answers
    population = population_of(store)
    assert CheapAnswers(store, population).digest == found.digest
    changed = RunStore.open(store.path.parent)
    original = changed.margins
    changed.margins = lambda start, stop: original(start, stop) + (start == 0)
    assert CheapAnswers(changed, population).digest != found.digest
