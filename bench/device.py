"""What to run first on a new device: whether everything is right there, then how fast it is. See `suites.device`."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import torch

from ..engine.devices import captured
from ..engine.engines.torch import TorchEngine, TorchOptions
from ..engine.progress import Progress
from ..export.errors import in_short
from .doctor import self_test
from .kernel_cases import CASES
from .kernel_data import Sizes
from .measure import Call, measure, ratio, timer, with_rates
from .rows import BenchRow, Facts, PairsFacts, SelfTestFacts
from .stages import throughput_rows
from .suites.kernels import PAIRS, checked, kernel_rows
from .suites.train import training_rows
from .throughput import PairsConfig, blank_row
from .workload import Workload

Row: TypeAlias = BenchRow[Facts]

# One of everything; no power of two, and less than a block; more than a block, and a common number of classes and one.
AWKWARD: Final = (Sizes(1, 1, 1, 2), Sizes(7, 3, 2, 5), Sizes(33, 13, 5, 1001))
NETWORK_BATCHES: Final = (64, 256, 512)
_TOOL, _FOUND, _TOOL_SECONDS = "compute-sanitizer", 9, 240.0
_WARM_UP = 3
# Of the seconds for an engine, for each operation: there are ten, and they are fast.
_KERNEL_SHARE = 0.2


@dataclass(frozen=True)
class DeviceConfig:
    """What is checked and measured, and where.

    Attributes
    ----------
    place
        The device.
    pairs
        Its engines, each at a precision, and the seconds for each.
    precisions
        Of training and of the bare network in PyTorch.
    """

    place: torch.device
    pairs: PairsConfig
    precisions: Sequence[str]

    @property
    def engines(self) -> list[str] | None:
        """Names of the engines to compare with float64; None for all."""
        names = list(dict.fromkeys(choice.name for choice in self.pairs.engines))
        return None if "auto" in names else names


def device_rows(work: Workload, config: DeviceConfig, progress: Progress) -> list[Row]:
    """Check and measure everything, what is right before what is fast.

    A section that fails is a row that says so, and the others still run.
    """
    place, seconds = config.place, config.pairs.seconds
    sections: Mapping[str, Callable[[], Sequence[Row]]] = {
        "kernel-check": lambda: list(kernel_checks(place.type)),
        "memory-check": lambda: [memory_check(place.type)],
        "self-test": lambda: list(self_tests(config.engines)),
        "network": lambda: network_rows(work, config.precisions, place, seconds, progress),
        "pairs": lambda: throughput_rows(work, config.pairs, progress=progress),
        "kernel": lambda: kernel_rows({place.type: _sizes(work, place.type)}, seconds=seconds * _KERNEL_SHARE)[0],
        "train": lambda: training_rows(work.classifier, work.flops, config.precisions, place.type, seconds, progress),
    }
    rows: list[Row] = []
    for stage, measured in sections.items():
        progress.say(stage)
        try:
            rows += measured()
        except Exception as error:  # noqa: BLE001 (a new device may fail in any way; what others found is not lost)
            rows.append(_failed(stage, place.type, in_short(error)))
    return rows


def _sizes(work: Workload, device: str) -> Sizes:
    """Return the network's own sizes for the kernels."""
    classifier = work.classifier
    return Sizes(classifier.preprocessing.input_size, PAIRS[device], classes=classifier.num_classes)


def _failed(stage: str, device: str, reason: str) -> Row:
    return BenchRow(
        stage=stage, engine="–", unit="", available=False, passed=False, reason=reason, device=device, facts=Facts()
    )


# ---- is it right


def kernel_checks(device: str) -> Iterator[Row]:
    """Compare every operation with its formula at awkward sizes, on `cpu` or `cuda`."""
    impl = "triton" if device == "cuda" else "reference"
    for sizes, make in itertools.product(AWKWARD, CASES):
        _, rows = checked(make(sizes, device), device, ("eager", impl))
        yield replace(rows[impl], stage="kernel-check")


def memory_check(device: str) -> Row:
    """Run `kernel_checks` under NVIDIA's memory checker, in a process of its own."""
    row: Row = BenchRow(stage="memory-check", engine=_TOOL, unit="", device=device, facts=Facts())
    tool = shutil.which(_TOOL)
    if device != "cuda" or tool is None:
        reason = "not run here: no CUDA GPU" if device != "cuda" else f"not run here: {_TOOL} is not on the PATH"
        return replace(row, available=False, reason=reason)
    code = f"from {__name__} import kernel_checks; print(all(row.passed for row in kernel_checks('cuda')))"
    words = [tool, f"--error-exitcode={_FOUND}", sys.executable, "-c", code]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=_TOOL_SECONDS)
    except subprocess.TimeoutExpired:
        return replace(row, available=False, reason=f"{_TOOL} took more than {_TOOL_SECONDS:.0f} s")
    said = next((line for line in reversed((done.stdout + done.stderr).splitlines()) if line.strip()), "")
    wrong = f"exit code {done.returncode}, {said.strip(' =')}" if done.returncode else ""
    return replace(row, available=not wrong, passed=not wrong, reason=wrong)


def self_tests(engines: Sequence[str] | None) -> Iterator[Row]:
    """Compare every engine, at every precision that it has, with float64 on a small network (`doctor.self_test`)."""
    for check in self_test(engines):
        yield BenchRow(
            stage="self-test",
            engine=check.engine,
            precision=check.precision,
            unit="pairs/s",
            device=check.device,
            available=bool(check.passed),
            passed=check.passed,
            reason=check.reason,
            facts=SelfTestFacts(
                max_error=check.max_error, allowed_error=check.allowed_error, agreement=check.agreement
            ),
        )


# ---- is it fast


def network_rows(
    work: Workload, precisions: Sequence[str], place: torch.device, seconds: float, progress: Progress
) -> list[Row]:
    """Measure the bare network in PyTorch: eager, captured as a CUDA graph, compiled, and both, at several batches.

    That says which of them the torch engine should run. On a CPU there are no CUDA graphs, and `bare` says the rest.
    """
    rows: list[Row] = []
    if place.type != "cuda":
        return rows
    for precision, batch in itertools.product(precisions, NETWORK_BATCHES):
        progress.say(f"network at {precision}, batch {batch}")
        rows += _network_rows(work, precision, place, batch, seconds)
    return rows


def _network_rows(work: Workload, precision: str, place: torch.device, batch: int, seconds: float) -> list[Row]:
    calls: dict[str, Call] = {}
    with (
        TorchEngine(work.classifier, precision, str(place)) as eager,
        TorchEngine(work.classifier, precision, str(place), TorchOptions(compiled=True)) as compiled,
    ):
        for name, engine in (("eager", eager), ("compiled", compiled)):
            call = engine.bare(batch)["NHWC"]
            calls |= {name: call, f"{name}, captured": _graphed(call, place)}
        times = measure(calls, seconds=seconds, timer=timer(place.type))
    rates = {name: batch / taken for name, taken in times.items()}
    found = []
    for name, own in rates.items():
        facts, sizes = PairsFacts(), f"batch {batch}, {name}"
        row = replace(blank_row(work, "network", "torch", precision, facts, device=place.type), sizes=sizes)
        found.append(with_rates(row, own, None if name == "eager" else ratio(own, "eager", rates["eager"])))
    return found


def _graphed(call: Call, place: torch.device) -> Call:
    """Capture a call as a CUDA graph."""
    stream = torch.cuda.Stream(place)
    stream.wait_stream(torch.cuda.current_stream(place))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            call()
        step: Any = call
        return captured(step, stream)


# ---- what it comes to


def verdict(rows: Sequence[Row]) -> Iterator[str]:
    """Yield lines on what is wrong, and on how near the device everything comes."""
    judged = [row for row in rows if row.passed is not None]
    wrong = [row for row in judged if not row.passed]
    yield f"right: {len(judged) - len(wrong)} of {len(judged)} checks" + ("" if not wrong else f"; WRONG: {len(wrong)}")
    for row in rows:
        if row.stage == "end-to-end" and row.p50 and row.ratio and isinstance(row.facts, PairsFacts):
            plain = row.facts.to_plain
            beside = f", {plain.median:.2f} times the plain loop" if plain else ""
            yield f"{row.engine} {row.precision}: end-to-end is {row.ratio.median:.2f} of {row.ratio.to}{beside}"
