"""All pairs: every picture clean, under every occluder of the bank and under one noise row; then the summary."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...export.artefact import Artefact
from ...export.bank import OccluderBank
from ...export.classifier import FrozenClassifier
from ...export.errors import InputError
from ...export.models.spec import ModelSpec
from ..data.spec import DataSpec
from ..doubts import accuracy_doubt
from ..machine import peak_rss_mb
from ..progress import Progress, no_progress
from .config import EvaluationConfig
from .metrics import summarize, summarize_strengths
from .results import PENDING, Results
from .sample import Sample
from .station import Job, Station, open_station
from .store import FIT_FITTED, FIT_HELD_OUT, FIT_PRESERVED, FIT_UNSEEN, RunStore
from .summary import SCHEMA, SUMMARY_FILE, Fit, Speed, Summary, read_summary
from .todo import ToDo, Work, refuse_quarantined

if TYPE_CHECKING:
    from .distributed import Remote

_MENDINGS = 2


def evaluate(
    model: ModelSpec | FrozenClassifier | Artefact,
    bank: OccluderBank | Path | None,
    data: DataSpec,
    out: Path,
    config: EvaluationConfig | None = None,
    progress: Progress = no_progress,
) -> Summary:
    """Run every occluder of a bank on every picture and write `out/predictions.zarr` and `out/summary.json`.

    Parameters
    ----------
    model
        What to run: a model, or an artefact that `export` wrote.
    bank
        A bank of this model, these weights and this preprocessing, or its file; None for an artefact with an embedded
        bank, which has no noise control, because the noise row would have to be in the bank.
    data
        Pictures. Classes of None reads those of the bank; a loader of `auto` continues a run with the loader that it
        was started with.
    config
        Engine and selection of pictures, and one strength; None means the defaults.

    Returns
    -------
    Summary
        The contents of `summary.json`. While other workers' shards are not done, `complete` is false, `remaining`
        counts their pictures, every result is None, and nothing is written.

    Raises
    ------
    InputError
        Bad input, or `out` holds a run of another configuration; the message names what differs.
    EngineUnavailable
        The engine or device is not available; nothing is then written.
    Unreachable
        A picture could not be reached; finished blocks are kept, and the same call resumes.
    KeyboardInterrupt
        Finished blocks are kept; the same call resumes.
    """
    config = config or EvaluationConfig()
    if len(config.strengths) > 1:
        raise InputError("evaluate: takes a single strength; call evaluate_strengths for several")
    (summary,) = evaluate_strengths(model, bank, data, out, config, progress).values()
    return summary


def evaluate_strengths(
    model: ModelSpec | FrozenClassifier | Artefact,
    bank: OccluderBank | Path | None,
    data: DataSpec,
    out: Path,
    config: EvaluationConfig,
    progress: Progress = no_progress,
) -> dict[float, Summary]:
    """Do what `evaluate` does at each of `config.strengths`, reading the pictures once.

    Several strengths have a RUN each, in `out/0.5` for 0.5, and a frontier in their summaries. Parameters and errors
    are those of `evaluate`; a summary is written once all strengths are done.
    """
    job = Job(model, bank, data, out, config)
    shard = config.shard or (0, 1)
    with _open(job, progress) as station:
        todo = station.to_do(shard)
        if (work := Work(station.stores, todo)).done:
            progress.say(f"resuming: {work.done} of {work.every} {work.unit} are done")
        if changed := max(one.changed for one in todo):
            progress.say(f"evaluating again the blocks of pictures that have changed since ({changed})")
            for place in station.places:
                (place / SUMMARY_FILE).unlink(missing_ok=True)
        worked = [station.fill(todo), *mend(station, shard, progress)]
    seconds, pairs = map(sum, zip(*worked, strict=True))
    touched = [bool(one.pending) or len(worked) > 1 for one in todo]
    stores, places = station.stores, station.places
    peak = peak_rss_mb() if config.cluster is None else None  # of workers nothing is known
    speeds = [speed_of(place, seconds, pairs * some, peak) for place, some in zip(places, touched, strict=True)]
    summaries = [
        summary if some else _with_certificate(summary, place)
        for summary, place, some in zip(_summaries(stores, speeds), places, touched, strict=True)
    ]
    first = summaries[0]
    if all(summary.complete for summary in summaries):  # otherwise other workers' shards are not done
        refuse_quarantined(stores[0], first.quarantined, config.max_quarantined)  # each worker has counted its own
        for place, summary in zip(places, summaries, strict=True):
            summary.write(place)
        clean, outputs = first.clean, stores[0].run.num_classes
        if clean and (line := accuracy_doubt(clean.accuracy, outputs, station.accuracy)):
            progress.say(line)
    return dict(zip(config.strengths, summaries, strict=True))


def _open(job: Job, progress: Progress) -> contextlib.AbstractContextManager[Station | Remote]:
    """Return what evaluates, here or on a cluster; Dask is not imported without one."""
    if job.config.cluster is None:
        return open_station(job, progress)
    from .distributed import open_remote

    return open_remote(job, job.config.cluster, progress)


def mend(station: Station | Remote, shard: tuple[int, int], progress: Progress) -> list[tuple[float, int]]:
    """Read every answer once no other worker has blocks left, and evaluate again those that are damaged or missing.

    Returns what `Station.fill` does, of each time.

    Raises
    ------
    InputError
        What is written is damaged again.
    """
    stores, mended = station.stores, list[tuple[float, int]]()
    own = set(stores[0].starts(*shard))
    others = [start for start in stores[0].starts() if start not in own]
    while not any(store.pending(others) for store in stores):
        todo = [ToDo(store.starts(), store.damaged()) for store in stores]
        count = max(store.count(one.pending) for store, one in zip(stores, todo, strict=True))
        if not count:
            break
        if len(mended) == _MENDINGS:
            raise InputError(f"{stores[0].path}: answers that were just written are damaged; check the disk")
        progress.say(f"evaluating again the blocks whose answers are damaged ({count} pictures)")
        mended.append(station.fill(todo))
    return mended


def _summaries(stores: Sequence[RunStore], speeds: Sequence[Speed]) -> list[Summary]:
    remaining = [store.count(store.pending()) for store in stores]
    if len(stores) > 1 and not any(remaining):
        results = summarize_strengths(stores, seed=stores[0].run.seed)
    else:
        counted = zip(stores, remaining, strict=True)
        results = [PENDING if left else summarize(store, seed=store.run.seed) for store, left in counted]
    return [summary_of(*facts) for facts in zip(stores, speeds, remaining, results, strict=True)]


def _with_certificate(summary: Summary, place: Path) -> Summary:
    """Return the summary with the certificate of an earlier one, if it is of these very results."""
    with contextlib.suppress(InputError, FileNotFoundError):
        before = read_summary(place / SUMMARY_FILE)
        if all(getattr(before, field.name) == getattr(summary, field.name) for field in fields(Results)):
            return replace(summary, certificate=before.certificate)
    return summary


def summary_of(
    store: RunStore, speed: Speed, remaining: int, results: Results, sample: Sample | None = None
) -> Summary:
    """Return the summary of a store; `remaining` counts the pictures that are not done."""
    quarantined = tuple(store.quarantined(store.starts() if remaining else None))  # what is damaged is mended later
    codes = {"unseen": FIT_UNSEEN, "fitted": FIT_FITTED, "held_out": FIT_HELD_OUT, "preserved": FIT_PRESERVED}
    return Summary(
        schema=SCHEMA,
        complete=not remaining,
        **vars(store.run),
        read=len(store) - remaining - len(quarantined),
        quarantined_count=len(quarantined),
        quarantined=quarantined,
        fit=Fit(**{name: int((store.fit == code).sum()) for name, code in codes.items()}),
        sample=sample,
        **vars(results),
        **vars(speed),
    )


def speed_of(out: Path, seconds: float, pairs: int, peak: float | None) -> Speed:
    """Return the speed of this call, or of the last one that did something where this one had nothing left to do."""
    if not pairs and (out / SUMMARY_FILE).is_file():
        with contextlib.suppress(InputError):  # damaged: it is written anew, without a speed
            before = read_summary(out / SUMMARY_FILE)
            return Speed(**{field.name: getattr(before, field.name) for field in fields(Speed)})
    rate = pairs / seconds if pairs else None
    return Speed(pairs=pairs, seconds=seconds, pairs_per_second=rate, peak_rss_mb=peak)
