"""One step of training: occlude, forward, loss, gradient, step, project."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ...export.classifier import FrozenClassifier
from ...export.errors import InputError
from ...export.occluded import OccludedClassifier
from ..devices import arriving, checked_impl, finite_fix
from .batches import Batch
from .config import TrainConfig
from .optimizers import OPTIMIZERS
from .optimizers.base import Ball

# fp16 gradients of a deep network underflow; the step divides by the gradient's size, so any factor may stand here.
_LOSS_SCALE = {"fp32": 1.0, "bf16": 1.0, "fp16": 1024.0}
_MOST_SKIPPED = 3  # steps in a row
# Steps that a GPU may be behind the host: enough to bridge what the host does between two, such as a line of progress.
_BEHIND = 4


@dataclass(frozen=True)
class Taken:
    """A step that was taken, or skipped because logits or gradients are not finite.

    Attributes
    ----------
    count
        Its number, ≥ 1.
    own
        Number of own pictures in its batch.
    wrong
        How many of these the network got wrong; None where the step was skipped.
    """

    count: int
    own: int
    wrong: int | None


class Descent:
    """The method's step for the classes in work; it holds their `occluders`, float32 [G, S, S, 3], and the optimizer.

    A step is queued and not waited for, so that a GPU goes on from one to the next; how it went is told later.

    Attributes
    ----------
    occluders
        float32 [G, S, S, 3].
    stopped
        int64 [G], the epoch after which an occluder was left as it is, 0 for none.
    behind
        How many steps the device may be behind.

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
        self.behind = _BEHIND if occluders.device.type == "cuda" else 0
        self._ahead: deque[tuple[int, int, Callable[[], Tensor]]] = deque()
        self._failed = 0  # how many of the last steps in a row were not finite
        self._stops = config.target_accuracy is not None
        self._pass_size = config.pictures_in_a_pass(occluders.device.type)

    def __call__(self, batch: Batch, size: float, count: int) -> list[Taken]:
        """Queue step number `count` ≥ 1, of `size` pixel units; return those that are done, at most `behind` late.

        Where logits or gradients are not finite, a step changes nothing. The batch is on the device of the occluders;
        its occluder indices and labels are not checked.

        Raises
        ------
        InputError
            Three steps in a row were not finite.
        """
        gradient = torch.zeros_like(self.occluders)
        finite, wrong = torch.ones_like(self.stopped[0], dtype=torch.bool), torch.zeros_like(self.stopped[0])
        for part in self.passes(batch):
            logits, of_part = self._gradient(part, batch)
            gradient += of_part
            finite &= logits.isfinite().all()
            wrong += (logits[: len(part.labels)].argmax(dim=1) != part.labels).sum()
        # The sign of NaN is 0: unnoticed, an occluder would stand still for ever and its NaN logits count as fooled.
        finite &= gradient.isfinite().all()
        state = self._optimizer.state_dict().values()
        before = [tensor.clone() for tensor in (self.occluders, *state)]
        self._optimizer.step(self.occluders, gradient, size, count)  # step and project
        # To branch on `finite`, or to select by a mask, would wait for the device. Where an occluder has stopped, the
        # momentum of earlier steps would carry it on.
        moves = finite & (self.stopped == 0).view(-1, 1, 1, 1)
        for tensor, keep, old in zip((self.occluders, *state), (moves, *(finite for _ in state)), before, strict=True):
            torch.where(keep, tensor, old, out=tensor)
        self._ahead.append((count, len(batch.labels), arriving(torch.where(finite, wrong, -1))))
        return list(self._taken(self.behind))

    def finish(self) -> list[Taken]:
        """Wait for the steps that are queued, and return them; errors are those of a step."""
        return list(self._taken(0))

    def _taken(self, behind: int) -> Iterator[Taken]:
        while len(self._ahead) > behind:
            count, own, arrived = self._ahead.popleft()
            wrong = int(arrived())
            if wrong < 0:
                self._failed += 1
                if self._failed == _MOST_SKIPPED:
                    raise not_finite(self._network.precision)
            elif own:  # steps with preserved pictures alone do not redeem it
                self._failed = 0
            yield Taken(count, own, None if wrong < 0 else wrong)

    def passes(self, batch: Batch) -> Iterator[Batch]:
        """Yield the parts of a batch that go through the network one by one."""
        return batch.parts(self._pass_size)

    def logits(self, part: Batch, occluders: Tensor) -> Tensor:
        """Occlude a part of a batch, and return the network's logits, float32 [P, C]."""
        pictures = torch.arange(len(part.images), device=part.images.device)
        return self._network(part.images, pictures, part.occluder_index, occluders, validate=False)

    def _gradient(self, part: Batch, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits of a part of a batch, and what it adds to the gradient of the batch's loss."""
        network, occluders = self._network, self.occluders.detach().requires_grad_(True)
        logits = self.logits(part, occluders)
        loss = self._loss(logits, part, batch) * _LOSS_SCALE[network.precision]
        with network.naming_failure(occluders.device):
            (gradient,) = torch.autograd.grad(loss, occluders)
        return logits.detach(), gradient

    def _loss(self, logits: Tensor, part: Batch, batch: Batch) -> Tensor:
        """Return what a part adds to the loss of its batch.

        That is the sum over own pictures, and the weighted mean over preserved ones as if there were as many.
        """
        own = len(part.labels)
        losses: list[Tensor] = []
        if own:
            losses.append(self._objective.loss(logits[:own], part.labels, impl=self._network.impl).sum())
        if part.clean is not None and batch.clean is not None:
            weight = self._weight * (len(batch.labels) or len(batch.clean)) / len(batch.clean)
            losses.append(weight * self._objective.preserving_loss(logits[own:], part.clean).sum())
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


def not_finite(precision: str) -> InputError:
    """Return the error that ends a training whose steps are not finite."""
    return InputError(f"{described_as_not_finite(precision)}; {finite_fix(precision)}")


def described_as_not_finite(precision: str) -> str:
    """Return what is said of a step that is not finite."""
    return f"--precision {precision}: logits or gradients are not finite"


def first_descent(classifier: FrozenClassifier, config: TrainConfig, device: torch.device, groups: int) -> Descent:
    """Return what takes the first step of `train` for `groups` occluders of zeros, for timing.

    `config.precision` must be resolved. Batches are expected on the device.
    """
    kernels, _ = checked_impl(config.impl, device)
    network = OccludedClassifier(classifier, config.precision, impl=kernels).settled(device, gradient=True)
    size = classifier.preprocessing.input_size
    return Descent(network, config, torch.zeros(groups, size, size, 3, device=device))
