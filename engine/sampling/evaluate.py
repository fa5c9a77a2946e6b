"""Certified evaluation: clean answers of every picture, then pairs drawn at random until the cells are sure enough."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...export.artefact import Artefact
from ...export.bank import OccluderBank
from ...export.classifier import FrozenClassifier
from ...export.errors import InputError
from ...export.models.spec import ModelSpec
from ...kernels.score import Score
from ..data.spec import DataSpec
from ..doubts import accuracy_doubt
from ..evaluation.all_pairs import run_assignment
from ..evaluation.config import EvaluationConfig
from ..evaluation.evaluate import mend, speed_of, summary_of
from ..evaluation.passes import Passes
from ..evaluation.station import Job, Station, open_station
from ..evaluation.strengths import check_out
from ..evaluation.summary import STORE, SUMMARY_FILE, Summary
from ..evaluation.todo import refuse_quarantined
from ..machine import peak_rss_mb
from ..progress import Progress, no_progress
from .cells import results_of
from .drawn import DrawnPairs, OnlyLines, pictures_of
from .population import SAMPLE, population_of
from .sampler import Pairs, Sampler
from .spec import LEAST, SamplingSpec
from .store import PAIRS, PairStore
from .strata import StratumName

_BAR: Final = 100.0  # per cent


def evaluate_sample(
    model: ModelSpec | FrozenClassifier | Artefact,
    bank: OccluderBank | Path | None,
    data: DataSpec,
    out: Path,
    config: EvaluationConfig,
    sampling: SamplingSpec,
    progress: Progress = no_progress,
) -> Summary:
    """Evaluate every picture clean and as many pairs as it takes, and write `out/summary.json`.

    Pairs of each cell are drawn in a uniform order without replacement, which the seed fixes. The same call resumes,
    and one with other marks goes on with the same pairs. Answers are in `out/sample`.

    Parameters
    ----------
    model, bank, data, out, config
        As of `evaluate`; one strength, no shard and no cluster.
    sampling
        When to end.

    Returns
    -------
    Summary
        The contents of `summary.json`; `sample` says how sure its cells are, and what became of the claims.

    Raises
    ------
    InputError, EngineUnavailable, Unreachable, KeyboardInterrupt
        As of `evaluate`; also where a cell has no pairs, or `out` holds a full RUN.
    """
    _check(out, config)
    job = Job(model, bank, data, out / SAMPLE, config, clean_only=True)
    with open_station(job, progress) as station:
        (store,) = station.stores
        sampling.check_classes(len(store.run.class_ids))
        started, todo = time.perf_counter(), station.to_do()
        if todo[0].changed:
            progress.say(f"{todo[0].changed} pictures have changed since: evaluating these and drawing again")
            (out / SUMMARY_FILE).unlink(missing_ok=True)
            shutil.rmtree(store.path.parent / PAIRS, ignore_errors=True)
        passes = station.passes(len(store) + 2 * LEAST)
        counted = [station.fill(todo, passes), *mend(station, (0, 1), progress)]
        refuse_quarantined(store, store.quarantined(), config.max_quarantined)
        population = population_of(store)
        sampler = Sampler(population, sampling, config.seed)
        drawn = _draw(station, sampler, PairStore(store.path.parent, sampler.totals), passes, progress)
        seconds, pairs = time.perf_counter() - started, drawn + sum(count for _, count in counted)
    speed = speed_of(out, seconds, pairs, peak_rss_mb())
    results = results_of(store.run, population, sampler.estimators, sampler.estimates)
    summary = summary_of(store, speed, 0, results, sampler.record())
    summary.write(out)
    if line := accuracy_doubt(population.clean, store.run.num_classes, station.accuracy):
        progress.say(line)
    return summary


def _check(out: Path, config: EvaluationConfig) -> None:
    """Raise `InputError` for what a sampled evaluation does not do."""
    if config.shard is not None or config.cluster is not None:
        option = "--shard" if config.shard is not None else "--cluster"
        raise InputError(f"--until, --claim: a sample is drawn by one process; leave {option} out")
    if len(config.strengths) > 1:
        raise InputError("--until, --claim: take a single --strength; evaluate each with an --out of its own")
    check_out(out, config.strengths)
    if (out / STORE).exists():
        raise InputError(f"{out}: holds a RUN of all pairs; leave --until and --claim out, or use another --out")


def _draw(station: Station, sampler: Sampler, kept: PairStore, passes: Passes, progress: Progress) -> int:
    """Draw pairs until the sampler has enough; return how many were evaluated, and not read back."""
    (store,) = station.stores
    evaluated, reached = 0, 0.0
    with progress.task("drawn pairs", _BAR) as bar:
        while looks := sampler.next_look():
            answers: dict[StratumName, NDArray[np.int32]] = {}
            for name, (picture, row) in looks.items():
                found = kept.answers(name, sampler.drawn(name), sampler.population.pictures[picture], row)
                if found is not None:
                    answers[name] = found
            missing: dict[StratumName, Pairs] = {name: pairs for name, pairs in looks.items() if name not in answers}
            if missing:
                answers |= _evaluated(station, sampler, kept, missing, passes)
                evaluated += sum(len(answers[name]) for name in missing)
            for name, (picture, row) in looks.items():
                labels = store.labels[sampler.population.pictures[picture]]
                sampler.add(name, picture, row, (answers[name] == labels).astype(float))
            now = max(reached, sampler.reached())
            bar.advance(_BAR * (now - reached), str(sampler))
            reached = now
            progress.event("look", **{name: vars(estimate) for name, estimate in sampler.estimates.items()})
    return evaluated


def _evaluated(
    station: Station, sampler: Sampler, kept: PairStore, looks: Mapping[StratumName, Pairs], passes: Passes
) -> dict[StratumName, NDArray[np.int32]]:
    """Evaluate the next pairs of some cells together, and keep their answers; return the predictions."""
    (store,) = station.stores
    images = {name: sampler.population.pictures[picture] for name, (picture, _) in looks.items()}
    rows = {name: row for name, (_, row) in looks.items()}
    work = DrawnPairs(store, np.concatenate(list(images.values())), np.concatenate(list(rows.values())))
    source = pictures_of(station.source, store, work)
    run_assignment(station.engine, work, source, passes, no_progress, progress=OnlyLines(station.progress))
    answers: dict[StratumName, NDArray[np.int32]] = {}
    start = 0
    for name in looks:
        stop = start + len(rows[name])
        scores = Score(*(values[start:stop] for values in work.scores))
        kept.write(name, sampler.drawn(name), images[name], rows[name], scores)
        answers[name] = scores.prediction.numpy().astype(np.int32)
        start = stop
    return answers
