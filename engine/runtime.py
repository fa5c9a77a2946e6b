"""Choices that depend on the machine: worker threads, the allocator, the fastest precision."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_REPEATS = 3


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


def measured_precision(steps: Mapping[str, Callable[[], Any]], device: torch.device) -> tuple[str, str]:
    """The name of the fastest step, and why in words. The candidates take turns; one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(_REPEATS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: median(values) for name, values in seconds.items()}
    fastest = min(medians, key=medians.__getitem__)
    listed = ", ".join(f"{name} {value * 1e3:.0f} ms" for name, value in medians.items())
    return fastest, f"the fastest of {listed} a step"
