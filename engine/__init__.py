"""The work: load pictures, train occluders, run an inference engine, evaluate all pairs, store and report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation import evaluate
    from .exporting import export_checked
    from .reporting import report
    from .train_config import TrainConfig
    from .training import train

__all__ = ["TrainConfig", "evaluate", "export_checked", "report", "train"]

_HOMES = {
    "TrainConfig": "train_config",
    "evaluate": "evaluation",
    "export_checked": "exporting",
    "report": "reporting",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `gfo-eval --help` does not load torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
