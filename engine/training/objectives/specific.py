"""Occluders that spare other classes: the paper's margin, and pictures of others whose answers are to stay."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....kernels.margin_loss import margin_loss
from .preserving import Preserving, PreservingOptions, margin


class Specific(Preserving):
    """The margin of `pure` on a class's own pictures, and a loss that preserves the answers to those of others.

    Source: Zhang et al., AAAI 2020 (CD-UAP), for the sum of a bounded margin and a cross-entropy.
    """

    name = "specific"
    needs_preserved = True
    Options = PreservingOptions
    formula = "carlini-wagner-margin"

    def loss(self, logits: Tensor, labels: Tensor, *, impl: str) -> Tensor:
        """See `Objective.loss`."""
        kappa: Any = self._options.kappa
        if self._options.detach_rival:
            return margin(logits, labels, detach_rival=True).clamp(min=-kappa)
        return margin_loss(logits, labels, kappa, impl=impl, validate=False)
