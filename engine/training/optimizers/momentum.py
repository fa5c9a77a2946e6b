"""Momentum of normalised gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels.momentum_step import momentum_step
from .base import Ball, Optimizer


class Momentum(Optimizer):
    """Steps along a running sum of normalised gradients: its signs in the l∞ ball, its direction in the l2 ball.

    Source: Dong et al., CVPR 2018 (MI-FGSM).
    """

    name = "momentum"

    def __init__(self, occluders: Tensor, ball: Ball, decay: float, impl: str) -> None:
        self._ball, self._decay, self._impl = ball, decay, impl
        self._momentum = torch.zeros_like(occluders)

    def step(self, occluders: Tensor, gradient: Tensor, size: float, count: int) -> None:
        """See `Optimizer.step`."""
        momentum_step(
            occluders,
            self._momentum,
            gradient,
            step=size,
            decay=self._decay,
            epsilon=self._ball.epsilon,
            norm=self._ball.norm,
            impl=self._impl,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """See `Optimizer.state_dict`."""
        return {"momentum": self._momentum}
