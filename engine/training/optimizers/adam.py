"""Adam."""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels.adam_step import adam_step
from .base import Ball, Optimizer


class Adam(Optimizer):
    """Steps of Adam; the decay is β₁, β₂ is 0.999.

    Source: Kingma and Ba, ICLR 2015, algorithm 1.
    """

    name = "adam"

    def __init__(self, occluders: Tensor, ball: Ball, decay: float, impl: str) -> None:
        self._ball, self._beta1, self._impl = ball, decay, impl
        self._first, self._second = torch.zeros_like(occluders), torch.zeros_like(occluders)

    def step(self, occluders: Tensor, gradient: Tensor, size: float, count: int) -> None:
        """See `Optimizer.step`."""
        adam_step(
            occluders,
            self._first,
            self._second,
            gradient,
            step=size,
            count=count,
            beta1=self._beta1,
            epsilon=self._ball.epsilon,
            norm=self._ball.norm,
            impl=self._impl,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """See `Optimizer.state_dict`."""
        return {"first": self._first, "second": self._second}
