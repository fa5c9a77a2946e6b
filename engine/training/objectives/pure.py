"""The paper's objective: the margin between a picture's own class and its strongest rival."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ....export.errors import InputError
from ....kernels.margin_loss import margin_loss
from .base import Objective


class Pure(Objective):
    """Carlini-Wagner margin max(z_c − max_{j ≠ c} z_j, −κ) of a class's own pictures.

    Source: Wu et al., CVPR 2020, supplementary S1; Carlini and Wagner, IEEE S&P 2017, f₆.
    """

    name = "pure"

    @dataclass(frozen=True)
    class Options:
        """Options of `pure`.

        Attributes
        ----------
        kappa
            Confidence κ of the margin in logit units, 0 … 1e6: pictures that are wrong by more have no gradient.
        """

        kappa: float = field(
            default=10.0,
            metadata={"help": "confidence of the margin in logit units: pictures wrong by more do not count"},
        )

        def __post_init__(self) -> None:
            if not 0 <= self.kappa <= 1e6:
                raise InputError(f"--kappa {self.kappa}: must be at least 0 and at most 1e+06")

    def __init__(self, options: Options) -> None:
        self._kappa = options.kappa

    def header(self) -> dict[str, Any]:
        """See `Objective.header`."""
        return {"loss": "carlini-wagner-margin", "kappa": self._kappa}

    def loss(self, logits: Tensor, labels: Tensor, *, impl: str) -> Tensor:
        """See `Objective.loss`."""
        return margin_loss(logits, labels, self._kappa, impl=impl, validate=False)
