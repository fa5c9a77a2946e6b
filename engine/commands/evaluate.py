"""`gfo-eval`: every occluder of a bank on every picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...export.errors import InputError
from . import options

if TYPE_CHECKING:
    from ...export.artefact import Artefact
    from ...export.models.spec import ModelSpec

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def evaluate(
    data: options.Data,
    split: Annotated[str, typer.Option(help="train or val.")],
    out: Annotated[Path, typer.Option(help="The RUN: predictions.zarr and summary.json.")],
    model: Annotated[str | None, typer.Option(help=options.MODEL_HELP)] = None,
    weights: options.Weights = "default",
    occluders: Annotated[Path | None, typer.Option(help="A bank that gfo-train wrote for this model.")] = None,
    artefact: Annotated[
        Path | None, typer.Option(help="A folder that gfo-export wrote, instead of MODEL (and of the bank inside it).")
    ] = None,
    engine: Annotated[str, typer.Option(help="auto, torch, onnxruntime, openvino or trt.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; the artefact's own, else fp32.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Other pictures than those of the bank's classes: A,B,…, all or random:N.")
    ] = None,
    class_map: options.ClassMap = None,
    pictures: Annotated[str, typer.Option(help="all, or by the bank's use of them: fitted, held-out, unseen.")] = "all",
    per_class: Annotated[
        int | None, typer.Option(help="At most so many pictures of each class, a seeded draw.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs in a pass through the network, at most; measured if not given.")
    ] = None,
    device: options.Device = "auto",
    loader: options.Loader = "auto",
    decoded_cache: options.DecodedCache = False,
    workers: Annotated[
        int | None, typer.Option(help="Threads that decode beside the engine; one a core if not given.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="I/N: this is worker I (from 0) of N that fill one --out together.")
    ] = None,
    impl: options.Impl = "auto",
    provider: Annotated[str, typer.Option(help="Of onnxruntime: auto, cpu, cuda or tensorrt.")] = "auto",
    compiled: Annotated[bool, typer.Option("--compiled", help="torch: compile the network first.")] = False,
    input_size: options.InputSize = None,
    resize: options.Resize = None,
    interpolation: options.Interpolation = None,
    mean: options.Channels = None,
    std: options.Channels = None,
    seed: options.Seed = 0,
) -> None:
    """Evaluate all pairs of DATA/SPLIT. Finished blocks are kept; the same command resumes."""
    from ..evaluation.evaluate import evaluate as evaluate_pairs
    from ..progress import TerminalProgress

    if (model is None) == (artefact is None):
        raise InputError("--model, --artefact: give one of them, the other says nothing more")
    made = options.model_spec(model or "", weights, input_size, resize, interpolation, mean, std, seed)
    summary = evaluate_pairs(
        made if artefact is None else _opened(artefact, made),
        occluders,
        data,
        split,
        out,
        engine=engine,
        precision=precision,
        device=device,
        classes=classes,
        class_map=class_map,
        pictures=pictures,
        per_class=per_class,
        batch_size=batch_size,
        loader=loader,
        decoded_cache=decoded_cache,
        workers=workers,
        shard=_shard(shard),
        impl=impl,
        provider=provider,
        compiled=compiled,
        seed=seed,
        progress=TerminalProgress(),
    )
    if not summary["complete"]:
        print(
            f"{out}: {summary['remaining']} pictures are other workers' or not done; the last one writes summary.json"
        )
        return
    print("\n".join(_lines(summary)))
    print(f"{out / 'summary.json'}")


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise InputError(f"--shard {text}: expected I/N, as 0/4 to 3/4")
    return int(index), int(count)


def _opened(folder: Path, spec: ModelSpec) -> Artefact:
    """The artefact; `InputError` where options say of it what it says itself."""
    from dataclasses import replace

    from ...export.artefact import Artefact
    from ...export.models.spec import ModelSpec

    if replace(spec, seed=0) != ModelSpec(""):
        raise InputError(f"--artefact {folder}: has weights and preprocessing inside; leave their options out")
    return Artefact.load(folder)


def _lines(summary: dict[str, Any]) -> list[str]:
    """The cells that have pictures, a line each, with the interval over classes."""
    cells = ("clean", "matched", "unmatched", "permuted", "noise", "clean_other", "unmatched_other")
    found = [(name, summary[name], "accuracy") for name in cells if summary[name]]
    found += [(name, ratio, "value") for name, ratio in summary["ratios"].items() if ratio]
    found += [("fooling rate", summary["fooling_rate"], "value")] if summary["fooling_rate"] else []
    lines = [f"{name:16} {cell[key]:.4f}  {_interval(cell['ci95_classes'])}" for name, cell, key in found]
    if summary["quarantined_count"]:
        first = summary["quarantined"][0]
        lines.append(f"{summary['quarantined_count']} quarantined, the first: {first['path']} ({first['reason']});")
        lines.append("when they are mended, another --out reads them")
    return lines


def _interval(bounds: list[float] | None) -> str:
    return f"95% over classes {bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""


def main() -> None:
    """Console script."""
    options.run(app, "gfo-eval")
