"""Export with proof: write the artefact, then compare every engine here that runs it with PyTorch.

The pictures come from a data folder or are synthetic; the pairs are clean, matched and unmatched, in a seeded order.
The report is `parity.json`; its verdict goes into the manifest: `passed`, `failed` or `not run`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...export.artefact import Artefact, Export, ExportConfig
from ...export.bank import OccluderBank
from ...export.calibration import Calibration
from ...export.classifier import FrozenClassifier
from ...export.errors import EngineUnavailable, InputError
from ...export.files import atomic_path
from ...export.manifest import FAILED, NOT_RUN, PASSED, Parity
from ...export.models.spec import ModelSpec
from ..calibration import CalibrationConfig
from ..data.draw import draw_pictures
from ..data.spec import DataSpec
from ..engines import ENGINES
from ..engines.base import Engine
from ..progress import Progress, no_progress
from .gates import judge
from .pairs import ParityPairs, parity_pairs
from .reference import reference

REPORT = "parity.json"

# Half precision and int8 are judged by accuracies, which takes many pairs; everything else by the logits themselves.
_PAIRS, _PAIRS_BELOW = 300, 2100
_SYNTHETIC_PICTURES = 32


@dataclass(frozen=True)
class ParityConfig:
    """How an artefact is compared with PyTorch.

    Attributes
    ----------
    data
        Pictures for the comparison; None takes synthetic ones. Its `classes` are not read.
    pairs
        Number of pairs to compare, at least 3; None means 300, or 2,100 below fp32 on real pictures.
    seed
        Seed of pictures and pairs.
    """

    data: DataSpec | None = None
    pairs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs is not None and self.pairs < 3:
            raise InputError(f"--parity-pairs {self.pairs}: expected at least 3")

    def wanted(self, precision: str) -> int:
        """Return the number of pairs to compare at a precision."""
        return self.pairs or (_PAIRS_BELOW if self.data is not None and precision != "fp32" else _PAIRS)


@dataclass(frozen=True)
class _Material:
    """What is compared: pictures uint8 [N, S, S, 3], their class ids int64 [N] or None, and their description."""

    images: Tensor
    labels: Tensor | None
    name: str


def export_checked(
    model: ModelSpec | FrozenClassifier,
    bank: OccluderBank | Path | str,
    out: Path,
    config: ExportConfig | None = None,
    check: ParityConfig | None = ParityConfig(),
    progress: Progress = no_progress,
    calibration: CalibrationConfig | None = None,
) -> Artefact:
    """Export a model and its bank into the folder `out`, and prove that engines compute what PyTorch does.

    Parameters
    ----------
    model, bank, out, config
        See `export`.
    check
        How the artefact is compared with PyTorch; None skips the comparison, and the manifest says so.
    calibration
        Pictures for an export at `int8`, which needs them; other precisions have none.

    Returns
    -------
    Artefact
        Its manifest says whether the check passed; see `Manifest.parity`.

    Raises
    ------
    InputError, EngineUnavailable
        See `export`; also where the pictures for the check are missing.
    """
    job = Export(model, bank, out, config)
    for line in filter(None, (job.classifier.doubt, job.classifier.preprocessing.doubt)):
        progress.say(line)
    # Before anything is exported, so that missing pictures are reported first.
    drawn = None if calibration is None else calibration.read(job.classifier, job.bank)
    comparison = None if check is None else _Comparison.of(job, check, progress, drawn[1].files if drawn else ())
    if drawn is not None:
        _calibrate(job, drawn[0], progress)
    what = f"{job.classifier.model} with {len(job.bank.class_ids)} occluders to {job.config.format}"
    progress.say(f"exporting {what}, {job.config.precision}")

    def prove(artefact: Artefact) -> None:
        report: dict[str, Any] = {"status": NOT_RUN, "reason": "the check was skipped", "engines": []}
        _record(artefact, report if comparison is None else comparison.report(artefact))

    return job.write(prove)


def _calibrate(job: Export, calibration: Calibration, progress: Progress) -> None:
    """Make the classifier's int8 form, and say what it is."""
    facts = calibration.facts
    progress.say(f"calibrating on {facts.pictures} pictures of {facts.data}, {facts.occluded} of them occluded")
    for line in job.calibrate(calibration).lines():
        progress.say(f"  {line}")


# ---- pictures


def _material(job: Export, check: ParityConfig, calibrated: Collection[Path]) -> _Material:
    """Take about a third as many pictures as pairs, the same number of each class; or synthetic ones.

    Pictures that served the calibration do not judge its result.
    """
    classifier, data = job.classifier, check.data
    if data is None:
        return _Material(_synthetic(classifier.preprocessing.input_size, check.seed), None, "synthetic")
    count = -(-check.wanted(job.config.precision) // 3)
    drawn = draw_pictures(data, classifier, job.bank.header.folders, count, check.seed, calibrated)
    # With random weights an answer is right by accident only: accuracies would say nothing.
    known = drawn.labels if classifier.weights != "random" else None
    return _Material(drawn.images, known, f"{len(drawn.images)} pictures of {data.folder}")


def _synthetic(size: int, seed: int) -> Tensor:
    """Draw smooth colours under noise, and one black and one white picture, uint8 [N, S, S, 3]."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(_SYNTHETIC_PICTURES, 3, 5, 5, generator=g) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
    noise = torch.randn(_SYNTHETIC_PICTURES, size, size, 3, generator=g) * 20
    images = (smooth.permute(0, 2, 3, 1) + noise).clamp(0, 255).to(torch.uint8).contiguous()
    images[0], images[1] = 0, 255
    return images


# ---- the check


@dataclass(frozen=True)
class _Comparison:
    """Pictures and pairs on which engines are compared with PyTorch."""

    job: Export
    material: _Material
    pairs: ParityPairs
    progress: Progress

    @classmethod
    def of(cls, job: Export, check: ParityConfig, progress: Progress, calibrated: Collection[Path]) -> _Comparison:
        """Read the pictures and draw the pairs."""
        material, count = _material(job, check, calibrated), check.wanted(job.config.precision)
        pairs = parity_pairs(material.labels, job.bank.class_ids, len(material.images), count, check.seed)
        return cls(job, material, pairs, progress)

    def report(self, artefact: Artefact) -> dict[str, Any]:
        """Return the contents of `parity.json`."""
        engines, refusals = _engines(artefact)
        # Without an engine to compare there is nothing to compute.
        logits = self._references(artefact.manifest.precision) if engines else {}
        compared = [self._compared(engine, logits) for engine in engines]
        found = [each for each in compared if each["status"] != NOT_RUN]
        refusals += [each for each in compared if each["status"] == NOT_RUN]
        reasons = [f"{each['engine']}: {each['reason']}" for each in found if each["status"] == FAILED]
        status = FAILED if reasons else PASSED if found else NOT_RUN
        return {
            "status": status,
            "reason": "; ".join(reasons or ([] if found else [str(each["reason"]) for each in refusals])),
            "pictures": self.material.name,
            "engines": [*found, *refusals],
        }

    def _references(self, precision: str) -> dict[str, Tensor]:
        """Return the reference's logits by precision: float32, and the artefact's own where rounding is the measure."""
        # Where labels decide by accuracy, its own rounding is not needed, and half precision is slow on CPUs.
        own = (precision,) if precision != "fp32" and self.material.labels is None else ()
        classifier = self.job.classifier
        return {name: self._logits(reference(classifier, name), f"reference {name}") for name in ("fp32", *own)}

    def _compared(self, engine: Engine, logits: dict[str, Tensor]) -> dict[str, Any]:
        """Return the entry of one engine in the report."""
        try:
            found = self._logits(engine, engine.name)
        except EngineUnavailable as error:  # a provider or driver that is installed, but does not start
            return {"engine": engine.name, "status": NOT_RUN, "reason": str(error)}
        except torch.OutOfMemoryError:
            raise
        except (InputError, RuntimeError) as error:  # it cannot load or run what was just written
            return {"engine": engine.name, "device": engine.device, "status": FAILED, "reason": _reason(error)}
        labels = None if self.material.labels is None else self.material.labels[self.pairs.image_index]
        own = logits.get(engine.precision) if engine.precision != "fp32" else None
        verdict = judge(logits["fp32"], found, self.pairs, engine.precision, labels, own)
        for line in verdict.lines():
            self.progress.say(f"  {engine.name}: {line}")
        state = PASSED if verdict.passed else FAILED
        return {"engine": engine.name, "device": engine.device, "status": state, **verdict.to_dict()}

    def _logits(self, engine: Engine, title: str) -> Tensor:
        """Return logits float32 [P, C] on the CPU; the engine receives only the pictures of a batch."""
        pairs, size, parts = self.pairs, self.job.config.batch_size, list[Tensor]()
        with engine, self.progress.task(f"parity, {title}", len(pairs)) as bar:
            if engine.takes_bank:
                engine.load_bank(self.job.bank.occluders)
            for image_index, occluder_index in zip(
                pairs.image_index.split(size), pairs.occluder_index.split(size), strict=True
            ):
                pictures, place = image_index.unique(return_inverse=True)
                parts.append(engine.infer(self.material.images[pictures], place, occluder_index).cpu())
                bar.advance(len(image_index))
        return torch.cat(parts)


def _reason(error: Exception) -> str:
    """Return an error of our own as it is, one of a library in one line with its type."""
    if isinstance(error, InputError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _engines(artefact: Artefact) -> tuple[list[Engine], list[dict[str, Any]]]:
    """Return the engines that run the artefact here, and report entries of those that cannot."""
    engines, refusals = list[Engine](), list[dict[str, Any]]()
    for name, found in ENGINES.by_name().items():
        if artefact.format not in found.formats:
            continue
        try:
            engines.append(found(artefact, artefact.manifest.precision))
        except (EngineUnavailable, InputError) as error:
            refusals.append({"engine": name, "status": NOT_RUN, "reason": str(error)})
    return engines, refusals


def _record(artefact: Artefact, report: dict[str, Any]) -> None:
    """Write the report beside the graph, and its verdict into the manifest."""
    with atomic_path(artefact.folder / REPORT) as partial:
        partial.write_text(json.dumps(report, indent=1, allow_nan=False))
    verdict = Parity(status=report["status"], reason=report["reason"])
    if "pictures" in report:
        verdict["pictures"] = report["pictures"]
    verdict["engines"] = {each["engine"]: each["status"] for each in report["engines"]}
    replace(artefact.manifest, parity=verdict).write(artefact.folder)
