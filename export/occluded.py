"""The occluded classifier: pictures, a pair list and a bank in, logits out. The object that training differentiates,
the torch engine runs and every export freezes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.occlude import occlude, occlude_grid
from .classifier import DTYPES, FrozenClassifier


class OccludedClassifier(nn.Module):
    """images uint8 [B, S, S, 3], image_index int64 [P], occluder_index int64 [P] → logits float32 [P, C].

    Occluder index 0 is clean, j is row j − 1 of the bank: float32 [K, S, S, 3] in pixel units, embedded here or given
    with each call.
    """

    def __init__(
        self,
        classifier: FrozenClassifier,
        precision: str = "fp32",
        bank: Tensor | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.impl = impl
        self.network = classifier.network_as(precision)
        self.precision, self.dtype = precision, DTYPES[precision]
        self.scale = list(classifier.preprocessing.scale)
        self.shift = list(classifier.preprocessing.shift)
        self.register_buffer("bank", bank)

    def forward(
        self,
        images: Tensor,
        image_index: Tensor,
        occluder_index: Tensor,
        bank: Tensor | None = None,
        *,
        grid: bool = False,
        validate: bool = True,
    ) -> Tensor:
        """Logits of each pair, differentiable with respect to `bank`.

        With `grid` the lists are the sides of a Cartesian block, as `occlude_grid` takes them; `validate` as there.

        Raises
        ------
        TypeError, ValueError
            As `occlude`; no bank given and none embedded.
        """
        chosen: Any = self.bank if bank is None else bank
        if chosen is None:
            raise ValueError("no bank: give one with the call or embed one")
        inputs = (occlude_grid if grid else occlude)(
            images,
            chosen,
            image_index,
            occluder_index,
            scale=self.scale,
            shift=self.shift,
            dtype=self.dtype,
            impl=self.impl,
            validate=validate,
        )
        return self.network(inputs).to(torch.float32)
