"""Inference engines: one file each, one lifecycle (`base.Engine`)."""

from __future__ import annotations

from ...export.classifier import FrozenClassifier
from ...export.errors import InputError
from .base import Engine

ENGINES = ("torch",)


def open_engine(name: str, classifier: FrozenClassifier, precision: str, device: str = "auto") -> tuple[Engine, str]:
    """An engine that is not open yet, and in words why this one.

    Raises
    ------
    InputError
        A name that is no engine, or a precision that it lacks.
    EngineUnavailable
        The device is not there.
    """
    if name not in ("auto", *ENGINES):
        raise InputError(f"--engine {name}: expected auto or one of {', '.join(ENGINES)}")
    from .torch_engine import TorchEngine

    reason = "the only engine in this version" if name == "auto" else "asked for"
    return TorchEngine(classifier, precision, device), reason
