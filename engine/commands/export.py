"""`gfo-export`: model and bank as one portable, proven artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options

PARITY_FAILED = 4

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def export(
    model: options.Model,
    occluders: Annotated[Path, typer.Option(help="A bank that gfo-train wrote for this model, or zero:K.")],
    out: Annotated[Path, typer.Option(help="A new folder for the artefact.")],
    weights: options.Weights = "default",
    format_: Annotated[str, typer.Option("--format", help="onnx, openvino or trt.")] = "onnx",
    precision: options.Precision = "fp32",
    bank_input: Annotated[
        bool, typer.Option("--bank-input", help="Leave the bank an input of the graph, for any bank of this model.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Pairs in a pass; for trt the best and largest number.")] = 64,
    compute_capability: Annotated[
        str, typer.Option(help="trt without a GPU: those of the GPUs to build for, as 8.6,8.9.")
    ] = "",
    data: Annotated[
        Path | None, typer.Option(help="Check parity on pictures DATA/SPLIT/<class>/*; synthetic ones if not given.")
    ] = None,
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    class_map: options.ClassMap = None,
    parity: Annotated[bool, typer.Option(help="Hold every engine here that runs it against PyTorch.")] = True,
    parity_pairs: Annotated[
        int | None, typer.Option(help="How many to compare: 300, half precision on real pictures 2,100.")
    ] = None,
    input_size: options.InputSize = None,
    resize: options.Resize = None,
    interpolation: options.Interpolation = None,
    mean: options.Channels = None,
    std: options.Channels = None,
    seed: options.Seed = 0,
) -> None:
    """Freeze model, occluders and preprocessing into one graph, and check that engines compute it as PyTorch does.

    Exit code 4 where the check fails; the artefact stays, marked as failed, and is not evaluated.
    """
    from ...export.manifest import FAILED
    from ..parity.checked_export import export_checked
    from ..progress import TerminalProgress

    artefact = export_checked(
        options.model_spec(model, weights, input_size, resize, interpolation, mean, std, seed),
        occluders,
        out,
        format=format_,
        precision=precision,
        bank_input=bank_input,
        batch_size=batch_size,
        compute_capabilities=tuple(filter(None, compute_capability.split(","))),
        data=data,
        split=split,
        class_map=class_map,
        pairs=parity_pairs,
        parity=parity,
        seed=seed,
        progress=TerminalProgress(),
    )
    facts = artefact.manifest
    size = sum(file["bytes"] for file in facts.files.values())
    print(
        f"{out}: {', '.join(facts.files)} ({size / 1e6:.1f} MB), {facts.format}, {facts.precision}, bank {facts.bank}"
    )
    if facts.layers is not None:
        print("layers by type: " + ", ".join(f"{count} {name}" for name, count in facts.layers.items()))
    because = f": {facts.parity['reason']}" if facts.parity["reason"] else ""
    print(f"parity: {facts.parity['status']}{because}")
    if facts.parity["status"] == FAILED:
        raise typer.Exit(PARITY_FAILED)


def main() -> None:
    """Console script."""
    options.run(app, "gfo-export", resumes=False)
