"""The speed of every operation beside the formula that it replaces: `gfo-bench kernels`.

On the CPU the shipped references, on a GPU the Triton kernels and what `torch.compile` makes of the formula. Nothing is
timed before its result has been found equal to the formula's; one that differs has no speed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, TypeAlias

import typer

from ...engine import terminal
from ...engine.progress import Progress, TerminalProgress, no_progress
from ...export.errors import InputError, in_short, lacks_memory
from ..rows import NO_ENGINE, BenchRow, Facts, KernelFacts
from ..table import print_rows
from .base import DATA, ENGINE, MEASUREMENT, Measured, TimedSuite, print_lines

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernel_cases import Case
    from ..kernel_data import Sizes
    from ..kernel_formulas import Results

KernelRow: TypeAlias = BenchRow[KernelFacts]

NO_GPU = "not run here: no CUDA GPU"
# What is compared on a device: the formula, `eager`, first, and what the project ships last.
ENGINES: Mapping[str, tuple[str, ...]] = {"cpu": ("eager", "reference"), "cuda": ("eager", "compile", "triton")}
# Pairs of a call; fewer would not fill a large GPU.
PAIRS: Mapping[str, int] = {"cpu": 64, "cuda": 512}
# Pixels along a side, pairs, occluders and classes of `--check`: one of all that may be one; odd numbers; more than the
# blocks of a kernel hold.
AWKWARD = ((1, 1, 1, 2), (7, 3, 2, 5), (33, 13, 5, 1001))

_CHECK = "kernel-check"
# Keys of the document's environment: bytes that a large copy moves, by device.
_CEILING = "copy_bytes_per_second_"


@dataclass(frozen=True, kw_only=True)
class Kernels(TimedSuite):
    """Time every operation and its straightforward formula, on synthetic data. A table, then one line of JSON."""

    title: ClassVar[str] = "Operations on synthetic data; eager is the straightforward formula in PyTorch"
    facts: ClassVar[Mapping[str, type[Facts]]] = {"kernel": KernelFacts, "kernel-check": KernelFacts}

    device: Annotated[
        str | None,
        typer.Option(
            help="auto, cpu, cuda or cuda:N; the CPU, and the GPU if there is one, if not given.",
            rich_help_panel=ENGINE,
        ),
    ] = None
    check_only: Annotated[
        bool,
        typer.Option(
            "--check", help="Compare, at awkward sizes as well, and time nothing.", rich_help_panel=MEASUREMENT
        ),
    ] = False

    size: Annotated[int, typer.Option(min=1, help="Pixels along a side of the pictures.", rich_help_panel=DATA)] = 224
    pairs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pairs of a picture and an occluder in a call, or rows of logits; by default 64, and 512 on a GPU.",
            rich_help_panel=DATA,
        ),
    ] = None
    occluders: Annotated[int, typer.Option(min=1, help="Occluders in the bank.", rich_help_panel=DATA)] = 8
    classes: Annotated[int, typer.Option(min=2, help="Logits in a row.", rich_help_panel=DATA)] = 1000
    seconds: Annotated[
        float,
        typer.Option(
            help="Time for each operation on each device; more makes intervals narrower.", rich_help_panel=MEASUREMENT
        ),
    ] = 2.0

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Measure every operation on every device."""
        import torch

        from ...engine.devices import resolve_device
        from ...engine.machine import keep_freed_memory
        from ..kernel_data import Sizes

        # As in gfo-train: otherwise the formula, which takes more memory, would mostly wait for fresh pages.
        keep_freed_memory()
        kinds = list(ENGINES) if self.device is None else [resolve_device(self.device).type]
        # Rows of a GPU that is not here are made on the CPU, where its number of pairs might not fit.
        default = PAIRS if torch.cuda.is_available() else dict.fromkeys(PAIRS, PAIRS["cpu"])
        sizes = {kind: Sizes(self.size, self.pairs or default[kind], self.occluders, self.classes) for kind in kinds}
        try:
            if self.check_only:
                return Measured([row for kind in kinds for row in check_rows(kind, sizes[kind])], seed=0)
            rows, ceilings = kernel_rows(sizes, seconds=self.seconds, progress=TerminalProgress())
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            pairs = "" if self.pairs is None else f"--pairs {self.pairs} "
            raise InputError(
                f"--size {self.size} {pairs}--occluders {self.occluders} --classes {self.classes}: do not fit into "
                "memory; use smaller ones, and fewer --pairs"
            ) from error
        facts = {f"{_CEILING}{device}": rate for device, rate in ceilings.items()}
        return Measured(rows, facts, seed=0)

    def show(self, measured: Measured[BenchRow[Facts]], environment: Mapping[str, Any]) -> None:
        """Print the table, the ceilings and the load: other work slows one operation's threads more than another's."""
        shown, load = terminal.console(), environment["load_average"]
        print_rows(measured.rows, self.title, shown)
        ceilings = {key.removeprefix(_CEILING): rate for key, rate in measured.facts.items()}
        lines = (f"a large copy on {on} moves {rate / 1e9:.1f} GB/s, read and written" for on, rate in ceilings.items())
        print_lines(lines, shown)
        busy = "unknown" if load is None else f"{load:.1f}"
        print_lines([f"{environment['threads']} threads; load average before it began: {busy}"], shown)


def kernel_rows(
    sizes: Mapping[str, Sizes], *, seconds: float, progress: Progress = no_progress
) -> tuple[list[KernelRow], dict[str, float]]:
    """Measure every operation on some devices.

    Parameters
    ----------
    sizes
        Sizes of the synthetic data by device, `cpu` or `cuda`.
    seconds
        > 0, for each operation on each device.

    Returns
    -------
    rows
        In the order of the devices; without a GPU those on `cuda` have no speed, and say so.
    ceilings
        Bytes a second that a large copy moves on each device that is there.
    """
    import torch

    from ..ceilings import bandwidth
    from ..kernel_cases import CASES

    ceilings = {device: bandwidth(device) for device in sizes if device == "cpu" or torch.cuda.is_available()}
    rows: list[KernelRow] = []
    with progress.task("kernels", total=len(ceilings) * len(CASES)) as bar:
        for device, make in itertools.product(sizes, CASES):
            case = make(sizes[device], device if device in ceilings else "cpu")
            if device not in ceilings:
                rows += [_row(case, name, device, available=False, reason=NO_GPU) for name in ENGINES[device]]
                continue
            bar.advance(0, f"{case.kernel} {case.precision} on {device}")
            rows += _case_rows(case, device, seconds, ceilings[device])
            bar.advance(1)
    return rows, ceilings


def check_rows(device: str, sizes: Sizes) -> list[KernelRow]:
    """Compare every operation with its formula on `cpu` or `cuda`, at awkward sizes and at these."""
    import torch

    from ..kernel_cases import CASES
    from ..kernel_data import Sizes

    if device == "cuda" and not torch.cuda.is_available():
        return [_checked_row(NO_ENGINE, available=False, reason=NO_GPU, device=device)]
    rows, shipped = list[KernelRow](), ENGINES[device][-1]
    try:
        for these, make in itertools.product((*(Sizes(*numbers) for numbers in AWKWARD), sizes), CASES):
            _, found = checked(make(these, device), device, ("eager", shipped))
            rows.append(replace(found[shipped], stage=_CHECK))
    except RuntimeError as error:  # a GPU that has failed once fails in whatever follows
        if lacks_memory(error):
            raise
        why = f"failed: {in_short(error)}"
        rows.append(_checked_row("eager", available=False, passed=False, reason=why, device=device))
    return rows


def _checked_row(engine: str, **found: Any) -> KernelRow:
    return BenchRow(stage=_CHECK, engine=engine, unit="pairs/s", facts=KernelFacts(kernel="–"), **found)


def _row(case: Case, engine: str, device: str, **found: Any) -> KernelRow:
    return BenchRow(
        stage="kernel",
        engine=engine,
        precision=case.precision,
        pictures=case.pictures,
        occluders=case.occluders,
        unit=case.unit,
        device=device,
        sizes=case.sizes,
        data="synthetic",
        facts=KernelFacts(kernel=case.kernel),
        **found,
    )


def _case_rows(case: Case, device: str, seconds: float, ceiling: float) -> list[KernelRow]:
    """Return a row for each engine: first all are checked, then those that passed are timed."""
    from ..measure import extra_mb, measure, ratio, timer, with_rates

    calls, rows = checked(case, device, ENGINES[device])
    times = measure(calls, seconds=seconds, timer=timer(device))
    rates = {name: case.work / taken for name, taken in times.items()}
    for name, call in calls.items():
        against = None if name == "eager" else ratio(rates[name], "eager", rates["eager"])
        row = with_rates(rows[name], rates[name], against)
        share = (row.p50 or 0.0) / case.work * case.minimum / ceiling
        rows[name] = replace(row, facts=replace(row.facts, bandwidth_share=share, extra_mb=extra_mb(call, device)))
    return list(rows.values())


def checked(
    case: Case, device: str, engines: Sequence[str]
) -> tuple[dict[str, Callable[[], Results]], dict[str, KernelRow]]:
    """Compare engines with the formula, `eager`, the first of them.

    Returns
    -------
    calls
        Those that may be timed, by engine.
    rows
        A row for every engine, without a rate; it says why one may not be timed.
    """
    import torch

    makers: dict[str, Callable[[], Callable[[], Results]]] = {
        "eager": lambda: case.formula(lambda function: function),
        "compile": lambda: case.formula(lambda function: torch.compile(function, dynamic=False)),
        "reference": lambda: case.operation("reference"),
        "triton": lambda: case.operation("triton"),
    }
    calls = {"eager": makers["eager"]()}
    wanted = calls["eager"]()
    rows = {"eager": _row(case, "eager", device, passed=True)}
    for name in engines[1:]:
        reason = _cannot_run(name, device)
        if reason:
            rows[name] = _row(case, name, device, available=False, reason=reason)
            continue
        try:
            call = makers[name]()
            apart = distance(call(), wanted, case.rounding)
        except Exception as failure:
            if lacks_memory(failure):
                raise
            apart = Distance(f"failed: {(str(failure).strip() or type(failure).__name__).splitlines()[0]}")
        else:
            if not apart.wrong:
                calls[name] = call
        right = not apart.wrong
        facts = KernelFacts(kernel=case.kernel, max_error=apart.largest, allowed_error=apart.allowed)
        rows[name] = replace(_row(case, name, device, available=right, passed=right, reason=apart.wrong), facts=facts)
    return calls, rows


def _cannot_run(engine: str, device: str) -> str:
    """Return the reason the engine cannot run here, or an empty string."""
    if engine != "triton":
        return ""
    import torch

    from ...kernels.impl import choose_impl

    try:
        _, how = choose_impl("triton", torch.device(device))
    except ValueError as error:
        return f"not run here: {error}"
    return "" if how == "CUDA" else f"not run here: {how}"


class Distance(NamedTuple):
    """How far results are from those that are wanted."""

    wrong: str
    """How they differ beyond rounding; empty where they do not."""
    largest: float | None = None
    """The largest distance of an element; None where shapes or dtypes differ, or a value is not finite."""
    allowed: float | None = None
    """The largest that is allowed of any element, with the same exceptions."""


def distance(found: Results, wanted: Results, rounding: int) -> Distance:
    """Compare results with those that are wanted.

    Parameters
    ----------
    found, wanted
        Tensors of the same shapes and dtypes. Integers must be equal.
    rounding
        How far floats may be apart, in units of 2⁻²³ of the largest wanted value; half precisions may further differ by
        one rounding of each value.
    """
    wrong, largest, most = "", [0.0], [0.0]
    for own, other in zip(found, wanted, strict=True):
        if own.shape != other.shape or own.dtype != other.dtype:
            return Distance(f"differs from the formula: {own.dtype} {[*own.shape]} for {other.dtype} {[*other.shape]}")
        if not own.numel():
            continue
        apart, allowed = _apart(own, other, rounding)
        largest.append(float(apart.max()))
        most.append(float(allowed.max()))
        if not wrong and not bool((apart <= allowed).all()):  # false for NaN, too
            wrong = f"differs from the formula by up to {largest[-1]:.2g}, {most[-1]:.2g} is rounding"
    return Distance(wrong, _most(largest), _most(most))


def _most(values: Sequence[float]) -> float | None:
    """Return the largest; None where one is not finite, for which JSON has no number."""
    return max(values) if all(map(math.isfinite, values)) else None


def _apart(found: Tensor, wanted: Tensor, rounding: int) -> tuple[Tensor, Tensor]:
    """Return the distance, and how large it may be, for each element; float64."""
    import torch

    found, exact = found.detach().double(), wanted.detach().double()
    allowed = torch.zeros_like(exact)
    if wanted.is_floating_point() and wanted.numel() > 0:
        allowed += rounding * 2**-23 * exact.abs().max()
        if wanted.dtype != torch.float32:
            allowed += exact.abs() * torch.finfo(wanted.dtype).eps
    return (found - exact).abs(), allowed
