"""`gfo-bench`: how fast all pairs run here, and how far that is from the bare network."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...engine.commands import options
from ...export.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ...export.classifier import FrozenClassifier
    from ...export.models.spec import ModelSpec
    from ..measure import Row
    from ..workload import Work

FAILED = 4
# Of the random signs that stand for a bank: clamping is then as frequent as under a trained one.
_EPSILON = 10.0
# What is measured instead of the stages, and what it reads beside --seconds and --json.
_INSTEAD = {
    "loader": "model weights images device input_size seed",
    "kernels": "",
    "train": "model weights precision device input_size seed",
    "scaling": "engine model weights images occluders precision batch_size device input_size seed",
}

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def bench(
    context: typer.Context,
    engine: Annotated[
        str, typer.Option(help="auto (as gfo-eval chooses), all, or torch, onnxruntime, openvino, trt with commas.")
    ] = "auto",
    model: options.Model = "torchvision/resnet50",
    weights: options.Weights = "random",
    images: Annotated[str, typer.Option(help="A folder of pictures, or synthetic.")] = "synthetic",
    occluders: Annotated[
        str, typer.Option(help="How many (random signs), zero:K, or a bank of gfo-train: FILE, FILE:K.")
    ] = "16",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16, or several with commas.")] = "fp32",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pairs in a pass through the network; measured if not given.")
    ] = None,
    pictures: Annotated[
        int | None,
        typer.Option(min=1, help="That a call of end-to-end reads, and at most of pairs; what fits the time."),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(help="Threads that decode in end-to-end, several with commas; one a core if not given."),
    ] = None,
    stages: Annotated[str, typer.Option(help="Some of bare, pairs, end-to-end, baseline.")] = "bare,pairs,end-to-end",
    baseline: Annotated[bool, typer.Option("--baseline", help="The plain PyTorch loop, too.")] = False,
    loader: Annotated[
        str | None, typer.Option(help="Instead: read pictures with pillow, dali, decoded-cache (commas between).")
    ] = None,
    kernels: Annotated[bool, typer.Option("--kernels", help="Instead: the fused operations.")] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Instead: training steps, and a plain training loop's.")
    ] = False,
    scaling: Annotated[
        str | None, typer.Option(help="Instead: files to store for KxN occluders x pictures, several with commas.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A PNG of throughput against K and against the batch, too.")] = None,
    seconds: Annotated[
        float,
        typer.Option(help="Of each set that takes turns, as an engine at a precision; slow networks take longer."),
    ] = 20.0,
    device: options.Device = "auto",
    input_size: options.InputSize = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of random weights and random occluders.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where the last line of the output goes as well.")
    ] = None,
) -> None:
    """Time bare network, pairs in memory and files to store in turns. A table, then one line of JSON."""
    _check(context, seconds, occluders, plot, json_file)
    work = None
    with _opened(plot) as drawing:
        with _opened(json_file) as document:
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            spec = options.model_spec(model, weights, input_size, None, None, None, None, seed)
            if kernels:
                from ..suites.kernels import measured_kernels

                rows, facts = measured_kernels(seconds)
            elif loader is not None:
                rows, facts = _loaders(loader, spec, images, device, seconds), {}
            elif train:
                rows, facts = _training(spec, _precisions(precision), device, seconds)
            else:
                engines, precisions = _engines(engine, device), _precisions(precision)
                chosen, points = _stages(stages, baseline, workers), _points(scaling)
                bank = f"{max(k for k, _ in points)}" if points and occluders.isdecimal() else occluders
                with _work(spec, images, bank, seed, pictures, batch_size, _workers(workers)) as work:
                    rows = _pairs(work, engines, precisions, chosen, points, device, seconds)
                    facts = {"flops_per_picture": work.flops}
            _tell(rows, {**facts, "load_average": load, "seed": seed}, document)
        if drawing is not None and work is not None:
            _draw(work, _engines(engine, device), _precisions(precision), drawing, device)
    if any(row.passed is False for row in rows):
        raise typer.Exit(FAILED)
    if not any(row.available for row in rows):
        raise typer.Exit(options.UNAVAILABLE)


def _check(context: typer.Context, seconds: float, occluders: str, plot: Path | None, json_file: Path | None) -> None:
    """What can be known before anything is opened: an option that nobody would read is one of it."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"--seconds {seconds}: expected a number above 0")
    given = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    }
    for instead, read in _INSTEAD.items():
        lost = [given[name] for name in given if name not in (instead, "seconds", "json_file", *read.split())]
        if instead in given and lost:
            raise InputError(f"{', '.join(lost)}: not read beside {given[instead]}; leave one of them out")
    if "scaling" in given and "occluders" in given and occluders.isdecimal():
        raise InputError(f"--occluders {occluders}: --scaling says how many; leave one out, or give zero:K or a bank")
    if plot is not None and plot.suffix.lower() != ".png":
        raise InputError(f"--plot {plot}: is written as PNG; name a .png file")
    for option, path in (("--json", json_file), ("--plot", plot)):
        if path is not None and path.is_dir():
            raise InputError(f"{option} {path}: is a folder; name a file")


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[Path | None]:
    """Where to write what goes to the file in the end; it is touched, so that a bad path is known before the work."""
    from ...export.files import atomic_path

    if path is None:
        yield None
        return
    with atomic_path(path) as partial:
        partial.touch()
        yield partial


def _tell(rows: Sequence[Row], facts: dict[str, Any], path: Path | None) -> None:
    """The environment, the table, and the line of JSON."""
    import torch

    from ..measure import console, document, print_rows

    shown, known = console(), document(rows, **facts)
    environment = known["environment"]
    cpu = environment["cpu"]
    gpus = "; ".join(gpu.get("name", "") for gpu in environment["gpus"]) or "none"
    shown.print(
        f"CPU {cpu['model']}, {cpu['cores']} cores, {torch.get_num_threads()} threads; GPU {gpus}", markup=False
    )
    versions = {name: found for name, found in environment["packages"].items() if found}
    shown.print(", ".join(f"{name} {found}" for name, found in versions.items()), markup=False)
    shown.print(f"gfo {environment['gfo']}, commit {environment['commit'] or 'unknown'}", markup=False)
    if facts["load_average"] is not None:
        shown.print(f"load average before it began: {facts['load_average']:.1f}", markup=False)
    for line in _bounds(rows, facts.get("flops_per_picture")):
        shown.print(line, markup=False)
    print_rows(rows, "Median rates; ratios are of medians, with a 95% interval over rounds", shown)
    line = json.dumps(known, allow_nan=False)
    print(line)
    if path is not None:
        path.write_text(f"{line}\n")


def _bounds(rows: Sequence[Row], flops: int | None) -> Iterator[str]:
    """What the multipliers would do at most, for each precision, as its first bare network's rounds have it."""
    told = set[str]()
    for row in rows:
        if flops and row.p50 and row.ceiling_share and row.precision and row.precision not in told:
            told.add(row.precision)
            most = row.p50 / row.ceiling_share
            yield (
                f"a large {row.precision} convolution runs at {most * flops / 1e9:,.0f} GFLOP/s in PyTorch: "
                f"{most:,.0f} pictures/s of {flops / 1e9:.3g} GFLOP each"
            )


def _loaders(names: str, spec: ModelSpec, images: str, device: str, seconds: float) -> list[Row]:
    from ...engine.devices import resolve_device
    from ...engine.progress import TerminalProgress
    from ...export.classifier import load_classifier
    from ..suites.loaders import loader_rows

    preprocessing = load_classifier(spec).preprocessing
    with _pictures(images) as folder:
        return loader_rows(
            folder,
            names.split(","),
            preprocessing,
            data="synthetic" if images == "synthetic" else str(folder),
            seconds=seconds,
            device=resolve_device(device),
            progress=TerminalProgress(),
        )


@contextlib.contextmanager
def _pictures(images: str) -> Iterator[Path]:
    from ..suites.loaders import synthetic_pictures

    if images == "synthetic":
        with synthetic_pictures() as folder:
            yield folder
    elif Path(images).is_dir():
        yield Path(images)
    else:
        raise InputError(f"--images {images}: no such folder; give a folder of pictures, or synthetic")


@contextlib.contextmanager
def _work(
    spec: ModelSpec,
    images: str,
    occluders: str,
    seed: int,
    pictures: int | None,
    pairs: int | None,
    workers: Sequence[int],
) -> Iterator[Work]:
    from ...export.classifier import load_classifier
    from ..suites.loaders import picture_paths
    from ..workload import Work

    classifier = load_classifier(spec)
    bank = _bank(occluders, classifier, seed)
    with _pictures(images) as folder:
        data = "synthetic" if images == "synthetic" else str(folder)
        paths = picture_paths(folder)
        yield Work(classifier, bank, folder, paths, data, pictures=pictures, pairs=pairs, workers=workers)


def _pairs(
    work: Work,
    engines: Sequence[str],
    precisions: Sequence[str],
    stages: Sequence[str],
    points: Sequence[tuple[int, int]],
    device: str,
    seconds: float,
) -> list[Row]:
    from ...engine.progress import TerminalProgress
    from ..suites.pairs import throughput_rows

    if any(k > len(work.occluders) for k, _ in points):
        raise InputError(f"--scaling: asks for more occluders than the bank's {len(work.occluders)}; ask for fewer")
    how = {"stages": stages, "points": points, "device": device, "seconds": seconds}
    return throughput_rows(work, engines, precisions, **how, progress=TerminalProgress())


def _training(
    spec: ModelSpec, precisions: Sequence[str], device: str, seconds: float
) -> tuple[list[Row], dict[str, Any]]:
    from ...engine.progress import TerminalProgress
    from ...export.classifier import load_classifier
    from ..measure import flops
    from ..suites.train import training_rows

    classifier = load_classifier(spec)
    rows = training_rows(classifier, precisions, device=device, seconds=seconds, progress=TerminalProgress())
    return rows, {"flops_per_picture": flops(classifier)}


def _draw(work: Work, engines: Sequence[str], precisions: Sequence[str], plot: Path, device: str) -> None:
    from ...engine.progress import TerminalProgress
    from ..plot import plot_throughput

    plot_throughput(work, engines, precisions, plot, device=device, progress=TerminalProgress())


def _engines(text: str, device: str) -> list[str]:
    """Names; one that is asked for alone and is not there is an error, not a row."""
    from ...engine.engines import ENGINES, engine_class

    engines: list[str] = [*ENGINES] if text == "all" else _names("--engine", text, ("auto", *ENGINES))
    if engines != ["auto"] and len(engines) == 1:
        engine_class(engines[0]).precisions(device)
    return engines


def _precisions(text: str) -> list[str]:
    from ...export.classifier import PRECISIONS

    return _names("--precision", text, PRECISIONS)


def _stages(text: str, baseline: bool, workers: str | None) -> list[str]:
    from ..suites.pairs import STAGES

    stages = _names("--stages", f"{text},baseline" if baseline else text, STAGES)
    if workers is not None and "end-to-end" not in stages:
        raise InputError(f"--workers {workers}: decode in end-to-end; leave it out, or add that to --stages")
    return stages


def _workers(text: str | None) -> list[int]:
    numbers = text.split(",") if text is not None else []
    for number in numbers:
        if not (number.isdecimal() and int(number)):
            raise InputError(f"--workers {number}: expected numbers of threads from 1, with commas between")
    return list(dict.fromkeys(map(int, numbers)))


def _points(scaling: str | None) -> list[tuple[int, int]]:
    """`10x100,1000x10` as [(10, 100), (1000, 10)]."""
    points = []
    for text in scaling.split(",") if scaling is not None else ():
        k, x, n = text.partition("x")
        if not (x and k.isdecimal() and n.isdecimal() and int(k) and int(n)):
            raise InputError(f"--scaling {text}: expected occluders x pictures, as 10x100")
        points.append((int(k), int(n)))
    return list(dict.fromkeys(points))


def _names(option: str, text: str, known: Sequence[str]) -> list[str]:
    """Names with commas between, each once; `InputError` for one that is not known."""
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in known:
            raise InputError(f"{option} {name}: expected some of {', '.join(known)}, with commas between")
    return names


def _bank(occluders: str, classifier: FrozenClassifier, seed: int) -> Tensor:
    """float32 [K, S, S, 3]: random signs, zeros, a bank that fits, or the first K of one (`FILE:K`)."""
    import torch

    from ...export.bank import OccluderBank

    size, (kind, _, text) = classifier.preprocessing.input_size, occluders.rpartition(":")
    count = int(text) if text.isdecimal() else None
    if count == 0:
        raise InputError(f"--occluders {occluders}: expected at least 1")
    if count is not None and kind in ("", "zero"):
        try:
            bank = torch.zeros(count, size, size, 3)
        except RuntimeError as error:  # PyTorch's word for a lack of memory on the CPU, and for sizes beyond 64 bits
            raise InputError(f"--occluders {occluders}: do not fit into the memory; ask for fewer") from error
        if not kind:
            bank.bernoulli_(generator=torch.Generator().manual_seed(seed)).mul_(2 * _EPSILON).sub_(_EPSILON)
        return bank
    path = Path(occluders if count is None else kind)
    if not path.is_file():
        raise InputError(f"--occluders {occluders}: no such bank; give a number, zero:K, FILE or FILE:K")
    bank = OccluderBank.load(path)
    bank.check_fits(classifier, path)
    if count is not None and count > len(bank.occluders):
        raise InputError(f"--occluders {occluders}: {path} holds {len(bank.occluders)}; ask for at most as many")
    return bank.occluders[:count]


def main() -> None:
    """Console script."""
    options.run(app, "gfo-bench", resumes=False)
