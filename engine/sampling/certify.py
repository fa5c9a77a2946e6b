"""Certification: the tables of a full run in fp32, from a random sample of its pairs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ...export.artefact import Artefact
from ...export.bank import OccluderBank
from ...export.classifier import FrozenClassifier, load_classifier
from ...export.errors import InputError
from ...export.models.spec import ModelSpec
from ..data.spec import DataSpec
from ..engines.choice import EngineChoice, choose_engine
from ..evaluation.certificate import Certificate, CertifiedCell
from ..evaluation.config import EvaluationConfig, run_folders
from ..evaluation.evaluate import evaluate_strengths
from ..evaluation.passes import choose_passes
from ..evaluation.sample import CellName
from ..evaluation.station import Job, Opened, bank_of_reference, open_job
from ..evaluation.store import RunStore
from ..evaluation.summary import SUMMARY_FILE, Run, Summary, plain, read_summary
from ..evaluation.todo import to_do
from ..progress import Progress, no_progress
from .cheap import CheapAnswers, CheapRidge
from .draw import draw
from .drawing import LEAST, Drawing, orders, totals
from .estimate import DifferenceEstimator
from .population import population_of
from .spec import check_width, parse_until
from .store import PAIRS, PairStore
from .strata import STRATA, Population, StratumName

CERTIFIED: Final = "certified"
"""Folder in a RUN that holds the fp32 answers of a certificate."""
REFERENCE: Final = "fp32"
DESIGN: Final = "clean pictures, matched and unmatched pairs each in a seeded, uniform order without replacement"
ESTIMATOR: Final = "model-assisted difference estimator; two-fold cross-fitted ridge regression on the run's answers"
CELLS: Final[tuple[StratumName, ...]] = ("clean", *STRATA)
_MARK: Final = 0.005
# What the run and its fp32 answers must have in common. They differ in the engine, and in where things lie.
_SAME: Final = ("model", "weights_hash", "bank_hash", "preprocessing", "class_ids", "seed", "split", "loader")
_ENGINE: Final = ("engine", "engine_variant", "device", "artefact")


@dataclass(frozen=True)
class CertificateSpec:
    """When a certification ends.

    Attributes
    ----------
    until
        Half-width of the 95 % interval that a cell is to have, 0 … 1, exclusive, by cell: `clean`, `matched` and
        `unmatched`. Ratios follow from these.
    max_pairs
        The most pairs to evaluate; None for as many as it takes.

    Raises
    ------
    InputError
        A number is out of range.
    """

    until: Mapping[StratumName, float] = field(default_factory=lambda: dict.fromkeys(CELLS, _MARK))
    max_pairs: int | None = None

    def __post_init__(self) -> None:
        for cell, mark in self.until.items():
            check_width(cell, mark)
        if self.max_pairs is not None and self.max_pairs < len(CELLS) * LEAST:
            least = f"{len(CELLS) * LEAST}, {LEAST} of each cell"
            raise InputError(f"--max-pairs {self.max_pairs}: must be at least {least}")


def parse_certificate(until: str | None, max_pairs: int | None) -> CertificateSpec:
    """Read the options of `gfo-eval --certify`. Raises `InputError`."""
    if until is None:
        return CertificateSpec(max_pairs=max_pairs)
    found: dict[StratumName, float] = {}
    if "=" not in until:
        mark = parse_until(until)["matched"]
        return CertificateSpec(dict.fromkeys(CELLS, mark), max_pairs)
    for cell, mark in parse_until(until).items():
        if "/" in cell:
            raise InputError(f"--until {until}: ratios follow from {', '.join(CELLS)} in a certificate; ask of these")
        found[cell] = mark  # type: ignore[index]
    return CertificateSpec(found, max_pairs)


class Certifier(Drawing[DifferenceEstimator]):
    """The state of a certification.

    Parameters
    ----------
    answers
        Of the run.
    spec
        When to end.
    seed
        Of the orders.
    """

    def __init__(self, population: Population, answers: CheapAnswers, spec: CertificateSpec, seed: int) -> None:
        there: list[StratumName] = [name for name in CELLS if population.stratum(name).total]
        self.totals = totals(population, there)
        estimators: dict[StratumName, DifferenceEstimator] = {
            name: DifferenceEstimator(population.stratum(name), CheapRidge(answers)) for name in there
        }
        super().__init__(population, estimators, orders(population, seed), spec.max_pairs)
        self.answers = answers
        self._until = spec.until

    def enough_of(self, name: StratumName) -> bool:
        """See `Drawing.enough_of`: the width is reached."""
        return self.estimates[name].half_width <= self._until.get(name, math.inf)

    def reached(self) -> float:
        """See `Drawing.reached`."""
        if len(self.estimates) < len(self.estimators):
            return 0.0
        return min(
            self.reached_of(name, estimate.half_width, self._until.get(name, math.inf))
            for name, estimate in self.estimates.items()
        )

    def cells(self) -> tuple[CertifiedCell, ...]:
        """Return what the pairs so far say of each cell, and of the ratios."""
        found: dict[CellName, CertifiedCell] = {}
        for name, estimate in self.estimates.items():
            estimator, run = self.estimators[name], self.answers.accuracy(name)
            changed = estimator.correct != self.answers.right(estimator.picture, estimator.row)
            found[name] = CertifiedCell(
                name,
                run,
                estimate.value,
                estimate.half_width,
                self._until.get(name),
                estimate.pairs,
                estimate.total,
                float(changed.mean()),
            )
        clean = found["clean"]
        for name in STRATA:
            if name in found and clean.run > 0 and clean.value > 0:
                ratio = _ratio(found[name], clean)
                found[ratio.cell] = ratio
        return tuple(found.values())


def _ratio(above: CertifiedCell, clean: CertifiedCell) -> CertifiedCell:
    """Return one cell over another that was drawn apart from it, by the delta method."""
    value = above.value / clean.value
    half_width = math.hypot(above.half_width, value * clean.half_width) / clean.value
    name: CellName = "matched/clean" if above.cell == "matched" else "unmatched/clean"
    return CertifiedCell(name, above.run / clean.run, value, half_width, None, above.pairs, above.total, None)


def certify(
    model: ModelSpec | FrozenClassifier | Artefact,
    bank: OccluderBank | Path | None,
    data: DataSpec,
    out: Path,
    config: EvaluationConfig,
    spec: CertificateSpec | None = None,
    progress: Progress = no_progress,
) -> Summary:
    """Evaluate a random sample of a full run's pairs in fp32, and add the tables in fp32 to `out/summary.json`.

    The same call resumes, and one with narrower widths goes on with the same pairs. Answers are in `out/certified`.

    Parameters
    ----------
    model
        The run's, or an fp32 artefact of it.
    bank, data, out
        As of `evaluate`.
    config
        As of the run, with a single strength; its engine evaluates in fp32.
    spec
        When to end; None means the defaults.

    Returns
    -------
    Summary
        The run's, with `certificate`.

    Raises
    ------
    InputError, EngineUnavailable, Unreachable, KeyboardInterrupt
        As of `evaluate`; also where the run is in fp32, is not complete, or is of another model, bank or data.
    """
    spec = spec or CertificateSpec()
    _check(config)
    store = RunStore.open(out)
    _check_precision(store.run.precision)
    if store.pending() or not (out / SUMMARY_FILE).is_file():
        raise InputError(f"--certify: {out} is not complete; the same gfo-eval without it completes it")
    if changed := to_do(store, files=data.files).changed:
        raise InputError(f"--certify: {changed} pictures have changed since {out} was evaluated; evaluate it again")
    summary = read_summary(out / SUMMARY_FILE)
    with open_job(Job(model, bank, data, out, replace(config, engine=_reference(config.engine)))) as opened:
        _check_same(store, opened)
        for line in opened.lines:
            progress.say(line)
        population = population_of(store)
        answers = CheapAnswers(store, population, progress)
        certifier = Certifier(population, answers, spec, store.run.seed)
        kept = _pairs(out / CERTIFIED, certifier.totals, answers.digest, opened.run, progress)
        total = sum(certifier.totals.values())
        passes, why = choose_passes(opened.engine, 1, min(total, len(CELLS) * 2 * LEAST), config.batch_size)
        progress.say(f"{passes}: {why}")
        draw(opened.engine, opened.source, store, certifier, kept, passes, progress)
    run = opened.run
    facts = {name: getattr(run, name) for name in _ENGINE}
    certificate = Certificate(design=DESIGN, estimator=ESTIMATOR, cells=certifier.cells(), **facts)
    summary = replace(summary, certificate=certificate)
    summary.write(out)
    return summary


def _reference(choice: EngineChoice) -> EngineChoice:
    """Return the choice in fp32, not resolved yet: its alternatives would be in the precision of the run."""
    return replace(choice, precision=REFERENCE, reason="", alternatives=())


def evaluate_certified(
    reference: Artefact | None,
    model: ModelSpec | FrozenClassifier | Artefact,
    bank: OccluderBank | Path | None,
    data: DataSpec,
    out: Path,
    config: EvaluationConfig,
    spec: CertificateSpec | None = None,
    progress: Progress = no_progress,
) -> dict[float, Summary]:
    """Do what `evaluate_strengths` does, and then what `certify` does of each strength.

    What is refused is so before any pair is evaluated.

    Parameters
    ----------
    reference
        What answers in fp32: an artefact, or None for the model.
    model, bank, data, out, config
        As of `evaluate_strengths`, without shard and cluster.
    spec
        As of `certify`.

    Returns
    -------
    dict
        The summary of each strength, with `certificate`. Errors are those of both.
    """
    _check(config)
    subject = load_classifier(model) if isinstance(model, ModelSpec) else model
    _check_precision(config.engine.precision or subject.exported_precision or REFERENCE)
    other, own = subject, bank
    if reference is not None:
        if reference.exported_precision != REFERENCE:
            named = f"--certify {reference.folder}: is in {reference.exported_precision}"
            raise InputError(f"{named}; export it again in fp32")
        other, own = reference, bank_of_reference(subject, bank, reference)
    elif subject.exported_precision is not None:
        raise InputError("--certify fp32: an artefact has one precision; pass the folder of its fp32 export here")
    choose_engine(_reference(config.engine), other)
    evaluate_strengths(subject, bank, data, out, config, progress)
    places = run_folders(out, config.strengths)
    return {
        strength: certify(other, own, data, place, replace(config, strengths=(strength,)), spec, progress)
        for strength, place in places.items()
    }


def _check_precision(precision: str) -> None:
    if precision == REFERENCE:
        raise InputError("--certify: the RUN is in fp32 itself; certify one in bf16, fp16 or int8 (--precision)")


def _check(config: EvaluationConfig) -> None:
    """Raise `InputError` for what a certification does not do."""
    if config.shard is not None or config.cluster is not None:
        option = "--shard" if config.shard is not None else "--cluster"
        raise InputError(f"--certify: a sample is drawn by one process; once the RUN is complete, leave {option} out")


def _check_same(store: RunStore, opened: Opened) -> None:
    """Raise `InputError` where what is open is not what the run evaluated, or not in fp32."""
    if opened.engine.precision != REFERENCE:
        raise InputError(f"--certify: {opened.engine.subject.name} is in {opened.engine.precision}, not in fp32")
    strength = opened.job.config.strengths[0]
    stored, wanted = plain(store.run), plain(replace(opened.run, strength=strength))
    differing = [key for key in (*_SAME, "strength") if stored[key] != wanted[key]]
    if differing:
        listed = "; ".join(f"{key} {str(wanted[key])[:60]}, the RUN {str(stored[key])[:60]}" for key in differing[:3])
        raise InputError(f"--certify: {store.path.parent} is a run of another configuration ({listed})")
    paths, labels = ([picture[i] for picture in opened.pictures] for i in range(2))
    if store.paths != paths or store.labels.tolist() != labels:
        raise InputError(f"--certify: {store.path.parent} is over other pictures or labels; evaluate again")


def _pairs(folder: Path, there: Mapping[StratumName, int], digest: str, run: Run, progress: Progress) -> PairStore:
    """Open the fp32 answers, or begin anew where the run's answers, the seed or the engine have changed since."""
    of = {"answers": digest, "seed": str(run.seed), **{name: getattr(run, name) for name in _ENGINE}}
    before = PairStore.facts(folder)
    if before is not None and before != of:
        differing = [name for name in of if before.get(name) != of[name]]
        named = "the answers of the run" if "answers" in differing else f"the {differing[0]} of the fp32 answers"
        progress.say(f"{folder / PAIRS}: {named} changed since; drawing again")
        shutil.rmtree(folder / PAIRS)
    return PairStore(folder, there, of)
