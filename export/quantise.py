"""A network quantised to int8 after training, by NNCF, as a graph with explicit conversions.

Weights are int8 by output channel; activations are 8 bits by tensor, symmetric, and unsigned where they are never
negative. Ranges are means over the extremes of calibration pictures, and biases make good for the mean error: on
EfficientNet-Lite0 that leaves a quarter of the error that the largest extremes of all pictures leave.

First and last layer are tried in float32, too, and stay so where the logits gain from it.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .cache import key
from .calibration import Calibration
from .classifier import FrozenClassifier
from .errors import InputError, in_short
from .int8 import Int8Facts, Int8Network
from .onnx_graph import NETWORK_INPUT, bare_network
from .optional import optional
from .quantised_graph import (
    check_scales,
    conversions_counted,
    in_float32,
    not_converted,
    positive_axes,
    squared,
    weighted,
)

if TYPE_CHECKING:
    import onnx

QUANTISE_VERSION = 1
"""Raised when this file makes another graph of the same network and pictures: cached ones are not used any more."""

# Batches on which a layer is tried in float32.
_TRIED = 6
# A layer stays in float32 if that takes this share of the logits' error away.
_WORTH = 0.1

_Batches = Sequence[NDArray[np.float32]]


def quantise(classifier: FrozenClassifier, calibration: Calibration) -> FrozenClassifier:
    """Return the classifier with its `int8` form.

    Raises
    ------
    InputError
        The network cannot be exported, NNCF does not take it, nothing in it can be quantised, or an activation is not
        finite on the calibration pictures.
    EngineUnavailable
        NNCF or ONNX Runtime is not installed.
    """
    # What NNCF imports of PyTorch says on import that there is no compiler for CUDA; nothing here compiles.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    nncf = optional("nncf", "--precision int8", "int8")
    runtime = optional("onnxruntime", "--precision int8", "onnx")
    graph = bare_network(classifier, "fp32")
    batches = list(calibration.batches(classifier.preprocessing))
    squares = squared(graph)
    converted = _converted(nncf, graph, batches, squares, classifier.model)
    check_scales(converted, classifier.model)
    chosen, kept, errors = _ends_tried(converted, graph, squares, lambda made: _logits(runtime, made, batches[:_TRIED]))
    counted, others, unquantised = conversions_counted(chosen)
    if not counted:
        listed = ", ".join(f"{count} {kind}" for kind, count in others.items()) or "none"
        raise InputError(
            f"{classifier.model}: none of its operations can be quantised (it has {listed}); use --precision bf16"
        )
    reasons = {name: kept.get(name, "NNCF does not quantise it") for name in unquantised}
    built_with = {"nncf": nncf.__version__, "onnxruntime": runtime.__version__}
    facts = Int8Facts(calibration.facts, counted, reasons, others, errors)
    made = {"calibration": calibration.facts.pictures_hash, "tools": built_with, "version": QUANTISE_VERSION}
    return replace(classifier, int8=Int8Network(chosen, facts, built_with, key(made)))


def _converted(
    nncf: Any, graph: onnx.ModelProto, batches: _Batches, kept: Mapping[str, str], model: str
) -> onnx.ModelProto:
    """Return what NNCF makes of a graph; `kept` are names of nodes that stay in float32."""
    parameters = import_module("nncf.quantization.advanced_parameters")
    symmetric = parameters.QuantizationMode.SYMMETRIC
    how = parameters.AdvancedQuantizationParameters(
        activations_quantization_params=parameters.QuantizationParameters(mode=symmetric, per_channel=False),
        weights_quantization_params=parameters.QuantizationParameters(mode=symmetric, per_channel=True),
    )
    nncf.set_log_level(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            made = nncf.quantize(
                graph,
                nncf.Dataset(list(batches), lambda batch: {NETWORK_INPUT: batch}),
                subset_size=len(batches),
                preset=nncf.QuantizationPreset.PERFORMANCE,
                advanced_parameters=how,
                ignored_scope=nncf.IgnoredScope(names=list(kept), types=not_converted(graph), validate=False),
            )
    except Exception as error:  # NNCF raises kinds of its own and those of ONNX Runtime
        raise InputError(f"{model}: NNCF cannot quantise it ({in_short(error)}); use --precision bf16") from error
    del made.graph.value_info[:]  # some have the types of before
    positive_axes(made)
    return made


# ---- first and last layer


def _ends_tried(
    converted: onnx.ModelProto,
    graph: onnx.ModelProto,
    squares: Mapping[str, str],
    logits: Callable[[onnx.ModelProto], NDArray[np.float32]],
) -> tuple[onnx.ModelProto, dict[str, str], dict[str, float]]:
    """Put first and last layer back into float32 where that is worth it.

    Returns
    -------
    tuple
        The graph, why nodes stay in float32, and the errors as in `Int8Facts`.
    """
    truth = logits(graph)
    errors, kept, chosen = {"all": _error(truth, logits(converted))}, dict(squares), converted
    names = [name for name in weighted(graph) if name not in squares]
    # Of two layers nothing would be left.
    ends = {"first": names[0], "last": names[-1]} if len(names) > 2 else {}
    for place, layer in ends.items():
        errors[place] = _error(truth, logits(in_float32(converted, graph, layer)))
        gain = 1 - errors[place] / errors["all"] if errors["all"] else 0.0
        if gain >= _WORTH:
            kept[layer] = f"the {place} layer, worth {gain:.0%} of the logits' error"
            chosen = in_float32(chosen, graph, layer)
    errors["written"] = _error(truth, logits(chosen))
    return chosen, kept, {name: round(error, 5) for name, error in errors.items()}


def _error(truth: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Return the RMS error less each class's mean, as a share of what the truth has of it."""
    rest, spread = (found - truth).astype(np.float64), truth.astype(np.float64)
    rms = [float(np.sqrt(((part - part.mean(axis=0)) ** 2).mean())) for part in (rest, spread)]
    return rms[0] / rms[1] if rms[1] else rms[0]


def _logits(runtime: Any, graph: onnx.ModelProto, batches: _Batches) -> NDArray[np.float32]:
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {NETWORK_INPUT: batch})[0] for batch in batches])
