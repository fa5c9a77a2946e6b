"""How speed is measured: alternatives take turns in one process.

All of a set are warm before the first is timed; then they run A B A B …, so that a machine that slows down slows all
of them. Rates are medians over the rounds, ratios come with an interval from resampling whole rounds.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ..engine.machine import peak_rss_mb
from .rows import BenchRow, F_co, Ratio

Call: TypeAlias = Callable[[], object]
Rates: TypeAlias = NDArray[np.float64]

MIN_ROUNDS = 5
# Each alternative is warmed up for this share of the budget. A sample is long enough for the clock and for a moment's
# disturbance, and long budgets give longer samples rather than ever more of them.
_WARM_UP_SHARE, _SAMPLE_SECONDS, _MOST_ROUNDS = 0.1, 5e-3, 200
# A sample takes at least this share of the longest call beside it: a network's single batch beside a whole evaluation.
_SAMPLE_SHARE = 0.1
_RESAMPLES, _INTERVAL = 2000, (2.5, 97.5)
_FEWEST_ROUNDS = 3  # that an interval is drawn from, where the work sets their number
# Written between two timings on a GPU, several times what its L2 cache holds: otherwise the inputs would lie there.
# That takes longer, some 0.3 ms on an H100, than Python takes to launch the call. Otherwise the GPU would wait, and the
# time between the events would be Python's.
_FLUSH_BYTES, _FLUSHES = 1 << 28, 4


# ---- time


class Timer:
    """A clock for calls that run on the CPU."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def now(self) -> float:
        """Return the time in seconds, once everything that was started has ended."""
        return self._clock()

    def seconds(self, call: Call, calls: int) -> float:
        """Return the mean time of `calls` calls."""
        start = self._clock()
        for _ in range(calls):
            call()
        return (self._clock() - start) / calls


class CudaTimer(Timer):
    """A clock for calls that run on the current GPU: CUDA events, and a cold L2 cache for each call."""

    def __init__(self) -> None:
        super().__init__()
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def now(self) -> float:
        """Return the time in seconds; see `Timer.now`."""
        torch.cuda.synchronize()
        return super().now()

    def seconds(self, call: Call, calls: int) -> float:
        """Return the mean time; see `Timer.seconds`. The next call is queued while the cache is overwritten."""
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        for start, end in pairs:
            for _ in range(_FLUSHES):
                self._flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3 / calls


def timer(device: str) -> Timer:
    """Return the timer for `cpu` or `cuda`."""
    return CudaTimer() if device == "cuda" else Timer()


def measure(alternatives: Mapping[str, Call], *, seconds: float, timer: Timer, rest: float = 0.0) -> dict[str, Rates]:
    """Measure the seconds a call of each alternative takes, round by round.

    Parameters
    ----------
    alternatives
        Calls by name, in the order in which they take turns. What a call does must not depend on how often it, or
        another one, has run.
    seconds
        Wall clock for all of them together; at least `MIN_ROUNDS` rounds are run whatever they take, and the warm-up
        comes on top.
    timer
        Timer of the device that does the work.
    rest
        Seconds before each sample, for libraries whose threads go on spinning beside the next one's for a while.

    Returns
    -------
    dict
        float64 [rounds] for each name; entry i of all of them is from the same round.
    """
    sample = max(_SAMPLE_SECONDS, seconds / (_MOST_ROUNDS * max(1, len(alternatives))))
    warm = {name: _warm_up(call, seconds * _WARM_UP_SHARE, timer) for name, call in alternatives.items()}
    sample = max(sample, _SAMPLE_SHARE * max(warm.values(), default=0.0))
    calls = {name: max(1, math.ceil(sample / taken)) if taken > 0 else 1 for name, taken in warm.items()}
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    start, rounds = timer.now(), 0
    while alternatives and (rounds < MIN_ROUNDS or timer.now() - start < seconds):
        for name, call in alternatives.items():
            if rest:
                time.sleep(rest)
            times[name].append(timer.seconds(call, calls[name]))
        rounds += 1
    return {name: np.array(values) for name, values in times.items()}


def _warm_up(call: Call, seconds: float, timer: Timer) -> float:
    """Return seconds a call; the very first, which may compile or allocate, does not count."""
    call()
    start, done, elapsed = timer.now(), 0, 0.0
    while done == 0 or elapsed < seconds:
        call()
        done += 1
        elapsed = timer.now() - start
    return elapsed / done


# ---- memory


def extra_mb(call: Call, device: str) -> float:
    """Measure the most memory that one call holds beyond what was there before, MiB, in PyTorch's allocators."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it reports on standard error that it starts and stops
    profiled: Any = torch.autograd.profiler.profile(profile_memory=True)
    with profiled:
        result = call()  # kept, so that whatever is freed was made inside
    events = [event for event in profiled.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    del result
    return float(held.max(initial=0)) / 2**20


# ---- statistics


def ratio(rates: Rates, to: str, others: Rates) -> Ratio:
    """Return the ratio of medians, with a percentile bootstrap that draws whole rounds (2,000 times, seed 0).

    Parameters
    ----------
    rates, others
        [rounds], of the row and of the one it is compared with, from the same rounds.
    to
        Name of the latter.
    """
    draws = _draws(len(rates))
    low, high = _interval(np.median(rates[draws], axis=1) / np.median(others[draws], axis=1))
    return Ratio(to, float(np.median(rates) / np.median(others)), low, high)


def ratio_of_totals(seconds: Rates, to: str, others: Rates) -> Ratio:
    """Return how many times as long as a row another one took in all, with an interval as in `ratio`.

    For rounds that are not the same work, as classes are not. With fewer than three there is no interval.

    Parameters
    ----------
    seconds, others
        [rounds], of the row and of the one it is compared with, from the same rounds.
    to
        Name of the latter.
    """
    low = high = None
    if len(seconds) >= _FEWEST_ROUNDS:
        draws = _draws(len(seconds))
        low, high = _interval(others[draws].sum(axis=1) / seconds[draws].sum(axis=1))
    return Ratio(to, float(others.sum() / seconds.sum()), low, high)


def _draws(rounds: int) -> NDArray[np.int64]:
    return np.random.RandomState(0).randint(0, rounds, (_RESAMPLES, rounds))


def _interval(drawn: Rates) -> tuple[float, float]:
    low, high = np.percentile(drawn, _INTERVAL)
    return float(low), float(high)


def with_rates(row: BenchRow[F_co], rates: Rates, against: Ratio | None = None) -> BenchRow[F_co]:
    """Return the row with its percentiles, its ratio and the process's peak memory."""
    p20, p50, p80 = (float(rate) for rate in np.percentile(rates, (20, 50, 80)))
    return replace(row, p20=p20, p50=p50, p80=p80, ratio=against, rounds=len(rates), peak_rss_mb=peak_rss_mb())
