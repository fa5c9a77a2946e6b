"""The doctor: which engines can run here and on which device, why not, and whether they are right."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.data import LOADERS
from ..engine.devices import resolve_device
from ..engine.engines import ENGINES
from ..engine.engines.base import Engine
from ..engine.engines.choice import EngineChoice, open_engine
from ..engine.parity.gates import judge_largest_error
from ..engine.training.objectives import OBJECTIVES
from ..engine.training.optimizers import OPTIMIZERS
from ..export.classifier import INT8, FrozenClassifier
from ..export.errors import EngineUnavailable, InputError, in_short
from ..export.formats import FORMATS
from ..export.models import FAMILIES
from ..export.models.digits_networks import digits_resnet
from ..export.models.digits_recipe import (
    DIGITS_INPUT_SIZE,
    DIGITS_INTERPOLATION,
    DIGITS_MEAN,
    DIGITS_RESIZE,
    DIGITS_STD,
)
from ..export.occluded import OccludedClassifier
from ..export.options import defaults
from ..export.preprocessing import Preprocessing
from ..export.registry import Table
from .suites import SUITES

_PICTURES, _OCCLUDERS, _EPSILON = 16, 4, 32.0
_TIMED_PASSES = 5


@dataclass(frozen=True)
class EngineState:
    """Whether an engine can run on a device.

    Attributes
    ----------
    reason
        Why it cannot run; empty where it can.
    options
        Defaults of the options that `--engine-option` sets.
    """

    engine: str
    device: str
    precisions: tuple[str, ...]
    available: bool
    reason: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One engine at one precision, compared with float64.

    Attributes
    ----------
    kind
        `cpu` or `cuda`; `device` is a GPU's name.
    max_error, allowed_error
        Largest |logit − float64 logit| over all pairs, and how large it may be.
    agreement
        Share of pairs with the same top-1 class as in float64.
    pairs_per_second
        Rate on the small network of this check: for comparing precisions, not for large networks.
    passed, reason
        None where it cannot run here, and why; False, and what is wrong; True, and empty.
    """

    engine: str
    device: str
    precision: str
    passed: bool | None
    kind: str
    max_error: float | None = None
    allowed_error: float | None = None
    agreement: float | None = None
    pairs_per_second: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Pairs:
    """All pairs of a few random pictures and occluders, clean included, as `Engine.infer` takes them."""

    images: Tensor
    bank: Tensor
    image_index: Tensor
    occluder_index: Tensor


def engine_states() -> list[EngineState]:
    """Return every engine on every kind of device that it runs on; one that cannot be imported has no device."""
    return [
        *(_state(engine, device) for engine in ENGINES.classes() for device in engine.devices),
        *(EngineState(name, "–", (), available=False, reason=why) for name, why in ENGINES.broken().items()),
    ]


def _state(engine: type[Engine], device: str) -> EngineState:
    options = defaults(engine.Options)
    try:
        precisions = engine.precisions(device)
    except EngineUnavailable as error:
        reason = str(error).splitlines()[0]
        return EngineState(engine.name, device, (), available=False, reason=reason, options=options)
    return EngineState(engine.name, device, precisions, available=True, options=options)


def notes(packages: Mapping[str, str | None]) -> list[str]:
    """Return what to know about the installed packages before an engine disappoints.

    Parameters
    ----------
    packages
        Versions by distribution, None where it is not installed; see `environment.packages`.
    """
    found = []
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall both, then install gfo[onnx]."
        )
    if packages["onnxruntime-gpu"]:
        found.append(
            "onnxruntime-gpu serves the CPU too. Its TensorRT provider links TensorRT 10; a native TensorRT 11 cannot "
            "serve it."
        )
    if packages["tensorrt-rtx"]:
        found.append(
            "tensorrt-rtx builds for compute capability 7.5, 8.0, 8.6, 8.9 and 12.x; for 9.0 (H100) use tensorrt."
        )
    return [*found, *_broken()]


def _broken() -> list[str]:
    """Return why entry points of other packages cannot be used; those of engines are rows of their own."""
    others: tuple[Table[Any], ...] = (LOADERS, OBJECTIVES, OPTIMIZERS, FORMATS, FAMILIES, SUITES)
    return [f"{why}." for table in others for why in table.broken().values()]


def self_test(engines: Collection[str] | None = None, device: str = "auto") -> Iterator[Check]:
    """Run every engine present, on every device, at every precision that it has, against float64.

    An engine that runs a graph has it exported from the small network of this check first.

    Parameters
    ----------
    engines
        Their names; None for all.
    device
        `cpu`, `cuda` or `cuda:N`; `auto` for every kind that there is.

    Yields
    ------
    Check
        One as each ends; one for a device that is not there, too.
    """
    classifier, pairs = _random_classifier(), _random_pairs()
    truth = _float64_logits(classifier, pairs)
    kind = None if device == "auto" else resolve_device(device).type
    for state in engine_states():
        if (engines is not None and state.engine not in engines) or (kind is not None and state.device != kind):
            continue
        without = partial(Check, state.engine, state.device, kind=state.device)
        if not state.available:
            yield without("–", passed=None, reason=state.reason)
        # An int8 form is made with pictures; gfo-export compares every one with the network that it was made of.
        for precision in [name for name in state.precisions if name != INT8]:
            own = _own_logits(classifier, precision, pairs)
            choice = EngineChoice(state.engine, precision, state.device)
            try:
                with open_engine(choice, classifier) as engine:
                    yield _checked(engine, pairs, truth, own)
            except EngineUnavailable as error:  # a provider or a driver that is installed, but does not start
                yield without(precision, passed=None, reason=str(error))
            except (
                RuntimeError,
                InputError,
            ) as error:  # an operation that the device lacks, or a bad graph
                yield without(precision, passed=False, reason=in_short(error))


def _checked(engine: Engine, pairs: _Pairs, truth: Tensor, own: Tensor) -> Check:
    engine.load_bank(pairs.bank)
    logits = engine.infer(pairs.images, pairs.image_index, pairs.occluder_index).cpu()
    error = judge_largest_error(truth, logits, own)
    return Check(
        engine.name,
        engine.device,
        engine.precision,
        error.passed,
        kind=engine.torch_device.type,
        max_error=error.max_error,
        allowed_error=error.allowed_error,
        agreement=error.agreement,
        pairs_per_second=_rate(engine, pairs),
        reason="" if error.passed else "logits differ from float64 by more than rounding",
    )


def _rate(engine: Engine, pairs: _Pairs) -> float:
    start = time.perf_counter()
    for _ in range(_TIMED_PASSES):
        engine.infer(pairs.images, pairs.image_index, pairs.occluder_index).cpu()  # .cpu() waits for the device
    return _TIMED_PASSES * len(pairs.image_index) / (time.perf_counter() - start)


def _random_classifier() -> FrozenClassifier:
    """Return a network with what CNNs are built of: strides, a sum, maximum and global average pooling.

    Its weights are random, and BatchNorm fitted to random pictures; otherwise all logits would be nearly the same.
    """
    preprocessing = Preprocessing(DIGITS_INPUT_SIZE, DIGITS_RESIZE, DIGITS_INTERPOLATION, DIGITS_MEAN, DIGITS_STD)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = digits_resnet().train()
        assert isinstance(network, nn.Sequential)
        network.insert(3, nn.MaxPool2d(2))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the plain mean over all batches, here one
        network(torch.rand(_PICTURES, 3, DIGITS_INPUT_SIZE, DIGITS_INPUT_SIZE) * 2 - 1)
    return FrozenClassifier.from_module(network.eval(), preprocessing, model="self-test", weights="random")


def _random_pairs() -> _Pairs:
    generator = torch.Generator().manual_seed(0)
    shape = (DIGITS_INPUT_SIZE, DIGITS_INPUT_SIZE, 3)
    rows = _OCCLUDERS + 1
    return _Pairs(
        images=torch.randint(0, 256, (_PICTURES, *shape), dtype=torch.uint8, generator=generator),
        bank=(torch.rand(_OCCLUDERS, *shape, generator=generator) * 2 - 1) * _EPSILON,
        image_index=torch.arange(_PICTURES).repeat_interleave(rows),
        occluder_index=torch.arange(rows).repeat(_PICTURES),
    )


@torch.no_grad()
def _float64_logits(classifier: FrozenClassifier, pairs: _Pairs) -> Tensor:
    """Compute the formula written out once more, sharing nothing with the engines but the folded weights."""
    clean_first = torch.cat([torch.zeros_like(pairs.bank[:1]), pairs.bank]).double()
    occluded = (pairs.images[pairs.image_index].double() + clean_first[pairs.occluder_index]).clamp(0, 255)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (DIGITS_MEAN, DIGITS_STD))
    inputs = ((occluded / 255 - mean) / std).permute(0, 3, 1, 2)
    return copy.deepcopy(classifier.network).double()(inputs)


@torch.no_grad()
def _own_logits(classifier: FrozenClassifier, precision: str, pairs: _Pairs) -> Tensor:
    """Return the logits of plain PyTorch on the CPU at that precision."""
    reference = OccludedClassifier(classifier, precision)
    return reference(pairs.images, pairs.image_index, pairs.occluder_index, pairs.bank)


def objective_options() -> dict[str, dict[str, Any]]:
    """Return the defaults of the options that `--objective-option` sets, by objective."""
    return {name: defaults(found.Options) for name, found in OBJECTIVES.by_name().items()}


def as_json(environment: Mapping[str, Any], states: list[EngineState], checks: list[Check] | None) -> dict[str, Any]:
    """Return everything as plain JSON types; `selftest` is None where it did not run."""
    return {
        "schema": 1,
        "environment": dict(environment),
        "engines": [asdict(state) for state in states],
        "objectives": objective_options(),
        "notes": notes(environment["packages"]),
        "selftest": None if checks is None else [asdict(check) for check in checks],
    }
