"""The device that does the work: which one, its name, and PyTorch's switches for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..export.errors import EngineUnavailable, InputError
from ..kernels.impl import choose_impl

T = TypeVar("T")


def resolve_device(device: str) -> torch.device:
    """Return the device of that name; `auto` is CUDA where there is a GPU, otherwise the CPU.

    A numbered GPU (`cuda:1`) becomes PyTorch's current one: Triton launches on the current GPU, and events are recorded
    there, whatever device the tensors are on.

    Raises
    ------
    InputError
        The name is not a device of PyTorch.
    EngineUnavailable
        CUDA is requested and not available.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"--device {device}: expected auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailable(
            f"--device {device}: PyTorch {torch.__version__} finds no CUDA GPU or driver here; use cpu"
        )
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise EngineUnavailable(f"--device {device}: no such GPU here; use one of cuda:0 to cuda:{last}")
    if resolved.type not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: expected auto, cpu, cuda or cuda:N")
    if resolved.type == "cuda" and ":" in device:
        torch.cuda.set_device(resolved)
    return resolved


def checked_impl(impl: str, device: torch.device) -> tuple[str, str]:
    """Call `choose_impl` for `--impl`: return which kernels run, and why; raise `InputError` for a bad value."""
    try:
        return choose_impl(impl, device)
    except ValueError as error:
        raise InputError(f"--impl {impl}: {error}") from error


def device_name(device: torch.device) -> str:
    """Return the name of a device for the record: `cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


# What float32 means in convolutions and in matrix products.
_FLOAT32 = {"fp32": ("ieee", "ieee"), "tf32": ("tf32", "ieee")}


@contextlib.contextmanager
def exact_float32(precision: str, device: torch.device) -> Iterator[None]:
    """Make fp32 on CUDA mean float32: by default PyTorch runs its convolutions in TF32, with 10 bits of mantissa.

    That default is `tf32`, whatever is set around it; other precisions have nothing to set.
    """
    modes = _FLOAT32.get(precision)
    if modes is None or device.type != "cuda":
        yield
        return
    backends: Any = torch.backends  # its stubs lack these switches
    switches = (backends.cudnn.conv, backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch, mode in zip(switches, modes, strict=True):
            switch.fp32_precision = mode
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Make CUDA use algorithms that return the same bits twice, as the CPU's do; an operation without one warns."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # otherwise every output is written twice, NaN first
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled


def captured(step: Callable[[], T], stream: torch.cuda.Stream) -> Callable[[], T]:
    """Capture a step that has run before as one CUDA graph, which replays the same work on the same memory.

    Call this function, and the function that it returns, with `stream` as the current stream. The result lies in the
    same memory each time.
    """
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as those of a loader, may continue to allocate.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = step()

    def replay() -> T:
        graph.replay()
        return result

    return replay


def arriving(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the CPU, behind the work that is queued by now; return what waits for the copy.

    On a CPU there is nothing to copy, and to wait for.
    """
    if tensor.device.type != "cuda":
        return lambda: tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait


class DoesNotFit(InputError):
    """A pass does not fit into the memory of a GPU."""


@contextlib.contextmanager
def fitting_memory(size: int, device: str, option: str = "--batch-size") -> Iterator[None]:
    """Turn an out-of-memory error of a GPU into one line about the option that sets the size, `DoesNotFit`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DoesNotFit(f"{option} {size}: does not fit into the memory of {device}; use a smaller one") from error


def finite_fix(precision: str) -> str:
    """Return what to do where a network's logits at a precision are not finite, for the end of a message."""
    return "check the weights" if precision == "fp32" else "use bf16 or fp32"
