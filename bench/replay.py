"""Replays of sampled evaluations on the answers of a full RUN: how often their intervals hold, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..engine.evaluation.store import RunStore
from ..engine.progress import Progress
from ..engine.sampling.estimate import Z95
from ..engine.sampling.population import population_of
from ..engine.sampling.sampler import ERROR, Sampler
from ..engine.sampling.sequence import ConfidenceSequence
from ..engine.sampling.spec import SamplingSpec
from ..engine.sampling.strata import STRATA, Population, StratumName
from ..export.errors import InputError
from .rows import BenchRow, ReplayFacts

_TOLERANCE: Final = 1e-9


@dataclass(frozen=True)
class Answers:
    """A population, and which of its pairs are right: bool [N, K], with the RUN and the model that they are from."""

    run: str
    model: str
    population: Population
    right: NDArray[np.bool_]


def read_answers(run: Path) -> Answers:
    """Read the answers of a full RUN. Raises `InputError` where it is not whole."""
    store = RunStore.open(run)
    population = population_of(store)
    predictions = store.predictions(0, len(store))[population.pictures]
    right = predictions[:, 1 : 1 + population.rows] == store.labels[population.pictures, None]
    return Answers(str(run), store.run.model, population, right)


def enlarged(answers: Answers, classes: int, pictures: int, seed: int) -> Answers:
    """Draw answers like these of more classes and pictures.

    A class takes after a class of the RUN, drawn with replacement, and its pictures after that class's, with their
    answers under its own occluder; an occluder of another class after any of the others'.
    """
    population, generator = answers.population, np.random.default_rng(seed)
    if population.rows < 2:
        raise InputError(f"{answers.run}: has a single class; --classes draws after RUNs of several")
    models = generator.choice(np.flatnonzero(population.counts), size=classes)
    picked = [generator.choice(np.flatnonzero(population.own == model), size=pictures) for model in models]
    source = np.concatenate(picked)
    # Pictures that are drawn again are other pictures of the same kind: their margins differ a little.
    margin = population.margin[source] + generator.normal(0, 0.05 * population.margin.std(), len(source))
    own = np.repeat(np.arange(classes), pictures)
    others = np.array([[k for k in range(population.rows) if k != model] for model in models])
    columns = others[own[:, None], generator.integers(population.rows - 1, size=(classes, classes))[own]]
    columns[np.arange(len(own)), own] = models[own]
    right = answers.right[source[:, None], columns]
    drawn = Population(np.arange(len(own)), own, population.right[source], margin, classes)
    return Answers(answers.run, answers.model, drawn, right)


def replay_rows(
    every: Sequence[Answers], marks: Sequence[float], replays: int, seed: int, progress: Progress
) -> list[BenchRow[ReplayFacts]]:
    """Replay sampled evaluations, each with an order of its own, and count how often the truth is inside.

    Returns
    -------
    list
        A row for each RUN, cell and mark, and one for each RUN and cell about the confidence sequence.
    """
    rows: list[BenchRow[ReplayFacts]] = []
    with progress.task("replays", len(every) * (len(marks) + 1) * replays) as bar:
        for answers in every:
            for mark in marks:
                found: dict[StratumName, _Tally] = {name: _Tally() for name in STRATA}
                for i in range(replays):
                    _replay(answers, mark, seed + i, found)
                    bar.advance(1)
                rows += [_row(answers, name, mark, replays, found[name]) for name in STRATA if found[name].pairs]
            covered: dict[StratumName, _Tally] = {name: _Tally() for name in STRATA}
            for i in range(replays):
                _replay_sequence(answers, seed + i, covered)
                bar.advance(1)
            rows += [_row(answers, name, None, replays, covered[name]) for name in STRATA if covered[name].pairs]
    return rows


@dataclass
class _Tally:
    """Replays whose interval held the truth, and their pairs and errors."""

    held: int = 0
    pairs: int = 0
    error: float = 0.0

    def add(self, held: bool, pairs: int, error: float) -> None:
        self.held, self.pairs, self.error = self.held + held, self.pairs + pairs, self.error + error


def truth(answers: Answers, name: StratumName) -> float:
    """Return a cell from all of its pairs."""
    stratum = answers.population.stratum(name)
    picture, row = stratum.pairs(np.arange(stratum.total))
    return float(stratum.weights(picture, row) @ answers.right[picture, row] / stratum.total)


def _cells(answers: Answers) -> list[StratumName]:
    return [name for name in STRATA if answers.population.stratum(name).total]


def _replay(answers: Answers, mark: float, seed: int, found: dict[StratumName, _Tally]) -> None:
    sampler = Sampler(answers.population, SamplingSpec(dict.fromkeys(_cells(answers), mark)), seed)
    while looks := sampler.next_look():
        for name, (picture, row) in looks.items():
            sampler.add(name, picture, row, answers.right[picture, row].astype(float))
    for name, estimate in sampler.estimates.items():
        error = estimate.value - truth(answers, name)
        found[name].add(abs(error) <= estimate.half_width + _TOLERANCE, estimate.pairs, error)


def _replay_sequence(answers: Answers, seed: int, found: dict[StratumName, _Tally]) -> None:
    """Draw every pair, and note whether the truth was ever outside of the bounds."""
    names = _cells(answers)
    sampler = Sampler(answers.population, SamplingSpec(dict.fromkeys(names, 1e-9)), seed)
    sequences: dict[StratumName, ConfidenceSequence] = {
        name: ConfidenceSequence(answers.population.stratum(name), ERROR) for name in names
    }
    while looks := sampler.next_look():
        for name, (picture, row) in looks.items():
            estimator, correct = sampler.estimators[name], answers.right[picture, row].astype(float)
            sequences[name].add(picture, row, correct, estimator.ridge.fit() if len(estimator) else None)
            sampler.add(name, picture, row, correct)
    for name, sequence in sequences.items():
        inside = sequence.low - _TOLERANCE <= truth(answers, name) <= sequence.high + _TOLERANCE
        found[name].add(inside, sampler.drawn(name), 0.0)


def _row(answers: Answers, name: StratumName, mark: float | None, replays: int, tally: _Tally) -> BenchRow[ReplayFacts]:
    total, mean = answers.population.stratum(name).total, truth(answers, name)
    simple = None
    if mark is not None:  # what a plain mean of pairs would take, with the same correction for a finite number of them
        infinite = mean * (1 - mean) * (Z95 / mark) ** 2
        simple = round(infinite / (1 + infinite / total))
    facts = ReplayFacts(
        cell=name,
        half_width=mark,
        coverage=tally.held / replays,
        bias=tally.error / replays,
        drawn=tally.pairs / replays,
        simple=simple,
        total=total,
    )
    return BenchRow(
        stage="replay" if mark is not None else "replay-sequence",
        engine="sample",
        unit="replays",
        model=answers.model,
        data=answers.run,
        pictures=len(answers.population),
        occluders=answers.population.rows,
        rounds=replays,
        facts=facts,
    )
