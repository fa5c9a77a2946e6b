"""Calibration: pictures, clean and occluded, on which the ranges of an int8 network are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.occlude import Normalisation, occlude
from ..kernels.pairs import Pairs
from .files import add_tensors
from .int8 import CalibrationFacts
from .preprocessing import Preprocessing

# Pictures of a batch; a network's largest tensor at 224² is some 3 MB a picture.
_BATCH = 10


@dataclass(frozen=True)
class Calibration:
    """Pictures, uint8 [N, S, S, 3], each under one row of a bank, int64 [N]; index 0 is clean, j is row j − 1."""

    images: Tensor
    occluder_index: Tensor
    occluders: Tensor
    facts: CalibrationFacts

    @classmethod
    def draw(cls, images: Tensor, occluders: Tensor, data: str, seed: int, bank_hash: str = "") -> Self:
        """Put every other picture under an occluder: a seeded draw of pictures, and of a row of the bank for each.

        `bank_hash` is that of the bank, empty for occluders without one. Rows are drawn evenly, as all pairs are what
        the network will see. Pictures come in a seeded order.
        """
        count, generator = len(images), torch.Generator().manual_seed(seed)
        images = images[torch.randperm(count, generator=generator)].contiguous()
        occluder_index = torch.randint(1, len(occluders) + 1, (count,), generator=generator)
        occluder_index[::2] = 0
        digest = hashlib.sha256()
        add_tensors(digest, {"images": images, "occluder_index": occluder_index, "occluders": occluders}, {})
        occluded = int((occluder_index > 0).sum())
        facts = CalibrationFacts(data, count, occluded, seed, f"sha256:{digest.hexdigest()}", bank_hash)
        return cls(images, occluder_index, occluders, facts)

    def batches(self, preprocessing: Preprocessing) -> Iterator[NDArray[np.float32]]:
        """Yield what the network is given for them, float32 [≤ 10, 3, S, S], by the occlusion of every engine."""
        how = Normalisation(preprocessing.scale, preprocessing.shift, torch.float32)
        places = torch.arange(len(self.images))
        for pictures, rows in zip(places.split(_BATCH), self.occluder_index.split(_BATCH), strict=True):
            yield (
                occlude(Pairs(self.images, self.occluders, pictures, rows), how, impl="reference").contiguous().numpy()
            )
