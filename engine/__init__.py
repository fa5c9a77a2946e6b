"""The work: load pictures, train occluders, run an inference engine, evaluate all pairs, store and report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation import evaluate
    from .report import report
    from .training import TrainConfig, train

__all__ = ["TrainConfig", "evaluate", "report", "train"]

_HOMES = {"TrainConfig": "training", "evaluate": "evaluation", "train": "training"}


def __getattr__(name: str) -> Any:
    # Lazy, so that `gfo-eval --help` does not load torch. (The subpackage `report` is set as an attribute by its import,
    # so its function is reached as `gfo.engine.report.report`.)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
