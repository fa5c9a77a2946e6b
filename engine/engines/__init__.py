"""Inference engines: one file each, one lifecycle (`base.Engine`)."""

from __future__ import annotations

from ...export.classifier import FrozenClassifier
from ...export.errors import InputError
from .base import Engine

ENGINES = ("torch",)


def open_engine(
    name: str, classifier: FrozenClassifier, precision: str, device: str = "auto", impl: str = "auto"
) -> tuple[Engine, str]:
    """An engine that is not open yet, and in words why this one and these kernels.

    Raises
    ------
    InputError
        A name that is no engine, a precision that it lacks, or an `impl` that cannot run on the device.
    EngineUnavailable
        The device is not there.
    """
    if name not in ("auto", *ENGINES):
        raise InputError(f"--engine {name}: expected auto or one of {', '.join(ENGINES)}")
    from .torch_engine import TorchEngine

    reason = "the only engine in this version" if name == "auto" else "asked for"
    engine = TorchEngine(classifier, precision, device, impl=impl)
    return engine, f"{reason}; kernels {engine.impl}: {engine.impl_reason}"
