"""`gfo-train`: a bank of occluders, one per class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def train(
    model: options.Model,
    data: options.Data,
    epsilon: Annotated[float, typer.Option(help="Radius of the ball in pixel units: 10 means 10/255.")],
    out: Annotated[Path, typer.Option(help="The bank, a .safetensors file.")],
    weights: options.Weights = "default",
    classes: Annotated[str, typer.Option(help="Folder names A,B,…, all, or random:N.")] = "all",
    class_map: options.ClassMap = None,
    norm: Annotated[str, typer.Option(help="linf (every pixel) or l2 (the whole occluder).")] = "linf",
    kappa: Annotated[float, typer.Option(help="Confidence of the margin, in logits.")] = 10.0,
    epochs: Annotated[int, typer.Option(help="Passes over each class's pictures.")] = 8,
    batch_size: options.BatchSize = 64,
    classes_together: Annotated[int, typer.Option(help="Classes that share a batch.")] = 4,
    optimizer: Annotated[str, typer.Option(help="momentum (normalised steps) or adam.")] = "momentum",
    step: Annotated[float, typer.Option(help="First step as a share of epsilon; it falls to 0.")] = 0.1,
    momentum: Annotated[float, typer.Option(help="Decay of the momentum, beta 1 of adam.")] = 0.9,
    per_class: Annotated[
        int | None, typer.Option(help="Pictures of each class to fit, a seeded draw; all if not given.")
    ] = None,
    held_out: Annotated[int, typer.Option(help="Pictures of each class to set aside, for choosing epsilon.")] = 0,
    precision: Annotated[str, typer.Option(help="Of the network: auto (measured), fp32, bf16 or fp16.")] = "auto",
    device: options.Device = "auto",
    loader: options.Loader = "auto",
    decoded_cache: options.DecodedCache = False,
    impl: options.Impl = "auto",
    input_size: options.InputSize = None,
    resize: options.Resize = None,
    interpolation: options.Interpolation = None,
    mean: options.Channels = None,
    std: options.Channels = None,
    seed: options.Seed = 0,
) -> None:
    """Train one occluder per class on DATA/train. Finished classes are kept; the same command resumes."""
    from ..machine import peak_rss_mb
    from ..progress import TerminalProgress
    from ..training.config import TrainConfig
    from ..training.train import train as train_bank

    config = TrainConfig(
        epsilon=epsilon,
        norm=norm,
        kappa=kappa,
        epochs=epochs,
        batch_size=batch_size,
        classes_together=classes_together,
        optimizer=optimizer,
        step=step,
        momentum=momentum,
        pictures_per_class=per_class,
        held_out=held_out,
        seed=seed,
    )
    bank = train_bank(
        options.model_spec(model, weights, input_size, resize, interpolation, mean, std, seed),
        data,
        out,
        config,
        classes=classes,
        class_map=class_map,
        precision=precision,
        device=device,
        loader=loader,
        decoded_cache=decoded_cache,
        impl=impl,
        progress=TerminalProgress(),
    )
    peak = peak_rss_mb()
    memory = f", peak memory {peak:.0f} MiB" if peak else ""
    print(f"{out}: {len(bank.class_ids)} occluders, epsilon {epsilon:g}, {norm}, {bank.hash[:19]}{memory}")


def main() -> None:
    """Console script."""
    options.run(app, "gfo-train")
