"""Training beside the plain loop's: `gfo-bench train`.

train                  a step of gfo-train: frozen folded network in the precision, fused operations; its share of the
                       ceiling counts it as two forward passes
train-forward          the same network, occluders and pictures, forward only; its ratio is step / forward, at best 2
train-baseline         the step that one writes without this project: float32, PyTorch's default layout, one class,
                       gradients of the network's parameters computed and thrown away, Adam on the occluder; on a
                       GPU in TF32, PyTorch's default, and once more without it
train-reach            with pictures: classes a minute that are trained to an accuracy of held-out ones
train-reach-baseline   the same by the plain loop, in steps of one size
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ...engine import terminal
from ...engine.commands import options
from ...engine.progress import Progress, TerminalProgress, no_progress
from ...export.errors import InputError
from ..rows import BenchRow, CeilingFacts, Facts, ReachFacts
from ..table import print_environment, print_rows
from .base import DATA, MEASUREMENT, Measured, TimedSuite
from .options import ModelOptions, PrecisionOptions

if TYPE_CHECKING:
    import torch

    from ...engine.data.spec import DataSpec
    from ...engine.training.batches import Batch
    from ...engine.training.config import TrainConfig
    from ...export.classifier import FrozenClassifier
    from ..reach import ReachConfig

_EPSILON = 10.0
_PASSES = 2  # in FLOP, a step is a forward pass and the gradient with respect to the pictures
_REACH_TITLE = (
    "Time to an accuracy: rates of groups of classes; the ratio is of the time of all, 95% interval over groups"
)


@dataclass(frozen=True, kw_only=True)
class ReachOptions:
    """Options of the time to an accuracy; the first two ask for it."""

    panel: ClassVar[str] = DATA

    data: Annotated[Path | None, typer.Option(help="Folder that holds train/<class>/*, for --target-accuracy.")] = None
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            help="Time training until at most this accuracy of held-out pictures is left.", rich_help_panel=MEASUREMENT
        ),
    ] = None
    classes: Annotated[str | None, typer.Option(help="Folder names A,B,…, or random:N; all if not given.")] = None
    class_map: options.ClassMap = None
    per_class: options.FittedPictures = None
    held_out: Annotated[int, typer.Option(min=1, help="Pictures of each class that occluders are judged on.")] = 50
    epsilon: Annotated[float, typer.Option(help="Radius of the ball in pixel units.", rich_help_panel=MEASUREMENT)] = (
        _EPSILON
    )
    epochs: Annotated[
        int, typer.Option(help="Passes over each class's pictures, as of gfo-train.", rich_help_panel=MEASUREMENT)
    ] = 2
    step: Annotated[
        float, typer.Option(help="First step of gfo-train as a share of epsilon.", rich_help_panel=MEASUREMENT)
    ] = 0.1
    classes_together: Annotated[
        int, typer.Option(help="Classes that share a batch of gfo-train.", rich_help_panel=MEASUREMENT)
    ] = 4
    judge_every: Annotated[
        int, typer.Option(min=1, help="Pictures of a class between two judgements.", rich_help_panel=MEASUREMENT)
    ] = 100
    plain_step: Annotated[
        float, typer.Option(help="Step of the plain loop as a share of epsilon.", rich_help_panel=MEASUREMENT)
    ] = 1.0
    plain_epochs: Annotated[
        int, typer.Option(min=1, help="Passes after which the plain loop gives up.", rich_help_panel=MEASUREMENT)
    ] = 12

    def reach(self, device: str, seed: int) -> tuple[DataSpec, ReachConfig] | None:
        """Return what is to be reached, on which pictures; None if that is not asked for."""
        if self.data is None or self.target_accuracy is None:
            self._refuse_any()
            return None
        from ...engine.data.spec import DataSpec
        from ...engine.training.config import TrainConfig
        from ..reach import ReachConfig

        if not (math.isfinite(self.plain_step) and self.plain_step > 0):
            raise InputError(f"--plain-step {self.plain_step}: expected a number above 0")
        config = TrainConfig(
            epsilon=self.epsilon,
            epochs=self.epochs,
            step=self.step,
            classes_together=self.classes_together,
            pictures_per_class=self.per_class,
            held_out=self.held_out,
            target_accuracy=self.target_accuracy,
            device=device,
            seed=seed,
        )
        data = DataSpec(self.data, "train", self.classes, self.class_map)
        return data, ReachConfig(config, self.judge_every, self.plain_step, self.plain_epochs)

    def _refuse_any(self) -> None:
        given = [one.name for one in fields(ReachOptions) if getattr(self, one.name) != one.default]
        if given:
            missing = " and ".join(f"--{n.replace('_', '-')}" for n in ("data", "target_accuracy") if n not in given)
            raise InputError(f"--{given[0].replace('_', '-')}: is not read without {missing}; give that, too")


@dataclass(frozen=True, kw_only=True)
class Train(TimedSuite, ModelOptions, PrecisionOptions, ReachOptions):
    """Time training steps and a plain training loop's in turns, on noise; on pictures, time to an accuracy.

    A table each, then one line of JSON.
    """

    facts: ClassVar[Mapping[str, type[Facts]]] = {
        "train": CeilingFacts,
        **dict.fromkeys(("train-reach", "train-reach-baseline"), ReachFacts),
    }

    def check(self) -> None:
        """See `Suite.check`."""
        super().check()
        self.reach(self.device, self.seed)

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Measure a step at every precision, and the plain one; then the time to an accuracy, if asked for."""
        from ..ceilings import flops

        precisions, progress, reach = self.precisions, TerminalProgress(), self.reach(self.device, self.seed)
        flop = flops(self.classifier)
        facts: dict[str, Any] = {"flops_per_picture": flop}
        reached: list[BenchRow[Facts]] = []
        if reach is not None:  # first: bad pictures show before steps are timed
            from ..reach import reach_rows

            reached = reach_rows(self.classifier, *reach, precisions, progress)
            facts["reach"] = {one.name: _as_json(getattr(self, one.name)) for one in fields(ReachOptions)}
        rows = training_rows(self.classifier, flop, precisions, self.device, self.seconds, progress)
        return Measured([*rows, *reached], facts, self.seed)

    def show(self, measured: Measured[BenchRow[Facts]], environment: Mapping[str, Any]) -> None:
        """Print the machine, a table of steps and one of the time to an accuracy."""
        shown = terminal.console()
        print_environment(environment, shown)
        for title, reach in ((self.title, False), (_REACH_TITLE, True)):
            if rows := [row for row in measured.rows if isinstance(row.facts, ReachFacts) is reach]:
                print_rows(rows, title, shown)


def _as_json(value: Any) -> Any:
    """Return the value of an option as JSON has it."""
    return str(value) if isinstance(value, Path) else value


def training_rows(
    classifier: FrozenClassifier,
    flop: int,
    precisions: Sequence[str],
    device: str,
    seconds: float,
    progress: Progress = no_progress,
) -> list[BenchRow[Facts]]:
    """Measure image-steps a second at every precision, and of the plain loop, in turns; on noise.

    `flop` is that of the network for one picture; `seconds` > 0 is for all rows together. Batches are those of
    gfo-train.
    """
    from ...engine.devices import resolve_device
    from ...engine.machine import keep_freed_memory
    from ...engine.training.config import TrainConfig
    from ..ceilings import convolution, share
    from ..measure import measure, ratio, timer, with_rates
    from ..plain_loop import plain_precisions

    place, config = resolve_device(device), TrainConfig(epsilon=_EPSILON)
    keep_freed_memory()  # as gfo-train
    pictures, together = config.batch_size, config.classes_together
    progress.say(f"training steps of {pictures} pictures, {together} classes together")
    plain = [f"train-baseline {precision}" for precision in plain_precisions(place)]
    calls: dict[str, Callable[[], Any]] = {name: _plain_step(classifier, config, place, name) for name in plain}
    for precision in precisions:
        calls |= _calls(classifier, replace(config, precision=precision), place)
    bounds = {name: bound for name in precisions if (bound := convolution(name, place)) is not None}
    calls |= {f"ceiling {name}": run for name, (run, _) in bounds.items()}
    times = measure(calls, seconds=seconds, timer=timer(place.type))
    rates = {name: pictures / taken for name, taken in times.items()}

    def facts(stage: str, precision: str) -> Facts:
        if stage != "train" or precision not in bounds:
            return Facts()
        _, of_ceiling = bounds[precision]
        found = share(rates[f"train {precision}"], _PASSES * flop, times[f"ceiling {precision}"], of_ceiling)
        return CeilingFacts(ceiling_share=found)

    def row(name: str, to: str | None = None) -> BenchRow[Facts]:
        stage, precision = name.split()
        bare: BenchRow[Facts] = BenchRow(
            stage=stage,
            engine="torch",
            precision=precision,
            model=classifier.model,
            weights=classifier.weights,
            pictures=pictures,
            occluders=1 if name in plain else together,
            unit="image-steps/s",
            device=place.type,
            data="noise",
            facts=facts(stage, precision),
        )
        against = None if to is None else ratio(rates[name], to.split()[0], rates[to])
        return with_rates(bare, rates[name], against)

    rows = [row(name) for name in plain]
    for precision in precisions:
        train = f"train {precision}"
        rows += [row(train, plain[0]), row(f"train-forward {precision}", train)]
    return rows


def _material(classifier: FrozenClassifier, config: TrainConfig, place: torch.device) -> Batch:
    """Return a batch of noise, as many pictures of each class."""
    from ...engine.training.batches import Batch

    size, outputs = classifier.preprocessing.input_size, classifier.num_classes
    return Batch.of_noise(config.batch_size, size, config.classes_together, outputs).to(place)


def _plain_step(
    classifier: FrozenClassifier, config: TrainConfig, place: torch.device, name: str
) -> Callable[[], None]:
    from ..plain_loop import PlainTraining

    batch = _material(classifier, config, place)
    images, precision = batch.images.permute(0, 3, 1, 2).contiguous(), name.split()[1]
    plain = PlainTraining(classifier, place, _EPSILON, 1.0, precision)
    return lambda: plain.step(images, batch.labels)


def _calls(classifier: FrozenClassifier, config: TrainConfig, place: torch.device) -> dict[str, Callable[[], Any]]:
    """Return a step and the forward pass in it, of the same network, occluders and pictures."""
    import torch

    from ...engine.devices import deterministic, exact_float32
    from ...engine.training.descent import first_descent

    batch = _material(classifier, config, place)
    descent = first_descent(classifier, config, place, config.classes_together)

    def step() -> None:
        with exact_float32(config.precision, place), deterministic(place):
            descent(batch, config.step_size(0.0), 1)

    def forward() -> None:
        with torch.no_grad(), exact_float32(config.precision, place), deterministic(place):
            for part in descent.passes(batch):
                descent.logits(part, descent.occluders)

    return {f"train {config.precision}": step, f"train-forward {config.precision}": forward}
