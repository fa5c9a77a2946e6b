"""What training expects of an optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ....kernels.ball import Norm


@dataclass(frozen=True)
class Ball:
    """The ball that occluders stay in: its radius ε in pixel units, and its norm."""

    epsilon: float
    norm: Norm


class Optimizer(ABC):
    """A rule that moves occluders against their gradient within the ε ball.

    Parameters
    ----------
    occluders
        float32 [G, S, S, 3], pixel units: the occluders that `step` will move, for the shape and device of the state.
    ball
        Where the occluders stay.
    decay
        Decay of the running mean or sum of gradients, in [0, 1).
    impl
        Implementation of the fused operations, `reference` or `triton`.

    Attributes
    ----------
    name
        Name in `OPTIMIZERS`.
    """

    name: ClassVar[str]

    @abstractmethod
    def __init__(self, occluders: Tensor, ball: Ball, decay: float, impl: str) -> None: ...

    @abstractmethod
    def step(self, occluders: Tensor, gradient: Tensor, size: float, count: int) -> None:
        """Move the occluders one step and project them onto the ball, in place.

        Parameters
        ----------
        occluders, gradient
            float32 [G, S, S, 3], pixel units, and the gradient of the loss.
        size
            Step size α ≥ 0 in pixel units.
        count
            Number of this step since training began, ≥ 1.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that a checkpoint holds beside the occluders, by name; the tensors are not copied."""

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a saved state, on any device, into this one; other names in `tensors` are ignored."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(tensors[name])
