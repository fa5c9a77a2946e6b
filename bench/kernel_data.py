"""Synthetic, seeded data for the kernel benchmark: uniform noise for pictures, normal noise for logits.

Their values decide no branch that would cost time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .kernel_formulas import EPSILON


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data.

    Attributes
    ----------
    size
        Pixels along a side of the pictures.
    pairs
        Pairs of a picture and an occluder in a call, or rows of logits.
    """

    size: int = 224
    pairs: int = 64
    occluders: int = 8
    classes: int = 1000

    @property
    def grid_pictures(self) -> int:
        """How many pictures a grid of about `pairs` pairs has."""
        return max(1, self.pairs // self.occluders)


def generator() -> torch.Generator:
    """Return a new seeded generator."""
    return torch.Generator().manual_seed(0)


def pictures_and_rows(sizes: Sizes, device: str, grid: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return pictures, rows (the bank behind a row of zeros), and the two lists."""
    g, shape = generator(), (sizes.size, sizes.size, 3)
    pictures = sizes.grid_pictures if grid else sizes.pairs
    images = torch.randint(0, 256, (pictures, *shape), dtype=torch.uint8, generator=g)
    # In steps of 1/128, and never a whole number: x + d is exact and never on a bound, where autograd's clamp differs.
    steps = torch.randint(-128 * int(EPSILON), 128 * int(EPSILON), (sizes.occluders, *shape), generator=g)
    rows = torch.cat([torch.zeros(1, *shape), (steps + 0.5) / 128])
    occluder_index = torch.randint(0, sizes.occluders + 1, (sizes.occluders if grid else pictures,), generator=g)
    image_index = torch.randperm(pictures, generator=g)
    return images.to(device), rows.to(device), image_index.to(device), occluder_index.to(device)


def logits_and_labels(sizes: Sizes, device: str) -> tuple[Tensor, Tensor]:
    """Return logits float32 [P, C] and labels int64 [P]."""
    g = generator()
    logits = torch.randn(sizes.pairs, sizes.classes, generator=g)
    return logits.to(device), torch.randint(0, sizes.classes, (sizes.pairs,), generator=g).to(device)


def optimizer_state(sizes: Sizes, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return occluders, momentum, second moment and gradient."""
    g, shape = generator(), (sizes.occluders, sizes.size, sizes.size, 3)
    occluders, gradient = (torch.rand(shape, generator=g) * 2 - 1) * EPSILON, torch.randn(shape, generator=g)
    # A momentum of the gradient's own sign: where the two cancel, the sign of the sum would be one of rounding.
    momentum, second = gradient * torch.rand(shape, generator=g), torch.rand(shape, generator=g) + 0.5
    return occluders.to(device), momentum.to(device), second.to(device), gradient.to(device)
