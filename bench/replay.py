"""Replays of sampled evaluations on the answers of a full RUN: how often their intervals hold, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..engine.evaluation.store import RunStore
from ..engine.progress import Progress
from ..engine.sampling.certify import CELLS, REFERENCE, CertificateSpec, Certifier
from ..engine.sampling.cheap import CheapAnswers
from ..engine.sampling.drawing import Drawing
from ..engine.sampling.estimate import Z95
from ..engine.sampling.order import Ints
from ..engine.sampling.population import population_of
from ..engine.sampling.sampler import ERROR, Sampler
from ..engine.sampling.sequence import ConfidenceSequence
from ..engine.sampling.spec import SamplingSpec
from ..engine.sampling.strata import NO_OCCLUDER, STRATA, Floats, Population, StratumName
from ..export.errors import InputError
from .rows import BenchRow, ReplayFacts

_TOLERANCE: Final = 1e-9


@dataclass(frozen=True)
class Answers:
    """A population, and which of its pairs are right: bool [N, K], with the RUN and the model that they are from.

    `clean` has which pictures are right without an occluder, bool [N].
    """

    run: str
    model: str
    population: Population
    right: NDArray[np.bool_]
    clean: NDArray[np.bool_]

    def of(self, picture: Ints, row: Ints) -> Floats:
        """Return whether some pairs are right, 1.0 or 0.0, [n]."""
        return np.where(row == NO_OCCLUDER, self.clean[picture], self.right[picture, row]).astype(float)


@dataclass(frozen=True)
class Certified:
    """The answers of a full RUN, and what fp32 answers to the same pairs, over the population of the former."""

    cheap: CheapAnswers
    fp32: Answers


def read_answers(run: Path) -> Answers:
    """Read the answers of a full RUN. Raises `InputError` where it is not whole."""
    store = RunStore.open(run)
    return _answers(run, store, population_of(store))


def _answers(run: Path, store: RunStore, population: Population) -> Answers:
    predictions = store.predictions(0, len(store))[population.pictures]
    right = predictions[:, : 1 + population.rows] == store.labels[population.pictures, None]
    return Answers(str(run), store.run.model, population, right[:, 1:], right[:, 0])


def read_certified(run: Path, fp32: Path) -> Certified:
    """Read the answers of a full RUN, and those of a full RUN in fp32 of the same pairs.

    Raises `InputError` where one is not whole, or they are of different pairs.
    """
    store, reference = RunStore.open(run), RunStore.open(fp32)
    if reference.run.precision != REFERENCE:
        raise InputError(f"--certified {fp32}: is in {reference.run.precision}, not in fp32")
    same = [getattr(store.run, name) == getattr(reference.run, name) for name in ("weights_hash", "bank_hash")]
    same += [store.run.strength == reference.run.strength, store.paths == reference.paths]
    same += [np.array_equal(store.labels, reference.labels), np.array_equal(store.readable(), reference.readable())]
    if not all(same):
        raise InputError(f"--certified {fp32}: is of other pairs than {run}")
    population = population_of(store)
    return Certified(CheapAnswers(store, population), _answers(run, reference, population))


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
    larger = Population(np.arange(len(own)), own, population.right[source], margin, classes)
    return Answers(answers.run, answers.model, larger, right, larger.right)


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
                found = tallies()
                for i in range(replays):
                    _replay(answers, mark, seed + i, found)
                    bar.advance(1)
                rows += [_row(answers, "replay", name, mark, replays, tally) for name, tally in drawn(found)]
            covered = tallies()
            for i in range(replays):
                _replay_sequence(answers, seed + i, covered)
                bar.advance(1)
            rows += [_row(answers, "replay-sequence", name, None, replays, tally) for name, tally in drawn(covered)]
    return rows


def certificate_rows(
    every: Sequence[Certified], marks: Sequence[float], replays: int, seed: int, progress: Progress
) -> list[BenchRow[ReplayFacts]]:
    """Replay certifications, each with an order of its own; a row for each RUN, cell and mark."""
    rows: list[BenchRow[ReplayFacts]] = []
    with progress.task("replays", len(every) * len(marks) * replays) as bar:
        for run in every:
            truths: dict[StratumName, float] = {
                name: truth(run.fp32, name) for name in CELLS if run.fp32.population.stratum(name).total
            }
            for mark in marks:
                found = tallies()
                for i in range(replays):
                    certifier = Certifier(
                        run.fp32.population, run.cheap, CertificateSpec(dict.fromkeys(CELLS, mark)), seed + i
                    )
                    _replay_drawing(certifier, run.fp32, truths, found)
                    bar.advance(1)
                rows += [
                    _row(run.fp32, "replay-certificate", name, mark, replays, tally) for name, tally in drawn(found)
                ]
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
    return float(stratum.weights(picture, row) @ answers.of(picture, row) / stratum.total)


def tallies() -> dict[StratumName, _Tally]:
    """Return an empty tally for each cell."""
    return {name: _Tally() for name in CELLS}


def drawn(found: Mapping[StratumName, _Tally]) -> list[tuple[StratumName, _Tally]]:
    """Return the tallies of the cells that pairs were drawn of."""
    return [(name, tally) for name, tally in found.items() if tally.pairs]


def _cells(answers: Answers) -> list[StratumName]:
    return [name for name in STRATA if answers.population.stratum(name).total]


def _replay(answers: Answers, mark: float, seed: int, found: Mapping[StratumName, _Tally]) -> None:
    names = _cells(answers)
    sampler = Sampler(answers.population, SamplingSpec(dict.fromkeys(names, mark)), seed)
    _replay_drawing(sampler, answers, {name: truth(answers, name) for name in names}, found)


def _replay_drawing(
    drawing: Drawing[Any], answers: Answers, truths: Mapping[StratumName, float], found: Mapping[StratumName, _Tally]
) -> None:
    """Draw until it is enough, and note whether the intervals hold the truth."""
    while looks := drawing.next_look():
        for name, (picture, row) in looks.items():
            drawing.add(name, picture, row, answers.of(picture, row))
    for name, estimate in drawing.estimates.items():
        error = estimate.value - truths[name]
        found[name].add(abs(error) <= estimate.half_width + _TOLERANCE, estimate.pairs, error)


def _replay_sequence(answers: Answers, seed: int, found: Mapping[StratumName, _Tally]) -> None:
    """Draw every pair, and note whether the truth was ever outside of the bounds."""
    names = _cells(answers)
    sampler = Sampler(answers.population, SamplingSpec(dict.fromkeys(names, 1e-9)), seed)
    sequences: dict[StratumName, ConfidenceSequence] = {
        name: ConfidenceSequence(answers.population.stratum(name), ERROR) for name in names
    }
    while looks := sampler.next_look():
        for name, (picture, row) in looks.items():
            estimator, correct = sampler.estimators[name], answers.of(picture, row)
            sequences[name].add(picture, row, correct, estimator.ridge.fit() if len(estimator) else None)
            sampler.add(name, picture, row, correct)
    for name, sequence in sequences.items():
        inside = sequence.low - _TOLERANCE <= truth(answers, name) <= sequence.high + _TOLERANCE
        found[name].add(inside, sampler.drawn(name), 0.0)


def _row(
    answers: Answers, stage: str, name: StratumName, mark: float | None, replays: int, tally: _Tally
) -> BenchRow[ReplayFacts]:
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
        stage=stage,
        engine="sample",
        unit="replays",
        model=answers.model,
        data=answers.run,
        pictures=len(answers.population),
        occluders=answers.population.rows,
        rounds=replays,
        facts=facts,
    )
