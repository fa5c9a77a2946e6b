"""What is frozen: preprocessing, the classifier, the bank of occluders, and all three as the occluded classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artefact import Artefact, export
    from .bank import BankHeader, OccluderBank
    from .classifier import FrozenClassifier, load_classifier
    from .errors import EngineUnavailable, InputError
    from .models.spec import ModelSpec
    from .occluded import OccludedClassifier
    from .preprocessing import Preprocessing

__all__ = [
    "Artefact",
    "BankHeader",
    "EngineUnavailable",
    "FrozenClassifier",
    "InputError",
    "ModelSpec",
    "OccludedClassifier",
    "OccluderBank",
    "Preprocessing",
    "export",
    "load_classifier",
]

_HOMES = {
    "Artefact": "artefact",
    "BankHeader": "bank",
    "EngineUnavailable": "errors",
    "FrozenClassifier": "classifier",
    "InputError": "errors",
    "ModelSpec": "models.spec",
    "OccludedClassifier": "occluded",
    "OccluderBank": "bank",
    "Preprocessing": "preprocessing",
    "export": "artefact",
    "load_classifier": "classifier",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `gfo-eval --help` does not load torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
