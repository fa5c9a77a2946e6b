"""Exporting with proof: the artefact is written, then every engine here that runs it is held against PyTorch.

The pictures are real ones of a data folder, or synthetic; the pairs come in a seeded disorder, clean, matched and
unmatched. The report is `parity.json`, its verdict is in the manifest: `passed`, `failed` or `not run`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...export.artefact import Artefact, check_export, export
from ...export.bank import OccluderBank
from ...export.classifier import FrozenClassifier, load_classifier
from ...export.errors import EngineUnavailable, InputError
from ...export.files import atomic_path
from ...export.manifest import FAILED, NOT_RUN, PASSED
from ...export.models.spec import ModelSpec
from ..data.folders import list_classes
from ..data.loading import open_source
from ..data.spec import SPLITS, DataSpec
from ..engines import engine_class
from ..engines.base import Engine
from ..progress import Progress, no_progress
from .gates import ParityPairs, judge, parity_pairs

REPORT = "parity.json"
ENGINES_OF = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",), "trt": ("trt",)}

# Half precision is judged by accuracies, which takes many pairs; all else by the logits themselves.
_PAIRS, _PAIRS_HALF = 300, 2100
_SYNTHETIC_PICTURES, _READ_BLOCK = 32, 64


@dataclass(frozen=True)
class _Material:
    """Pictures uint8 [N, S, S, 3], their class ids int64 [N] or None, and what they are in words."""

    images: Tensor
    labels: Tensor | None
    name: str


def export_checked(
    model: ModelSpec | FrozenClassifier,
    occluders: Path,
    out: Path,
    *,
    format: str = "onnx",  # noqa: A002
    precision: str = "fp32",
    bank_input: bool = False,
    batch_size: int = 64,
    compute_capabilities: Sequence[str] = (),
    data: Path | None = None,
    split: str = "val",
    class_map: Path | None = None,
    pairs: int | None = None,
    parity: bool = True,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Artefact:
    """Export a model and its bank into the folder `out`, and prove that engines compute there what PyTorch does.

    Parameters
    ----------
    occluders
        A bank of this model, or `zero:K` for K occluders of zeros.
    format, precision, bank_input, batch_size, compute_capabilities
        See `export`.
    data, split, class_map
        Pictures `data/<split>/<folder>/*` for the check; synthetic ones if None.
    pairs
        How many to compare; by default 300, or 2,100 for half precision on real pictures.
    parity
        False leaves the check out; the manifest says so.
    seed
        Of pictures and pairs.

    Returns
    -------
    Artefact
        Its manifest says whether the check passed; see `Manifest.parity`.

    Raises
    ------
    InputError, EngineUnavailable
        See `export`; also pictures that are not there.
    """
    check_export(out, format, precision)  # before anything that takes time
    if compute_capabilities and format != "trt":
        raise InputError(f"--compute-capability {','.join(compute_capabilities)}: is for --format trt; leave it out")
    if not parity and (data or class_map or pairs):
        raise InputError("--no-parity: then --data, --class-map and --parity-pairs say nothing; leave them out")
    if split not in SPLITS:
        raise InputError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    if batch_size < 1 or (pairs is not None and pairs < 3):
        raise InputError(f"--batch-size {batch_size} --parity-pairs {pairs}: expected at least 1 and 3")
    classifier = load_classifier(model) if isinstance(model, ModelSpec) else model
    bank = _bank(occluders, classifier)
    wanted = pairs or (_PAIRS_HALF if data is not None and precision != "fp32" else _PAIRS)
    # Before anything is exported: pictures that are not there are better known first.
    material = _material(classifier, bank, data, split, class_map, -(-wanted // 3), seed) if parity else None
    progress.say(f"exporting {classifier.model} with {len(bank.class_ids)} occluders to {format}, {precision}")

    def prove(artefact: Artefact) -> None:
        report: dict[str, Any] = {"status": NOT_RUN, "reason": "asked for without it", "engines": []}
        if material is not None:
            report = _parity(artefact, classifier, bank, material, wanted, batch_size, seed, progress)
        _record(artefact, report)

    return export(
        classifier,
        bank,
        out,
        format=format,
        precision=precision,
        bank_input=bank_input,
        batch_size=batch_size,
        compute_capabilities=compute_capabilities,
        prove=prove,
    )


def _bank(occluders: Path, classifier: FrozenClassifier) -> OccluderBank:
    kind, _, count = str(occluders).partition(":")
    if kind == "zero" and count.isdecimal():
        return OccluderBank.zeros(int(count), classifier)
    bank = OccluderBank.load(occluders)
    bank.check_fits(classifier, occluders)
    return bank


# ---- pictures


def _material(
    classifier: FrozenClassifier,
    bank: OccluderBank,
    data: Path | None,
    split: str,
    class_map: Path | None,
    count: int,
    seed: int,
) -> _Material:
    """About `count` pictures of the data, the same number of each class; or synthetic ones."""
    if data is None:
        return _Material(_synthetic(classifier.preprocessing.input_size, seed), None, "synthetic")
    own = list(bank.header.folders)
    # A single occluder meets other classes' pictures only if these are read, too.
    there = len(own) > 1 and all((data / split / folder).is_dir() for folder in own)
    spec = DataSpec(data, split, class_map=class_map)  # type: ignore[arg-type]
    folders = list_classes(spec, own if there else "all", classifier.num_classes, seed)
    rng, share = np.random.default_rng(seed), -(-count // len(folders))
    chosen = [
        (folder.paths[i], folder.class_id)
        for folder in folders
        for i in sorted(rng.permutation(len(folder.paths))[:share])
    ]
    paths, labels = [path for path, _ in chosen], torch.tensor([class_id for _, class_id in chosen])
    source = open_source(spec, classifier.preprocessing)
    blocks = list(source.blocks(paths, _READ_BLOCK))
    images = torch.cat([block.images[block.readable] for block in blocks])
    readable = torch.cat([block.readable + block.start for block in blocks])
    if len(images) == 0:
        raise InputError(f"{data / split}: none of {len(paths)} pictures could be read; mend them or give other --data")
    # With random weights an answer is right by accident only: accuracies would say nothing.
    known = labels[readable] if classifier.weights != "random" else None
    return _Material(images, known, f"{len(images)} pictures of {data / split}")


def _synthetic(size: int, seed: int) -> Tensor:
    """Smooth colours under noise, and one black and one white picture, uint8 [N, S, S, 3]."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(_SYNTHETIC_PICTURES, 3, 5, 5, generator=g) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
    noise = torch.randn(_SYNTHETIC_PICTURES, size, size, 3, generator=g) * 20
    images = (smooth.permute(0, 2, 3, 1) + noise).clamp(0, 255).to(torch.uint8).contiguous()
    images[0], images[1] = 0, 255
    return images


# ---- the check


def _parity(
    artefact: Artefact,
    classifier: FrozenClassifier,
    bank: OccluderBank,
    material: _Material,
    wanted: int,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """The contents of `parity.json`."""
    precision = artefact.manifest.precision
    engines, refusals = _engines(artefact)
    pairs = parity_pairs(material.labels, bank.class_ids, len(material.images), wanted, seed)
    # Where labels decide by accuracy PyTorch's own rounding is not needed, and half precision is slow on many CPUs.
    with_own = precision != "fp32" and material.labels is None
    labels = None if material.labels is None else material.labels[pairs.image_index]

    def logits_of(engine: Engine, title: str) -> Tensor:
        return _logits(engine, bank, material.images, pairs, batch_size, title, progress)

    # Without an engine to compare there is nothing to compute.
    names = ("fp32", *((precision,) if with_own else ())) if engines else ()
    logits = {name: logits_of(engine_class("torch")(classifier, name), f"reference {name}") for name in names}
    found: list[dict[str, Any]] = []
    for engine in engines:
        try:
            got = logits_of(engine, engine.name)
        except EngineUnavailable as error:  # a provider or driver that is there, but does not come up
            refusals.append({"engine": engine.name, "status": NOT_RUN, "reason": str(error)})
            continue
        except InputError as error:  # it does not take what we have just written
            found.append({"engine": engine.name, "device": engine.device, "status": FAILED, "reason": str(error)})
            continue
        verdict = judge(logits["fp32"], got, pairs, precision, labels, logits[precision] if with_own else None)
        for line in verdict.lines():
            progress.say(f"  {engine.name}: {line}")
        state = PASSED if verdict.passed else FAILED
        found.append({"engine": engine.name, "device": engine.device, "status": state, **verdict.to_dict()})
    reasons = [f"{each['engine']}: {each['reason']}" for each in found if each["status"] == FAILED]
    status = FAILED if reasons else PASSED if found else NOT_RUN
    return {
        "status": status,
        "reason": "; ".join(reasons or ([] if found else [str(each["reason"]) for each in refusals])),
        "pictures": material.name,
        "engines": [*found, *refusals],
    }


def _engines(artefact: Artefact) -> tuple[list[Engine], list[dict[str, Any]]]:
    """Those that run the artefact here, and why the others don't."""
    engines, refusals = [], []
    for name in ENGINES_OF[artefact.manifest.format]:
        try:
            engines.append(engine_class(name)(artefact, artefact.manifest.precision))
        except (EngineUnavailable, InputError) as error:
            refusals.append({"engine": name, "status": NOT_RUN, "reason": str(error)})
    return engines, refusals


def _logits(
    engine: Engine,
    bank: OccluderBank,
    images: Tensor,
    pairs: ParityPairs,
    batch_size: int,
    title: str,
    progress: Progress,
) -> Tensor:
    """float32 [P, C] on the CPU. Only the pictures of a batch are given to the engine."""
    parts: list[Tensor] = []
    with engine, progress.task(f"parity, {title}", len(pairs)) as bar:
        if engine.takes_bank:
            engine.load_bank(bank.occluders)
        for image_index, occluder_index in zip(
            pairs.image_index.split(batch_size), pairs.occluder_index.split(batch_size), strict=True
        ):
            pictures, place = image_index.unique(return_inverse=True)
            parts.append(engine.infer(images[pictures], place, occluder_index).cpu())
            bar.advance(len(image_index))
    return torch.cat(parts)


def _record(artefact: Artefact, report: dict[str, Any]) -> None:
    """The report beside the model, and its verdict in the manifest."""
    with atomic_path(artefact.folder / REPORT) as partial:
        partial.write_text(json.dumps(report, indent=1, allow_nan=False))
    kept = {key: value for key, value in report.items() if key != "engines"}
    engines = {each["engine"]: each["status"] for each in report["engines"]}
    replace(artefact.manifest, parity={**kept, "engines": engines}).write(artefact.folder)
