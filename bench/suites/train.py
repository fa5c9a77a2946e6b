"""Training steps beside the plain loop's: `gfo-bench train`.

train            a step of gfo-train: frozen folded network in the precision, fused operations
train-baseline   the step that one writes without this project: float32, PyTorch's default layout, gradients of the
                 network's parameters computed and thrown away, Adam on the occluder
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...engine.progress import Progress, TerminalProgress, no_progress
from ..rows import BenchRow, Facts
from .base import Measured, TimedSuite
from .options import ModelOptions, PrecisionOptions

if TYPE_CHECKING:
    import torch

    from ...export.classifier import FrozenClassifier

_BATCH, _TOGETHER = 32, 4


@dataclass(frozen=True, kw_only=True)
class Train(TimedSuite, ModelOptions, PrecisionOptions):
    """Time training steps and a plain training loop's in turns, on noise. A table, then one line of JSON."""

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Measure a step at every precision, and the plain one."""
        from ..ceilings import flops

        precisions = self.precisions
        rows = training_rows(self.classifier, precisions, self.device, self.seconds, TerminalProgress())
        return Measured(rows, {"flops_per_picture": flops(self.classifier)}, self.seed)


def training_rows(
    classifier: FrozenClassifier,
    precisions: Sequence[str],
    device: str,
    seconds: float,
    progress: Progress = no_progress,
) -> list[BenchRow[Facts]]:
    """Measure image-steps a second at every precision, and of the plain loop, in turns; on noise.

    `seconds` > 0 is for all of them together.
    """
    from ...engine.devices import resolve_device
    from ...engine.machine import keep_freed_memory
    from ..measure import measure, ratio, timer, with_rates
    from ..plain_loop import plain_step

    place = resolve_device(device)
    keep_freed_memory()  # as gfo-train
    progress.say(f"training steps of {_BATCH} pictures, {_TOGETHER} classes together")
    calls: dict[str, Callable[[], Any]] = {
        "fp32 plain": plain_step(classifier, *_material(classifier, place), groups=_TOGETHER)
    }
    for precision in precisions:
        calls[precision] = _step(classifier, precision, place)
    times = measure(calls, seconds=seconds, timer=timer(place.type))
    rates = {name: _BATCH / taken for name, taken in times.items()}
    plain = with_rates(_row(classifier, "train-baseline", "fp32", place), rates["fp32 plain"])
    rows = [plain]
    for name in precisions:
        against = ratio(rates[name], "train-baseline", rates["fp32 plain"])
        rows.append(with_rates(_row(classifier, "train", name, place), rates[name], against))
    return rows


def _row(classifier: FrozenClassifier, stage: str, precision: str, place: torch.device) -> BenchRow[Facts]:
    return BenchRow(
        stage=stage,
        engine="torch",
        precision=precision,
        model=classifier.model,
        weights=classifier.weights,
        pictures=_BATCH,
        occluders=_TOGETHER,
        unit="image-steps/s",
        device=place.type,
        data="noise",
        facts=Facts(),
    )


def _material(classifier: FrozenClassifier, place: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pictures uint8 [P, S, S, 3], occluder numbers 1 … G and labels, int64 [P]."""
    import torch

    size, generator = classifier.preprocessing.input_size, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_BATCH, size, size, 3), dtype=torch.uint8, generator=generator)
    index = torch.arange(1, _TOGETHER + 1).repeat_interleave(_BATCH // _TOGETHER)
    return images.to(place), index.to(place), (index % classifier.num_classes).to(place)


def _step(classifier: FrozenClassifier, precision: str, place: torch.device) -> Callable[[], Any]:
    from ...engine.devices import deterministic, exact_float32
    from ...engine.training.batches import Batch
    from ...engine.training.config import TrainConfig
    from ...engine.training.descent import training_step

    batch = Batch(*_material(classifier, place))
    step = training_step(classifier, TrainConfig(epsilon=10.0, precision=precision), place, _TOGETHER)

    def run() -> None:
        with exact_float32(precision, place), deterministic(place):
            step(batch)

    return run
