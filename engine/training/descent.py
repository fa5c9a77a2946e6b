"""One step of training: occlude, forward, loss, gradient, step, project."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ...export.classifier import FrozenClassifier
from ...export.occluded import OccludedClassifier
from ..devices import checked_impl
from .batches import Batch
from .config import TrainConfig
from .optimizers import OPTIMIZERS
from .optimizers.base import Ball

# fp16 gradients of a deep network underflow; the step divides by the gradient's size, so any factor may stand here.
_LOSS_SCALE = {"fp32": 1.0, "bf16": 1.0, "fp16": 1024.0}


class Descent:
    """The method's step for the classes in work; it holds their `occluders`, float32 [G, S, S, 3], and the optimizer.

    `stopped`, int64 [G], is the epoch after which an occluder was left as it is, 0 for none; `failed` is how many of
    the last steps in a row were not finite.

    Source: Wu et al., CVPR 2020, supplementary S1.
    """

    def __init__(self, network: OccludedClassifier, config: TrainConfig, occluders: Tensor) -> None:
        ball = Ball(float(config.epsilon), cast("Any", config.norm))
        self.occluders = occluders
        self._network = network
        self._objective = config.make_objective()
        self._weight = config.preserve.weight if config.preserve else 0.0
        self._optimizer = OPTIMIZERS[config.optimizer](occluders, ball, config.momentum, network.impl)
        self.stopped = torch.zeros(len(occluders), dtype=torch.int64, device=occluders.device)
        self.failed = 0
        self._stops = config.target_accuracy is not None

    def __call__(self, batch: Batch, size: float, count: int) -> int | None:
        """Take step number `count` ≥ 1, of `size` pixel units; return how many of the own pictures were wrong.

        None, and nothing is changed, where logits or gradients are not finite.
        """
        network, occluders = self._network, self.occluders.detach().requires_grad_(True)
        pictures = torch.arange(len(batch.images), device=batch.images.device)
        logits = network(batch.images, pictures, batch.occluder_index, occluders)  # occlude and forward
        loss = self._loss(logits, batch) * _LOSS_SCALE[network.precision]
        with network.naming_failure(occluders.device):
            (gradient,) = torch.autograd.grad(loss, occluders)
        # The sign of NaN is 0: unnoticed, an occluder would stand still for ever and its NaN logits count as fooled.
        if not bool(logits.isfinite().all() & gradient.isfinite().all()):
            self.failed += 1
            return None
        self.failed = 0 if len(batch.labels) else self.failed  # steps with preserved pictures alone do not redeem it
        still = self.occluders[self.stopped > 0]
        self._optimizer.step(self.occluders, gradient, size, count)  # step and project
        self.occluders[self.stopped > 0] = still  # otherwise the momentum of earlier steps would carry them on
        return int((logits.detach()[: len(batch.labels)].argmax(dim=1) != batch.labels).sum())

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the sum over own pictures, and the weighted mean over preserved ones as if there were as many."""
        own = len(batch.labels)
        losses: list[Tensor] = []
        if own:
            losses.append(self._objective.loss(logits[:own], batch.labels, impl=self._network.impl).sum())
        if batch.clean is not None:
            kept = self._objective.preserving_loss(logits[own:], batch.clean)
            losses.append(self._weight * (own or len(kept)) * kept.mean())
        return torch.stack(losses).sum()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint holds."""
        stopped = {"stopped": self.stopped} if self._stops else {}
        return {"occluders": self.occluders, **stopped, **self._optimizer.state_dict()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a checkpoint's tensors."""
        self.occluders.copy_(tensors["occluders"])
        if self._stops:
            self.stopped.copy_(tensors["stopped"])
        self._optimizer.load_state_dict(tensors)


def training_step(
    classifier: FrozenClassifier, config: TrainConfig, device: torch.device, groups: int
) -> Callable[[Batch], int | None]:
    """Return the first step of `train` for `groups` occluders of zeros, for timing: each call takes it again.

    `config.precision` must be resolved. The batch is expected on the device.
    """
    kernels, _ = checked_impl(config.impl, device)
    network = OccludedClassifier(classifier, config.precision, impl=kernels).settled(device, gradient=True)
    size = classifier.preprocessing.input_size
    step = Descent(network, config, torch.zeros(groups, size, size, 3, device=device))
    return lambda batch: step(batch, config.step_size(0.0), 1)
