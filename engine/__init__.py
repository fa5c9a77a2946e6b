"""The work: load pictures, train occluders, run an inference engine, evaluate all pairs, store and report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.spec import DataSpec
    from .engines.base import Engine
    from .engines.choice import EngineChoice, choose_engine, open_engine
    from .evaluation.config import EvaluationConfig
    from .evaluation.evaluate import evaluate, evaluate_strengths
    from .evaluation.summary import Summary, read_summary
    from .parity.checked_export import ParityConfig, export_checked
    from .progress import TerminalProgress
    from .reporting import ReportFiles, report
    from .sampling.certify import CertificateSpec, certify, evaluate_certified
    from .sampling.evaluate import evaluate_sample
    from .sampling.spec import Claim, SamplingSpec
    from .training.config import TrainConfig
    from .training.preserve import PreserveConfig
    from .training.train import train

__all__ = [
    "CertificateSpec",
    "Claim",
    "DataSpec",
    "Engine",
    "EngineChoice",
    "EvaluationConfig",
    "ParityConfig",
    "PreserveConfig",
    "ReportFiles",
    "SamplingSpec",
    "Summary",
    "TerminalProgress",
    "TrainConfig",
    "certify",
    "choose_engine",
    "evaluate",
    "evaluate_certified",
    "evaluate_sample",
    "evaluate_strengths",
    "export_checked",
    "open_engine",
    "read_summary",
    "report",
    "train",
]

_HOMES = {
    "CertificateSpec": "sampling.certify",
    "Claim": "sampling.spec",
    "DataSpec": "data.spec",
    "Engine": "engines.base",
    "EngineChoice": "engines.choice",
    "EvaluationConfig": "evaluation.config",
    "ParityConfig": "parity.checked_export",
    "PreserveConfig": "training.preserve",
    "ReportFiles": "reporting",
    "SamplingSpec": "sampling.spec",
    "Summary": "evaluation.summary",
    "TerminalProgress": "progress",
    "TrainConfig": "training.config",
    "certify": "sampling.certify",
    "choose_engine": "engines.choice",
    "evaluate": "evaluation.evaluate",
    "evaluate_certified": "sampling.certify",
    "evaluate_sample": "sampling.evaluate",
    "evaluate_strengths": "evaluation.evaluate",
    "export_checked": "parity.checked_export",
    "open_engine": "engines.choice",
    "read_summary": "evaluation.summary",
    "report": "reporting",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `gfo-eval --help` does not load torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
