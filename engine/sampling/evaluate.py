"""Certified evaluation: clean answers of every picture, then pairs drawn at random until the cells are sure enough."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from ...export.artefact import Artefact
from ...export.bank import OccluderBank
from ...export.classifier import FrozenClassifier
from ...export.errors import InputError
from ...export.models.spec import ModelSpec
from ..data.spec import DataSpec
from ..doubts import accuracy_doubt
from ..evaluation.config import EvaluationConfig
from ..evaluation.evaluate import mend, speed_of, summary_of
from ..evaluation.station import Job, open_station
from ..evaluation.strengths import check_out
from ..evaluation.summary import STORE, SUMMARY_FILE, Summary
from ..evaluation.todo import refuse_quarantined
from ..machine import peak_rss_mb
from ..progress import Progress, no_progress
from .cells import results_of
from .draw import draw
from .drawing import LEAST
from .population import SAMPLE, population_of
from .sampler import Sampler
from .spec import SamplingSpec
from .store import PAIRS, PairStore


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
        kept = PairStore(store.path.parent, sampler.totals)
        drawn = draw(station.engine, station.source, store, sampler, kept, passes, progress)
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
