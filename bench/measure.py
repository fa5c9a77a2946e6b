"""How gfo measures speed: alternatives take turns in one process, and a row says what came of each.

All of a set are warm before the first is timed; then they run A B A B …, so that a machine that slows down slows all
of them. Rates are medians over the rounds, ratios come with an interval from resampling whole rounds.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..engine.machine import peak_rss_mb
from .environment import environment

if TYPE_CHECKING:
    from rich.console import Console

    from ..export.classifier import FrozenClassifier

Call: TypeAlias = Callable[[], object]

MIN_ROUNDS = 5
# Each alternative is warmed up for this share of the budget. A sample is long enough for the clock and for a moment's
# disturbance, and long budgets give longer samples rather than ever more of them.
_WARM_UP_SHARE, _SAMPLE_SECONDS, _MOST_ROUNDS = 0.1, 5e-3, 200
# And at least this share of the longest call beside it: a network's single batch against a whole evaluation.
_SAMPLE_SHARE = 0.1
_RESAMPLES, _INTERVAL = 2000, (2.5, 97.5)
_COPY_BYTES, _COPY_SECONDS = {"cpu": 1 << 28, "cuda": 1 << 30}, 1.0
# Written between two timings on a GPU, several times what its L2 cache holds: else the inputs would lie there.
_FLUSH_BYTES = 1 << 28
_CEILING_PICTURES, _CEILING_CHANNELS, _CEILING_SIDE = {"cpu": 4, "cuda": 256}, 256, 28
_FILE_WIDTH = 200


@dataclass(frozen=True)
class Ratio:
    """Median rate over the median rate of `to`, with a 95% interval; above 1 is faster."""

    to: str
    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was measured, or could not be. None is unknown, or does not apply.

    Attributes
    ----------
    stage
        `bare`, `pairs`, `end-to-end`, `baseline`, `loader`, `train`, `train-baseline` or `kernel`.
    engine
        What did the work; for a kernel `reference`, `triton`, or the straightforward formula in `eager` PyTorch or
        through torch's `compile`.
    precision, model, weights
        `fp32`, `bf16`, …; the model's name; where its weights are from, `random` among them.
    pictures, occluders
        How many of each the work was made of.
    unit
        Of the rates: `pairs/s`, `pictures/s`, …; higher is better.
    p20, p50, p80
        Rates that 20%, 50% and 80% of the rounds stay below.
    ratio, to_plain
        Against another row of the same set, and against the plain loop, timed in the same rounds.
    peak_rss_mb
        Largest resident memory of the process so far, MiB.
    available, reason
        False, and why there is no speed.
    device
        `cpu` or `cuda`.
    kernel, sizes, data
        For a kernel the operation; what one call is given, and where that came from.
    passed
        Whether the result is right: a kernel's equals the formula's within rounding, a loader's pictures torchvision's
        within a grey level, an engine's logits PyTorch's (`engine.parity`). False has no speed.
    rounds
        How often it was timed.
    ceiling_share
        For `bare`: FLOP a second of its convolutions and products over what a large convolution reaches in PyTorch at
        that precision on that device, in the same rounds (`ceiling`).
    bandwidth_share
        For a kernel: bytes a second, each input read and each result written once, over what a large copy moves here.
    extra_mb
        For a kernel: most memory that one call holds beyond what was there before, its result included, MiB.
    workers
        For `end-to-end`: threads that decode pictures.
    cores, max_difference, mean_difference
        For a loader: CPU cores that it may use, and how far its pictures are from torchvision's on Pillow, grey levels.
    """

    stage: str
    engine: str
    precision: str | None = None
    model: str | None = None
    weights: str | None = None
    pictures: int | None = None
    occluders: int | None = None
    unit: str
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    ratio: Ratio | None = None
    to_plain: Ratio | None = None
    peak_rss_mb: float | None = None
    available: bool = True
    reason: str = ""
    device: str | None = None
    kernel: str | None = None
    sizes: str | None = None
    data: str | None = None
    passed: bool | None = None
    rounds: int | None = None
    ceiling_share: float | None = None
    bandwidth_share: float | None = None
    extra_mb: float | None = None
    workers: int | None = None
    cores: int | None = None
    max_difference: int | None = None
    mean_difference: float | None = None


# ---- time


class Timer:
    """The time that calls take on the CPU."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def now(self) -> float:
        """In seconds, when all that was started has ended."""
        return self._clock()

    def seconds(self, call: Call, calls: int) -> float:
        """Mean of so many calls."""
        start = self._clock()
        for _ in range(calls):
            call()
        return (self._clock() - start) / calls


class CudaTimer(Timer):
    """The time that calls take on the current GPU, by its own events, each call with a cold L2 cache."""

    def __init__(self) -> None:
        super().__init__()
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def now(self) -> float:
        """See `Timer.now`."""
        torch.cuda.synchronize()
        return super().now()

    def seconds(self, call: Call, calls: int) -> float:
        """See `Timer.seconds`. While the cache is written over, the next call's launches are queued."""
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        for start, end in pairs:
            self._flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3 / calls


def timer(device: str) -> Timer:
    """The one for `cpu` or `cuda`."""
    return CudaTimer() if device == "cuda" else Timer()


def measure(
    alternatives: Mapping[str, Call], *, seconds: float, timer: Timer, rest: float = 0.0
) -> dict[str, NDArray[np.float64]]:
    """Seconds a call of each alternative, round by round.

    Parameters
    ----------
    alternatives
        In the order in which they take turns. A call must not depend on how often it, or another one, has run.
    seconds
        Of wall clock for all of them together; at least `MIN_ROUNDS` rounds are run whatever they take, and the warm-up
        comes on top.
    timer
        Of the device that does the work.
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
    """Seconds a call; the very first, which may compile or allocate, does not count."""
    call()
    start, done, elapsed = timer.now(), 0, 0.0
    while done == 0 or elapsed < seconds:
        call()
        done += 1
        elapsed = timer.now() - start
    return elapsed / done


def bandwidth(device: str, *, size: int | None = None) -> float:
    """Bytes a second, read and written, that a large copy moves on `cpu` or `cuda`: the ceiling for any kernel.

    `size` is of the copied block, in bytes.
    """
    size = _COPY_BYTES[device] if size is None else size
    source = torch.ones(size, dtype=torch.uint8, device=device)  # ones: pages of fresh zeros need not exist
    target = torch.ones_like(source)
    times = measure({"copy": lambda: target.copy_(source)}, seconds=_COPY_SECONDS, timer=timer(device))
    return 2 * size / float(np.median(times["copy"]))


def ceiling(precision: str, device: torch.device) -> tuple[Call, int] | None:
    """A large 3 x 3 convolution in PyTorch, and its FLOP (an addition is one): a yardstick for the multipliers here.

    It comes nearer to them than a matrix product, whose operands are laid out anew in every call. None where the
    precision has no convolution on the device.
    """
    from ..engine.devices import exact_float32
    from ..export.classifier import DTYPES

    pictures, dtype = _CEILING_PICTURES[device.type], DTYPES[precision]
    channels_last = {"dtype": dtype, "device": device, "memory_format": torch.channels_last}
    pixels = torch.randn(pictures, _CEILING_CHANNELS, _CEILING_SIDE, _CEILING_SIDE).to(**channels_last)
    convolution = torch.nn.Conv2d(_CEILING_CHANNELS, _CEILING_CHANNELS, 3, padding=1).to(**channels_last)

    @torch.inference_mode()
    def run() -> Tensor:
        with exact_float32(precision, device):
            return convolution(pixels)

    try:
        run()
    except RuntimeError:
        return None
    return run, 2 * pictures * _CEILING_SIDE**2 * _CEILING_CHANNELS**2 * 9


def flops(classifier: FrozenClassifier) -> int:
    """Of the network for one picture, as PyTorch counts them: convolutions and products; an addition is one."""
    from torch.utils.flop_counter import FlopCounterMode

    size = classifier.preprocessing.input_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        classifier.network(torch.zeros(1, 3, size, size))
    return counter.get_total_flops()


# ---- memory


def extra_mb(call: Call, device: str) -> float:
    """Most memory that one call holds beyond what was there before, in MiB: what PyTorch's allocators give out."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells standard error that it starts and stops
    profiled: Any = torch.autograd.profiler.profile(profile_memory=True)
    with profiled:
        result = call()  # kept, so that whatever is freed was made inside
    events = [event for event in profiled.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    del result
    return float(held.max(initial=0)) / 2**20


# ---- statistics


def ratio(rates: NDArray[np.float64], to: str, others: NDArray[np.float64]) -> Ratio:
    """Ratio of medians, with a percentile bootstrap that draws whole rounds (2,000 times, seed 0).

    Parameters
    ----------
    rates, others
        [rounds], of the row and of what it is compared with, from the same rounds.
    to
        What it is compared with.
    """
    draws = np.random.RandomState(0).randint(0, len(rates), (_RESAMPLES, len(rates)))
    drawn = np.median(rates[draws], axis=1) / np.median(others[draws], axis=1)
    low, high = (float(bound) for bound in np.percentile(drawn, _INTERVAL))
    return Ratio(to, float(np.median(rates) / np.median(others)), low, high)


def with_rates(row: Row, rates: NDArray[np.float64], against: Ratio | None = None) -> Row:
    """The row with its percentiles, its ratio and the process's peak memory."""
    p20, p50, p80 = (float(rate) for rate in np.percentile(rates, (20, 50, 80)))
    return replace(row, p20=p20, p50=p50, p80=p80, ratio=against, rounds=len(rates), peak_rss_mb=peak_rss_mb())


# ---- what is told


def document(rows: Sequence[Row], **facts: Any) -> dict[str, Any]:
    """Everything as plain JSON types; `facts` join the environment."""
    known = {**environment(), "commit": _commit(), "threads": torch.get_num_threads(), **facts}
    return {"schema": 1, "environment": known, "rows": [asdict(row) for row in rows]}


def _commit() -> str | None:
    """Of the checkout that this file is in, with `-dirty` where files differ; None for an installed package."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def console() -> Console:
    """On standard output, as wide as the terminal; a file or a pipe has no width of its own."""
    from rich.console import Console

    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_FILE_WIDTH)


def print_rows(rows: Sequence[Row], title: str, console: Console) -> None:
    """A table of what was measured; below it a line for each that is wrong, and for each reason not to run here."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    absent = Counter(row.reason for row in rows if not row.available and row.passed is None)
    columns = {name: [cell(row) for row in rows if row.available] for name, cell in _COLUMNS.items()}
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in filled:
        table.add_column(name, overflow="fold", justify="right" if name in _NUMBERS else "left")
    for cells in zip(*filled.values(), strict=True):
        table.add_row(*(cell or "–" for cell in cells))
    console.print(table)
    for row in rows:
        if row.passed is False:
            what = (row.kernel, row.model, row.precision, row.engine, row.device)
            console.print(f"{' '.join(filter(None, what))}: {row.reason}", markup=False, soft_wrap=True)
    doubts = dict.fromkeys((row.engine, row.reason) for row in rows if row.available and row.reason)
    for engine, reason in doubts:
        console.print(f"{engine}: {reason}", markup=False, soft_wrap=True)
    for reason, count in absent.items():
        engines = ", ".join(dict.fromkeys(row.engine for row in rows if row.reason == reason))
        console.print(f"{count} {'row' if count == 1 else 'rows'} ({engines}): {reason}", markup=False, soft_wrap=True)


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _ratio(ratio: Ratio | None) -> str:
    return (
        ""
        if ratio is None
        else " ".join(filter(None, (f"{ratio.median:.2f}", ratio.to, f"({ratio.low:.2f}–{ratio.high:.2f})")))
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "stage": lambda row: "" if row.stage == "kernel" else row.stage,
    "kernel": lambda row: row.kernel or "",
    "sizes": lambda row: row.sizes or "",
    "model": lambda row: row.model or "",
    "weights": lambda row: Path(row.weights).name if row.weights else "",
    "data": lambda row: "" if row.stage == "kernel" else Path(row.data or "").name,
    "pictures": lambda row: "" if row.stage == "kernel" else str(row.pictures or ""),
    "K": lambda row: "" if row.stage == "kernel" else str(row.occluders or ""),
    "decoding": lambda row: _number(row.workers, "d"),
    "device": lambda row: row.device or "",
    "cores": lambda row: str(row.cores or ""),
    "precision": lambda row: row.precision or "",
    "engine": lambda row: row.engine,
    "p20": lambda row: _rate(row.p20),
    "p50": lambda row: _rate(row.p50),
    "p80": lambda row: _rate(row.p80),
    "unit": lambda row: row.unit,
    "ratio to (95%)": lambda row: _ratio(row.ratio),
    "to the plain loop": lambda row: _ratio(row.to_plain and replace(row.to_plain, to="")),
    "of ceiling": lambda row: _number(row.ceiling_share, ".0%"),
    "of copy": lambda row: _number(row.bandwidth_share, ".0%"),
    "MiB a call": lambda row: _number(row.extra_mb, ".1f"),
    "max diff": lambda row: _number(row.max_difference, "d"),
    "mean diff": lambda row: _number(row.mean_difference, ".4f"),
}
_NUMBERS = (
    "pictures",
    "K",
    "cores",
    "p20",
    "p50",
    "p80",
    "of ceiling",
    "of copy",
    "MiB a call",
    "max diff",
    "mean diff",
)
