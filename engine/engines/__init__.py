"""Inference engines: one file each, one lifecycle (`base.Engine`)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ...export.artefact import Artefact
from ...export.classifier import PRECISIONS
from ...export.errors import EngineUnavailable, InputError
from ...kernels.impl import IMPLS
from ..devices import resolve_device
from .base import Engine, Subject, check_precision
from .onnxruntime import PROVIDERS

ENGINES = ("torch", "onnxruntime", "openvino", "trt")

_HOMES = {
    "torch": ("torch", "TorchEngine"),
    "onnxruntime": ("onnxruntime", "OnnxRuntimeEngine"),
    "openvino": ("openvino", "OpenVinoEngine"),
    "trt": ("trt.engine", "TrtEngine"),
}
# Fastest first: on CPUs as measured (docs/performance.md), on GPUs as expected.
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
    """An engine for a `with` statement, and in words why this one.

    Parameters
    ----------
    name
        `auto` takes the first that comes up here of those that were found fastest; that one is open already.
    options
        Of one engine: `impl` and `compiled` (torch), `provider` (onnxruntime), `hint` (openvino), `pairs` (trt). One
        that the engine does not have must have its default; `pairs` is only a wish.

    Raises
    ------
    InputError
        A name that is no engine, a precision or format that it lacks, an option that it does not have.
    EngineUnavailable
        Its library or device is not there.
    """
    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision}: expected one of {', '.join(PRECISIONS)}")
    for option, known in (("impl", IMPLS), ("provider", PROVIDERS)):
        if options.get(option, "auto") not in ("auto", *known):
            raise InputError(f"--{option} {options[option]}: expected auto or one of {', '.join(known)}")
    if isinstance(subject, Artefact):
        check_precision(subject, precision)
    if name != "auto":
        return _made(name, subject, precision, device, options), "asked for"
    refusals: dict[str, InputError | EngineUnavailable] = {}
    for candidate in _candidates(subject, device):
        try:
            engine = _made(candidate, subject, precision, device, options).__enter__()
        except (EngineUnavailable, InputError) as error:
            refusals[candidate] = error
        else:
            listed = "; ".join(f"not {other}: {error}" for other, error in refusals.items())
            return engine, f"the first here of those found fastest{f' ({listed})' if listed else ''}"
    listed = "; ".join(f"{other}: {error}" for other, error in refusals.items())
    unavailable = any(isinstance(error, EngineUnavailable) for error in refusals.values())
    raise (EngineUnavailable if unavailable else InputError)(f"--engine auto: none runs this here: {listed}")


def _candidates(subject: Subject, device: str) -> list[str]:
    """Fastest first, of a classifier; of an artefact those that run its format."""
    fastest = _ON_CUDA if resolve_device(device).type == "cuda" else _ON_CPU
    if not isinstance(subject, Artefact):
        return list(fastest)
    order = dict.fromkeys((*fastest, *ENGINES))
    return [name for name in order if subject.manifest.format in engine_class(name).formats]


_DEFAULTS = {"impl": "auto", "compiled": False, "provider": "auto", "hint": "auto", "pairs": None}
_OPTIONS = {"torch": ("impl", "compiled"), "onnxruntime": ("provider",), "openvino": ("hint",), "trt": ("pairs",)}


def _made(name: str, subject: Subject, precision: str, device: str, options: dict[str, Any]) -> Engine:
    made = engine_class(name)
    given = {option: value for option, value in options.items() if value != _DEFAULTS[option]}
    foreign = [option for option in given if option not in (*_OPTIONS[name], "pairs")]
    if foreign:
        raise InputError(f"--{foreign[0]} {given[foreign[0]]}: engine {name} has no such choice; leave it out")
    own = {option: value for option, value in given.items() if option in _OPTIONS[name]}
    return made(subject, precision, device, **own)
