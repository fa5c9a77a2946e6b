"""Inference engines: one file each, one lifecycle (`base.Engine`)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ...export.artefact import Artefact
from ...export.classifier import PRECISIONS
from ...export.errors import EngineUnavailable, InputError
from .base import Engine, Subject, check_precision
from .torch_engine import resolve_device

ENGINES = ("torch", "onnxruntime", "openvino", "trt")

_HOMES = {
    "torch": ("torch_engine", "TorchEngine"),
    "onnxruntime": ("onnxruntime_engine", "OnnxRuntimeEngine"),
    "openvino": ("openvino_engine", "OpenVinoEngine"),
    "trt": ("trt_engine", "TrtEngine"),
}
# Fastest first, as docs/results.md and the design's trials found them.
_ON_CUDA = ("trt", "torch", "onnxruntime")
_ON_CPU = ("openvino", "onnxruntime", "torch")


def engine_class(name: str) -> type[Engine]:
    """The class of that name; its library is imported when it is asked for something.

    Raises
    ------
    InputError
        A name that is no engine.
    """
    if name not in ENGINES:
        raise InputError(f"--engine {name}: expected auto or one of {', '.join(ENGINES)}")
    home, found = _HOMES[name]
    return getattr(import_module(f".{home}", __name__), found)


def open_engine(
    name: str, subject: Subject, precision: str, device: str = "auto", **options: Any
) -> tuple[Engine, str]:
    """An engine that is not open yet, and in words why this one.

    Parameters
    ----------
    name
        `auto` takes the first that can run here of those that were found fastest.
    options
        Of one engine: `impl` and `compiled` (torch), `provider` (onnxruntime), `hint` (openvino), `pairs` (trt). One
        that the engine does not have must have its default.

    Raises
    ------
    InputError
        A name that is no engine, a precision or format that it lacks, an option that it does not have.
    EngineUnavailable
        Its library or device is not there.
    """
    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision}: expected one of {', '.join(PRECISIONS)}")
    if isinstance(subject, Artefact):
        check_precision(subject, precision)
    if name != "auto":
        return _made(name, subject, precision, device, options), "asked for"
    refusals = []
    for candidate in _ON_CUDA if resolve_device(device).type == "cuda" else _ON_CPU:
        try:
            engine = _made(candidate, subject, precision, device, options)
        except (EngineUnavailable, InputError) as error:
            refusals.append(f"{candidate}: {error}")
        else:
            passed_over = f" (not {'; not '.join(refusals)})" if refusals else ""
            return engine, f"the first here of those found fastest{passed_over}"
    raise EngineUnavailable(f"--engine auto: none runs this here: {'; '.join(refusals)}")


_DEFAULTS = {"impl": "auto", "compiled": False, "provider": "auto", "hint": "auto", "pairs": None}
_OPTIONS = {"torch": ("impl", "compiled"), "onnxruntime": ("provider",), "openvino": ("hint",), "trt": ("pairs",)}


def _made(name: str, subject: Subject, precision: str, device: str, options: dict[str, Any]) -> Engine:
    given = {option: value for option, value in options.items() if value != _DEFAULTS[option]}
    foreign = [option for option in given if name in _OPTIONS and option not in _OPTIONS[name] and option != "pairs"]
    made = engine_class(name)
    if foreign:
        raise InputError(f"--{foreign[0]} {given[foreign[0]]}: engine {name} has no such choice; leave it out")
    own = {option: value for option, value in given.items() if option in _OPTIONS[name]}
    return made(subject, precision, device, **own)
