"""The engine that others are compared with, at each precision."""

from __future__ import annotations

from ...export.classifier import INT8, FrozenClassifier
from ..engines.base import Engine
from ..engines.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeOptions
from ..engines.torch import TorchEngine


def reference(classifier: FrozenClassifier, precision: str, device: str = "auto") -> Engine:
    """Return PyTorch; for int8, of which PyTorch knows nothing, the graph node by node as it is written.

    ONNX Runtime then fuses nothing: conversions to int8 and back round, and what lies between computes in float32. Each
    engine has integer kernels of its own for that, so it is a truth for all of them.
    """
    if precision == INT8:
        return OnnxRuntimeEngine(classifier, precision, "cpu", OnnxRuntimeOptions(provider="cpu", literal=True))
    return TorchEngine(classifier, precision, device)
