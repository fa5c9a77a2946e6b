"""Training steps against the plain loop: `gfo-bench --train`.

train            a step of gfo-train: frozen folded network in the precision, fused operations
train-baseline   the step that one writes without this project: float32, PyTorch's default layout, gradients of the
                 network's parameters computed and thrown away, Adam on the occluder
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...engine.devices import deterministic, exact_float32, resolve_device
from ...engine.machine import keep_freed_memory
from ...engine.progress import Progress, no_progress
from ...engine.training.config import TrainConfig
from ...engine.training.train import training_step
from ...export.classifier import FrozenClassifier
from ..measure import Row, measure, ratio, timer, with_rates
from ..plain_loop import plain_step

_BATCH, _TOGETHER = 32, 4


def training_rows(
    classifier: FrozenClassifier,
    precisions: Sequence[str],
    *,
    device: str = "auto",
    seconds: float,
    progress: Progress = no_progress,
) -> list[Row]:
    """Image-steps a second at every precision, and of the plain loop, in turns; on noise.

    `seconds` > 0 is for all of them together.
    """
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
    rows = []
    for name in calls:
        plain = name == "fp32 plain"
        row = Row(
            stage="train-baseline" if plain else "train",
            engine="torch",
            precision="fp32" if plain else name,
            model=classifier.model,
            weights=classifier.weights,
            pictures=_BATCH,
            occluders=_TOGETHER,
            unit="image-steps/s",
            device=place.type,
            data="noise",
        )
        against = None if plain else ratio(rates[name], "train-baseline", rates["fp32 plain"])
        rows.append(with_rates(row, rates[name], against))
    return rows


def _material(classifier: FrozenClassifier, place: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures uint8 [P, S, S, 3], occluder numbers 1 … G and labels, int64 [P]."""
    size, generator = classifier.preprocessing.input_size, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_BATCH, size, size, 3), dtype=torch.uint8, generator=generator)
    index = torch.arange(1, _TOGETHER + 1).repeat_interleave(_BATCH // _TOGETHER)
    return images.to(place), index.to(place), (index % classifier.num_classes).to(place)


def _step(classifier: FrozenClassifier, precision: str, place: torch.device) -> Callable[[], Any]:
    images, index, labels = _material(classifier, place)
    step = training_step(classifier, precision, place, TrainConfig(epsilon=10.0), groups=_TOGETHER)

    def run() -> None:
        with exact_float32(precision, place), deterministic(place):
            step(images, index, labels)

    return run
