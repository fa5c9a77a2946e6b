"""The occluded classifier: pictures, a pair list and a bank in, logits out.

Training differentiates it and the torch engine runs it; `onnx_graph` writes the same computation as a graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.occlude import Normalisation, occlude
from ..kernels.pairs import Grid, Pairs
from .classifier import DTYPES, FrozenClassifier


class OccludedClassifier(nn.Module):
    """A frozen classifier under occluders.

    images uint8 [B, S, S, 3], image_index int64 [P], occluder_index int64 [P] → logits float32 [P, C]. Occluder index 0
    is clean, j is row j − 1 of the bank: float32 [K, S, S, 3] in pixel units, embedded here or given with each call.

    Parameters
    ----------
    classifier
        Its network is copied.
    precision
        `fp32`, `bf16` or `fp16` for the network; occlusion and logits are float32.
    bank
        The bank to embed, if any.
    impl
        Implementation of `occlude`: `auto`, `reference` or `triton`.
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
        self.precision = precision
        preprocessing = classifier.preprocessing
        self.normalisation = Normalisation(preprocessing.scale, preprocessing.shift, DTYPES[precision])
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
        """Return the logits of each pair, differentiable with respect to `bank`.

        With `grid` the lists are the sides of a Cartesian block, as in `Grid`; `validate` as in `occlude`.

        Raises
        ------
        TypeError, ValueError
            `occlude` does not take the inputs, or no bank is given and none embedded.
        """
        chosen: Any = self.bank if bank is None else bank
        if chosen is None:
            raise ValueError("no bank: give one with the call or embed one")
        pairs = (Grid if grid else Pairs)(images, chosen, image_index, occluder_index)
        inputs = occlude(pairs, self.normalisation, impl=self.impl, validate=validate)
        return self.network(inputs).to(torch.float32)
