"""`python -m gfo.bench.suites.kernels`: the speed of every operation against the formula that it replaces.

On the CPU the shipped references, on a GPU the Triton kernels and what `torch.compile` makes of the formula. Nothing is
timed before its result has been found equal to the formula's; one that differs has no speed, and the exit code is 4.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...engine.commands import options
from ...engine.progress import Progress, TerminalProgress, no_progress
from ...export.errors import InputError
from ...export.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernel_cases import Case, Results, Sizes
    from ..measure import Row

FAILED = 4
NO_GPU = "not run here: no CUDA GPU"
# What is compared on a device; the formula, `eager`, is what the others are held against.
ENGINES: Mapping[str, tuple[str, ...]] = {"cpu": ("eager", "reference"), "cuda": ("eager", "compile", "triton")}

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def kernel_rows(
    sizes: Sizes, *, seconds: float, progress: Progress = no_progress
) -> tuple[list[Row], dict[str, float]]:
    """Every operation, on the CPU and on the GPU if there is one.

    Parameters
    ----------
    sizes
        Of the synthetic data.
    seconds
        > 0, for each operation on each device.

    Returns
    -------
    rows
        The CPU's, then the GPU's; without a GPU these have no speed, and say so.
    ceilings
        Bytes a second that a large copy moves on each device that is there.
    """
    import torch

    from ..kernel_cases import CASES
    from ..measure import bandwidth

    ceilings = {device: bandwidth(device) for device in ENGINES if device == "cpu" or torch.cuda.is_available()}
    rows: list[Row] = []
    with progress.task("kernels", total=len(ceilings) * len(CASES)) as bar:
        for (device, engines), make in itertools.product(ENGINES.items(), CASES):
            case = make(sizes, device if device in ceilings else "cpu")
            if device not in ceilings:
                rows += [_row(case, name, device, available=False, reason=NO_GPU) for name in engines]
                continue
            bar.advance(0, f"{case.kernel} {case.precision} on {device}")
            rows += _case_rows(case, device, seconds, ceilings[device])
            bar.advance(1)
    return rows, ceilings


def _row(case: Case, engine: str, device: str, **found: Any) -> Row:
    from ..measure import Row

    return Row(
        stage="kernel",
        engine=engine,
        precision=case.precision,
        pictures=case.pictures,
        occluders=case.occluders,
        unit=case.unit,
        device=device,
        kernel=case.kernel,
        sizes=case.sizes,
        data="synthetic",
        **found,
    )


def _case_rows(case: Case, device: str, seconds: float, ceiling: float) -> list[Row]:
    """A row for each engine: first all are checked, then those that passed are timed."""
    from ..measure import extra_mb, measure, ratio, timer, with_rates

    calls, rows = _checked(case, device)
    times = measure(calls, seconds=seconds, timer=timer(device))
    rates = {name: case.work / taken for name, taken in times.items()}
    for name, call in calls.items():
        against = None if name == "eager" else ratio(rates[name], "eager", rates["eager"])
        row = with_rates(rows[name], rates[name], against)
        share = (row.p50 or 0.0) / case.work * case.minimum / ceiling
        rows[name] = replace(row, bandwidth_share=share, extra_mb=extra_mb(call, device))
    return list(rows.values())


def _checked(case: Case, device: str) -> tuple[dict[str, Callable[[], Results]], dict[str, Row]]:
    """The calls that may be timed, and a row for every engine that says why another may not."""
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
    for name in ENGINES[device][1:]:
        reason = _cannot_run(name, device)
        if reason:
            rows[name] = _row(case, name, device, available=False, reason=reason)
            continue
        try:
            call = makers[name]()
            wrong = difference(call(), wanted, case.rounding)
        except Exception as error:  # noqa: BLE001 (compilers raise what they like; the row says that it failed)
            wrong = f"failed: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        else:
            if not wrong:
                calls[name] = call
        rows[name] = _row(case, name, device, available=not wrong, passed=not wrong, reason=wrong)
    return calls, rows


def _cannot_run(engine: str, device: str) -> str:
    """Why not, or nothing."""
    if engine != "triton":
        return ""
    import torch

    from ...kernels.impl import choose_impl

    try:
        _, how = choose_impl("triton", torch.device(device))
    except ValueError as error:
        return f"not run here: {error}"
    return "" if how == "CUDA" else f"not run here: {how}"


def difference(found: Results, wanted: Results, rounding: int) -> str:
    """How results differ beyond rounding, in words; empty where they don't.

    Parameters
    ----------
    found, wanted
        Tensors of the same shapes and dtypes. Integers must be equal.
    rounding
        How far floats may be apart, in units of 2⁻²³ of the largest wanted value; half precisions may further differ by
        one rounding of each value.
    """
    for own, other in zip(found, wanted, strict=True):
        if own.shape != other.shape or own.dtype != other.dtype:
            return f"differs from the formula: {own.dtype} {[*own.shape]} for {other.dtype} {[*other.shape]}"
        apart, allowed = _apart(own, other, rounding)
        if not bool((apart <= allowed).all()):  # false for NaN, too
            return f"differs from the formula by up to {float(apart.max()):.2g}, {float(allowed.max()):.2g} is rounding"
    return ""


def _apart(found: Tensor, wanted: Tensor, rounding: int) -> tuple[Tensor, Tensor]:
    """Distance, and how large it may be, for each element; float64."""
    import torch

    found, exact = found.detach().double(), wanted.detach().double()
    allowed = torch.zeros_like(exact)
    if wanted.is_floating_point() and wanted.numel() > 0:
        allowed += rounding * 2**-23 * exact.abs().max()
        if wanted.dtype != torch.float32:
            allowed += exact.abs() * torch.finfo(wanted.dtype).eps
    return (found - exact).abs(), allowed


# ---- the command


@app.command()
def kernels(
    seconds: Annotated[
        float, typer.Option(help="For each operation on each device; more gives narrower intervals.")
    ] = 2.0,
    size: Annotated[int, typer.Option(min=1, help="Pixels along a side of the pictures.")] = 224,
    pairs: Annotated[int, typer.Option(min=1, help="Of a picture and an occluder in a call; rows of logits.")] = 64,
    occluders: Annotated[int, typer.Option(min=1, help="In the bank.")] = 8,
    classes: Annotated[int, typer.Option(min=2, help="Logits in a row.")] = 1000,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where the last line of the output goes as well.")
    ] = None,
) -> None:
    """Time every operation against the straightforward formula, on synthetic data. One line of JSON comes last."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"--seconds {seconds}: expected a number above 0")
    if json_file is not None and json_file.is_dir():
        raise InputError(f"--json {json_file}: is a folder; name a file")
    # The file is opened first: one that cannot be written is better known before than after.
    with atomic_path(json_file) if json_file else contextlib.nullcontext() as partial:
        if partial:
            partial.touch()
        rows, line = _measured(size, pairs, occluders, classes, seconds)
        if partial:
            partial.write_text(f"{line}\n")
    print(line)
    if any(row.passed is False for row in rows):
        raise typer.Exit(FAILED)


def measured_kernels(seconds: float) -> tuple[list[Row], dict[str, float]]:
    """`kernel_rows` at the sizes of the command's defaults; for `gfo-bench --kernels`."""
    from ...engine.machine import keep_freed_memory
    from ..kernel_cases import Sizes

    keep_freed_memory()
    rows, ceilings = kernel_rows(Sizes(224, 64, 8, 1000), seconds=seconds, progress=TerminalProgress())
    return rows, {f"copy_bytes_per_second_{device}": rate for device, rate in ceilings.items()}


def _measured(size: int, pairs: int, occluders: int, classes: int, seconds: float) -> tuple[list[Row], str]:
    """Rows, printed as a table, and the line of JSON."""
    import torch

    from ...engine.machine import keep_freed_memory
    from ..kernel_cases import Sizes
    from ..measure import console, document, print_rows

    # As in gfo-train: otherwise the formula, which takes more memory, would mostly wait for fresh pages.
    keep_freed_memory()
    # What else runs here slows the threads of one operation more than another's.
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    try:
        rows, ceilings = kernel_rows(
            Sizes(size, pairs, occluders, classes), seconds=seconds, progress=TerminalProgress()
        )
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise InputError(
            f"--size {size} --pairs {pairs} --occluders {occluders} --classes {classes}: do not fit into memory; use "
            "smaller ones"
        ) from error
    shown = console()
    print_rows(rows, "Operations on synthetic data; eager is the straightforward formula in PyTorch", shown)
    for device, ceiling in ceilings.items():
        shown.print(f"a large copy on {device} moves {ceiling / 1e9:.1f} GB/s, read and written", markup=False)
    busy = "unknown" if load is None else f"{load:.1f}"
    shown.print(f"{torch.get_num_threads()} threads; load average before it began: {busy}", markup=False)
    facts = document(rows, copy_bytes_per_second=ceilings, load_average=load, seed=0)
    return rows, json.dumps(facts, allow_nan=False)


def main() -> None:
    """`python -m gfo.bench.suites.kernels`."""
    options.run(app, "python -m gfo.bench.suites.kernels", resumes=False)


if __name__ == "__main__":
    main()
