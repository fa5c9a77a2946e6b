"""Errors that a person at the terminal can fix. Commands print them as one line and exit with a code."""

from __future__ import annotations

import re

# What CUDA, cuDNN, cuBLAS, TensorRT and ONNX Runtime say; they raise no kind of error of their own for it.
NO_GPU_MEMORY = "out ?of ?memory|STATUS_ALLOC_FAILED|Failed to allocate memory"

# What PyTorch names when the memory of the CPU is full; its error is of no kind of its own.
_CPU_ALLOCATOR = "DefaultCPUAllocator"


class InputError(ValueError):
    """Bad input; the message names the file, the value and what to do. Exit code 2."""


class Unreachable(Exception):
    """A picture that could not be read now: storage that fails, a lack of memory. Exit code 5.

    What is bad is the way to the picture, as far as is known, not the picture: the same command goes on once it works.
    """


class EngineUnavailable(RuntimeError):
    """An engine that cannot run here; the message names the library or driver and what to install. Exit code 3."""


def in_short(error: BaseException) -> str:
    """Return the kind of an error of other code and the first line of what it says, as the end of a message."""
    lines = (line.strip() for line in str(error).splitlines())
    return ": ".join([type(error).__name__, *[line for line in lines if line][:1]])


def last_line(text: str) -> str:
    """Return the last line that another program has printed, as the end of a message; empty where there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def lacks_gpu_memory(error: BaseException | str) -> bool:
    """Return whether an error of a library says that a GPU has not enough memory."""
    return re.search(NO_GPU_MEMORY, str(error), re.IGNORECASE) is not None


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error of a library says that there is not enough memory, on a GPU or for PyTorch on the CPU."""
    return _CPU_ALLOCATOR in str(error) or lacks_gpu_memory(error)
