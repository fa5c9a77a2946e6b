"""The installed TensorRT library: its name and version, the GPUs it builds for, its error log."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch

from ..errors import EngineUnavailable, InputError, lacks_gpu_memory

RTX = "tensorrt_rtx"
LIBRARIES = ("tensorrt", RTX)
PORTABLE_TARGETS = ("8.6", "8.9", "12.0")
"""TensorRT for RTX's targets without a GPU, GeForce of Ampere, Ada and Blackwell; three take no more bytes than one."""

_DATA_CENTRE = ("9.0", "10.0", "10.3")


def tensorrt_library(wanted: Sequence[str] = LIBRARIES) -> tuple[Any, str, str]:
    """Return module, name and version of the first of the `wanted` libraries that is installed.

    Raises
    ------
    EngineUnavailable
        None can be imported.
    """
    reasons = []
    for name in wanted:
        try:
            module = import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # a wheel without its native library raises any of these
            reasons.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
        else:
            return module, name, module.__version__
    raise EngineUnavailable(
        f"TensorRT is not installed ({'; '.join(reasons)}); pip install gfo[trt] for data-centre GPUs, or gfo[trt-rtx] "
        "for GeForce and RTX"
    )


def one_line(text: str) -> str:
    """Return a text without line breaks."""
    return " ".join(text.split())


class Log:
    """A TensorRT logger that keeps errors and drops everything else."""

    def __init__(self, trt: Any) -> None:
        errors: list[str] = []
        severe = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

        class _Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if severity in severe:
                    errors.append(one_line(msg))

        self.native, self._errors = _Logger(), errors

    def taken(self) -> str:
        """Return the errors since the last call in one line, and forget them."""
        errors = "; ".join(dict.fromkeys(self._errors))
        self._errors.clear()
        return errors or "TensorRT does not say why"

    def must(self, done: bool, what: str) -> None:
        """Raise an error that names the call `what` unless it was `done`: `OutOfMemoryError`, or `RuntimeError`."""
        if not done:
            why = self.taken()
            kind = torch.OutOfMemoryError if lacks_gpu_memory(why) else RuntimeError
            raise kind(f"TensorRT: {what} failed ({why})")


@cache
def tensorrt_log(trt: Any) -> Log:
    """Return the library's one log: TensorRT goes on using the first that it was given."""
    return Log(trt)


def rtx_targets(trt: Any) -> dict[str, Any]:
    """Return the compute capabilities that this TensorRT for RTX builds for: {"8.9": ComputeCapability.SM89, …}."""
    members = trt.ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": member for name, member in members.items() if name.startswith("SM")}


def capability_here() -> str | None:
    """Return the compute capability of PyTorch's current GPU, as `8.9`; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"


def check_gpu(trt: Any, library: str, capability: str) -> None:
    """Raise `EngineUnavailable` for a GPU that the library has no kernels for."""
    if library == RTX and capability not in rtx_targets(trt):
        raise EngineUnavailable(
            f"this GPU has compute capability {capability}, and TensorRT for RTX {trt.__version__} has "
            f"{', '.join(rtx_targets(trt))}; pip install gfo[trt], which is for data-centre GPUs"
        )


def choose_targets(trt: Any, library: str, asked: Sequence[str], here: str | None) -> tuple[str, ...]:
    """Return the compute capabilities to build for.

    Parameters
    ----------
    trt, library
        Module and name of the library; see `tensorrt_library`.
    asked
        The user's choice; empty is the GPU of this machine, or without one `PORTABLE_TARGETS`.
    here
        That of this machine's GPU, as `8.9`; None without one.

    Raises
    ------
    InputError
        The library does not build for a capability of `asked`.
    EngineUnavailable
        `tensorrt` without a GPU, or a GPU that the library does not build for.
    """
    if library != RTX:
        if here is None:
            raise EngineUnavailable(
                f"{library} {trt.__version__} builds on the GPU that the plan is for, and there is none here; "
                f"export on that machine, or pip uninstall {library} and pip install gfo[trt-rtx] for GeForce and RTX"
            )
        if any(target != here for target in asked):
            raise InputError(f"--compute-capability {','.join(asked)}: {library} builds for the GPU here only, {here}")
        return (here,)
    supported = rtx_targets(trt)
    for target in asked:
        if target not in supported:
            other = "; gfo[trt] builds for data-centre GPUs, on them" if target in _DATA_CENTRE else ""
            raise InputError(
                f"--compute-capability {target}: TensorRT for RTX {trt.__version__} has {', '.join(supported)}{other}"
            )
    if not asked and here is not None:
        check_gpu(trt, library, here)
        return (here,)
    return tuple(dict.fromkeys(asked)) or tuple(target for target in PORTABLE_TARGETS if target in supported)
