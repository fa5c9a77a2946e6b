"""The work: load pictures, train occluders, run an inference engine, evaluate all pairs, store and report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation.evaluate import evaluate
    from .parity.checked_export import export_checked
    from .reporting import report
    from .training.config import TrainConfig
    from .training.train import train

__all__ = ["TrainConfig", "evaluate", "export_checked", "report", "train"]

_HOMES = {
    "TrainConfig": "training.config",
    "evaluate": "evaluation.evaluate",
    "export_checked": "parity.checked_export",
    "report": "reporting",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `gfo-eval --help` does not load torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
