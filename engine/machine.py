"""Choices that depend on the machine: worker threads, the allocator, the fastest precision."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from ..export.errors import InputError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
Key = TypeVar("Key")


def worker_count() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_rss_mb() -> float | None:
    """Largest resident memory of this process so far, MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed instead of giving it back to the system after every step.

    A training step frees and takes again hundreds of megabytes, and touching fresh pages costs a quarter of its time.
    Elsewhere than on Linux with glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def best_seconds(
    calls: Mapping[Key, Callable[[], object]],
    device: torch.device,
    *,
    turns: int = 5,
    errors: tuple[type[Exception], ...] = (),
) -> dict[Key, float]:
    """Seconds of the fastest call of each: for choosing, where a busy machine only ever adds to what a call takes.

    Parameters
    ----------
    calls
        They take turns; a first turn warms them up.
    turns
        That count.
    errors
        A call that raises one of them is left out; the last one's is raised where none is left.
    """
    best = dict.fromkeys(calls, math.inf)
    for turn in range(1 + turns):
        for key in list(best):
            start = time.perf_counter()
            try:
                calls[key]()
            except errors:
                del best[key]
                if not best:
                    raise
                continue
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                best[key] = min(best[key], time.perf_counter() - start)
    return best


def measured_precision(steps: Mapping[str, Callable[[], object]], device: torch.device) -> tuple[str, str]:
    """The name of the fastest step that works, and why in words.

    Raises
    ------
    RuntimeError, InputError
        None works; what the last one said: a precision that the network or the device lacks, or overflows in.
    """
    best = best_seconds(steps, device, turns=3, errors=(RuntimeError, InputError))
    listed = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in best.items())
    return min(best, key=best.__getitem__), f"the fastest of {listed} a step"
