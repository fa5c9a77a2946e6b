"""Frozen things: preprocessing, classifier, bank of occluders, and all three as the occluded classifier, portable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artefact import Artefact, ExportConfig, export
    from .bank import OccluderBank
    from .bank_header import BankHeader
    from .classifier import FrozenClassifier, load_classifier
    from .errors import EngineUnavailable, InputError
    from .manifest import Manifest
    from .models.spec import ModelSpec
    from .occluded import OccludedClassifier
    from .preprocessing import Preprocessing

__all__ = [
    "Artefact",
    "BankHeader",
    "EngineUnavailable",
    "ExportConfig",
    "FrozenClassifier",
    "InputError",
    "Manifest",
    "ModelSpec",
    "OccludedClassifier",
    "OccluderBank",
    "Preprocessing",
    "export",
    "load_classifier",
]

_HOMES = {
    "Artefact": "artefact",
    "BankHeader": "bank_header",
    "EngineUnavailable": "errors",
    "ExportConfig": "artefact",
    "FrozenClassifier": "classifier",
    "InputError": "errors",
    "Manifest": "manifest",
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
