"""The target accuracy: when an occluder is left as it is, and how much weaker it may become.

An occluder that is scaled down behaves nearly as one that was trained in a smaller ball, so that one training serves
all strengths; of them, the weakest that reaches the target spares other classes most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...export.occluded import OccludedClassifier
from .answers import accuracy_left
from .batches import Fitted
from .descent import Descent

_PARTS = 32  # the strengths that are told apart


@dataclass(frozen=True)
class Reached:
    """How a class met its target.

    Attributes
    ----------
    strength
        Factor 0 … 1 that its occluder was multiplied by.
    accuracy
        Top-1 accuracy that is left at that strength, on its held-out pictures, or the fitted ones where none are.
    reached
        Whether that is at most the target; if not, the strength is 1.
    epochs
        Epochs that it took.
    """

    strength: float
    accuracy: float
    reached: bool
    epochs: int


class Judge:
    """Measures what accuracy occluders leave.

    Parameters
    ----------
    network
        On `device`.
    pictures
        Of each occluder, those that it is judged on.
    target
        The accuracy to reach, 0 … 1.
    """

    def __init__(
        self,
        network: OccludedClassifier,
        pictures: Sequence[Fitted],
        target: float,
        device: torch.device,
        pass_size: int,
    ) -> None:
        self._network, self._pictures, self._target = network, pictures, target
        self._device, self._pass_size = device, pass_size

    def stop(self, step: Descent, epoch: int) -> None:
        """Stop the occluders that reach the target after `epoch` ≥ 1 epochs."""
        for row, occluder in enumerate(step.occluders):
            if not step.stopped[row] and self._accuracy(row, occluder) <= self._target:
                step.stopped[row] = epoch

    def weakest(self, row: int, occluder: Tensor, epochs: int) -> Reached:
        """Return the weakest strength of occluder number `row` that reaches the target, found by bisection."""
        found = {_PARTS: self._accuracy(row, occluder)}
        if found[_PARTS] > self._target:
            return Reached(1.0, found[_PARTS], reached=False, epochs=epochs)
        low, high = -1, _PARTS  # the target is reached at `high`, and not at `low`
        while high - low > 1:
            middle = (low + high + 1) // 2
            found[middle] = self._accuracy(row, occluder * (middle / _PARTS))
            low, high = (low, middle) if found[middle] <= self._target else (middle, high)
        return Reached(high / _PARTS, found[high], reached=True, epochs=epochs)

    def _accuracy(self, row: int, occluder: Tensor) -> float:
        return accuracy_left(self._network, self._pictures[row], self._device, self._pass_size, occluder)
