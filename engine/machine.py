"""The machine: its cores and memory, the allocator, and choices that are measured on it and remembered."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..export.errors import InputError, in_short
from ..export.records import save_record, unsealed

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_HOPELESS = 3.0  # times as long as another: such a precision is not measured further
_SHORT = 1.0  # seconds
_MEASUREMENT = 2  # raised when `best_seconds` measures otherwise: earlier choices are then measured again
_CHANGE_COUNTS = 0.5  # seconds: a change of shapes, some milliseconds, is nothing beside a longer call
Key = TypeVar("Key")
Choice = TypeVar("Choice")


def worker_count() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_rss_mb() -> float | None:
    """Return the peak resident memory of this process, MiB; None where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system after every step.

    A training step frees and allocates hundreds of megabytes, and touching fresh pages costs a quarter of its time.
    On systems other than Linux with glibc this does nothing.
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
    hopeless: float = math.inf,
) -> dict[Key, float]:
    """Return the seconds of the fastest call of each: for choosing, as a busy machine only ever adds time.

    In its turn a short call runs twice in a row: the first call after one of other shapes may pay for the change, which
    a run with one of them does not.

    Parameters
    ----------
    calls
        Calls that take turns; a first turn warms them up and is not counted.
    turns
        Number of turns that count.
    errors
        A call that raises one of these is dropped; the last one is raised where no call is left.
    hopeless
        A call that takes this many times as long as the best of another gets no further turn: its time so far counts.
        Calls of less than a second go on, and first ones on a GPU, where kernels are compiled.
    """

    def ended(start: float) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    best = dict.fromkeys(calls, math.inf)
    seen = dict(best)  # first calls, too
    slow: set[Key] = set()
    for turn in range(1 + turns):
        for key in [key for key in best if key not in slow]:
            start = time.perf_counter()
            try:
                calls[key]()
                taken = ended(start)
                if turn and taken < _CHANGE_COUNTS:
                    start = time.perf_counter()
                    calls[key]()
                    taken = min(taken, ended(start))
            except errors:
                del best[key], seen[key]
                if not best:
                    raise
                continue
            seen[key] = min(seen[key], taken)
            telling = turn > 0 or device.type == "cpu"
            if telling and taken > _SHORT and any(taken / hopeless > seen[other] for other in seen if other != key):
                slow.add(key)
            if turn or key in slow:
                best[key] = min(best[key], taken)
    return best


def measured_precision(steps: Mapping[str, Callable[[], object]], device: torch.device) -> tuple[str, str]:
    """Return the name of the fastest step that works, and the reason, which says why others do not.

    Raises
    ------
    RuntimeError, InputError
        None works, with the message of the first one: the network or the device lacks the precision, or overflows.
    """
    failed: dict[str, Exception] = {}

    def noting(name: str, step: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            try:
                return step()
            except (RuntimeError, InputError) as error:
                # Not the error itself: its traceback would keep the step's memory while others run.
                failed[name] = type(error)(str(error))
                raise

        return run

    try:
        noted = {name: noting(name, step) for name, step in steps.items()}
        best = best_seconds(noted, device, turns=3, errors=(RuntimeError, InputError), hopeless=_HOPELESS)
    except (RuntimeError, InputError) as error:
        raise next(iter(failed.values())) from error
    listed = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in best.items())
    without = "".join(f"; not {name}: {_told(error)}" for name, error in failed.items())
    return min(best, key=best.__getitem__), f"the fastest of {listed} per step{without}"


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else in_short(error)


def remembered(note: Path | None, parse: Callable[[Any], Choice | None]) -> Choice | None:
    """Return a choice that an earlier run measured, None where there is none.

    Parameters
    ----------
    note
        JSON file that `remember` wrote; None where nothing is kept.
    parse
        Turns the file's contents into a choice, or None if it does not apply here. A damaged file counts as missing,
        and the choice is measured again: `parse` may raise `ValueError`, `KeyError` or `TypeError`.
    """
    if note is None:
        return None
    try:
        facts, sealed = unsealed(note.read_bytes())
        return parse(facts) if sealed and facts["measurement"] == _MEASUREMENT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(note: Path | None, facts: Mapping[str, Any]) -> None:
    """Write a measured choice for `remembered`; None keeps nothing."""
    if note is not None:
        save_record(note, {**facts, "measurement": _MEASUREMENT})
