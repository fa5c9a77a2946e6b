"""`gfo-train`: a bank of occluders, one per class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ...export.errors import InputError
from ...export.options import key_values
from .. import terminal
from ..training.augment import AUGMENTATIONS
from ..training.objectives import OBJECTIVES
from ..training.optimizers import OPTIMIZERS
from . import options

if TYPE_CHECKING:
    from ..training.config import TrainConfig
    from ..training.preserve import PreserveConfig

app = options.new_app()


@dataclass(frozen=True)
class OccluderOptions(options.Group):
    """What the occluders are."""

    panel: ClassVar[str] = "Occluders"
    epsilon: Annotated[float, typer.Option(help="Radius of the ball in pixel units: 10 means 10/255.")]
    out: Annotated[Path, typer.Option(help="The bank, a .safetensors file.")]
    norm: Annotated[str, typer.Option(help="linf (every pixel) or l2 (the whole occluder).")] = "linf"
    objective: Annotated[str, typer.Option(help=f"What the occluders minimise: {OBJECTIVES.listed()}.")] = "pure"
    objective_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the objective; repeatable. gfo-doctor lists them."),
    ] = None
    kappa: Annotated[
        float | None,
        typer.Option(help="Confidence of the margin, in logits (10); short for --objective-option kappa=…"),
    ] = None
    per_class: options.FittedPictures = None
    held_out: Annotated[int, typer.Option(help="Pictures of each class to set aside, for choosing epsilon.")] = 0
    correct_only: Annotated[
        bool, typer.Option("--correct-only", help="Fit only pictures that the clean network gets right.")
    ] = False
    augment: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Random changes of fitted pictures, separated by commas or repeated: {', '.join(AUGMENTATIONS)}."
        ),
    ] = None

    def objective_options(self) -> dict[str, Any]:
        """Return the options of the objective; `--kappa` is a shorthand."""
        given: dict[str, Any] = key_values("--objective-option", self.objective_option or ())
        if self.kappa is not None:
            if "kappa" in given:
                raise InputError(
                    f"--kappa {self.kappa:g}, --objective-option kappa={given['kappa']}: name the same option; drop one"
                )
            given["kappa"] = self.kappa
        return given


@dataclass(frozen=True)
class PreserveOptions(options.Group):
    """Pictures of other classes whose answers stay, for objectives that preserve."""

    panel: ClassVar[str] = "Preserved pictures"
    preserve: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER|classes|N",
            help="A folder with train/<class>/*, the bank's other classes, or N further classes of DATA; repeatable.",
        ),
    ] = None
    preserve_share: Annotated[float, typer.Option(help="Share of a batch that is preserved pictures.")] = 0.5
    preserve_weight: Annotated[float, typer.Option(help="Weight of their mean loss beside that of fitted ones.")] = 1.0
    preserve_pictures: Annotated[int, typer.Option(help="Maximum number of them, all in memory.")] = 4000
    preserve_wrong: Annotated[
        bool, typer.Option("--preserve-wrong", help="Preserve wrong answers of the clean network, too.")
    ] = False
    preserve_every: Annotated[
        int, typer.Option(help="N: a batch of them alone after every N batches; 0: a share of each batch.")
    ] = 0

    def config(self) -> PreserveConfig | None:
        """Return what is preserved; None if nothing is."""
        given = dict(vars(self))
        sources = given.pop("preserve")
        if not sources:
            changed = next((name for name, value in given.items() if value != getattr(PreserveOptions, name)), None)
            if changed:
                option = "--" + changed.replace("_", "-")
                raise InputError(
                    f"{option}: nothing is preserved; add --preserve FOLDER, classes or a number of classes"
                )
            return None
        from ..training.preserve import PreserveConfig

        return PreserveConfig(
            tuple(sources), **{name.removeprefix("preserve_"): value for name, value in given.items()}
        )


@dataclass(frozen=True)
class TrainingOptions(options.Group):
    """How they are trained."""

    panel: ClassVar[str] = "Training"
    epochs: Annotated[int, typer.Option(help="Passes over each class's pictures.")] = 8
    batch_size: Annotated[int, typer.Option(help="Pictures in a batch.")] = 64
    classes_together: Annotated[int, typer.Option(help="Classes that share a batch.")] = 4
    optimizer: Annotated[str, typer.Option(help=f"{OPTIMIZERS.listed()}.")] = "momentum"
    step: Annotated[float, typer.Option(help="First step as a share of epsilon; it falls to 0.")] = 0.1
    momentum: Annotated[float, typer.Option(help="Decay of the momentum, beta 1 of adam.")] = 0.9
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            help="Stop a class at this accuracy of its held-out pictures (or fitted ones), and weaken it to that."
        ),
    ] = None
    pass_size: Annotated[
        int | None,
        typer.Option(help="Maximum number of pictures in a pass of a batch; 32 on a CPU, all on a GPU if not given."),
    ] = None
    precision: Annotated[str, typer.Option(help="Precision of the network: auto (measured), fp32, bf16 or fp16.")] = (
        "auto"
    )
    device: options.Device = "auto"
    impl: options.Impl = "auto"
    seed: options.Seed = 0


@options.command(app)
def train(
    model: options.ModelOptions,
    data: options.DataOptions,
    occluders: OccluderOptions,
    preserved: PreserveOptions,
    training: TrainingOptions,
    cluster: options.ClusterOptions,
    log_json: options.LogJson = None,
) -> None:
    """Train one occluder per class on DATA/train. Finished classes are kept; the same command resumes."""
    from ..machine import peak_rss_mb
    from ..training.train import train as train_bank

    config = replace(_config(occluders, preserved, training), cluster=cluster.spec())
    with options.progress("gfo-train", log_json) as progress:
        bank = train_bank(model.spec(training.seed), data.spec("train"), occluders.out, config, progress)
    peak = peak_rss_mb() if config.cluster is None else None  # of workers nothing is known
    memory = f", peak memory {peak:.0f} MiB" if peak else ""
    what = f"{len(bank.class_ids)} occluders, epsilon {occluders.epsilon:g}, {occluders.norm}"
    print(f"{occluders.out}: {what}, {bank.hash[:19]}{memory}")


def _config(occluders: OccluderOptions, preserved: PreserveOptions, training: TrainingOptions) -> TrainConfig:
    from ..training.config import TrainConfig

    return TrainConfig(
        epsilon=occluders.epsilon,
        norm=occluders.norm,
        objective=occluders.objective,
        objective_options=occluders.objective_options(),
        pictures_per_class=occluders.per_class,
        held_out=occluders.held_out,
        correct_only=occluders.correct_only,
        augment=tuple(name for given in occluders.augment or () for name in given.split(",")),
        preserve=preserved.config(),
        **vars(training),
    )


def main() -> None:
    """Run the console script."""
    terminal.run(app, "gfo-train")
