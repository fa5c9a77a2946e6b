"""The pairs that an operation works on: `Pairs`, one picture and one occluder each, or `Grid`, all with all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_index


class Pairs(NamedTuple):
    """A list of P pairs of a picture and an occluder.

    Attributes
    ----------
    images
        uint8 [B, H, W, 3], pixel values.
    bank
        float32 [K, H, W, 3], the occluders in pixel units.
    image_index
        int64 [P], the picture of each pair, in 0 … B − 1.
    occluder_index
        int64 [P], the occluder of each pair, in 0 … K; 0 is clean, j is bank row j − 1.
    """

    images: Tensor
    bank: Tensor
    image_index: Tensor
    occluder_index: Tensor

    def listed(self) -> Pairs:
        """Return `self`."""
        return self


class Grid(NamedTuple):
    """A Cartesian block of I · J pairs: each listed picture with each listed occluder.

    Attributes
    ----------
    images, bank
        As in `Pairs`.
    image_index, occluder_index
        int64 [I] and int64 [J]. Pair i · J + j is picture image_index[i] with occluder occluder_index[j].
    """

    images: Tensor
    bank: Tensor
    image_index: Tensor
    occluder_index: Tensor

    def listed(self) -> Pairs:
        """Return the same pairs in the same order as a list."""
        return Pairs(self.images, self.bank, *_crossed(self.image_index, self.occluder_index))


def _crossed(image_index: Tensor, occluder_index: Tensor) -> tuple[Tensor, Tensor]:
    return image_index.repeat_interleave(occluder_index.shape[0]), occluder_index.repeat(image_index.shape[0])


def as_grid(image_index: Tensor, occluder_index: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the two sides of the grid that a pair list spans, in the order of `Grid`, or None if it spans none.

    Both lists are int64 [P] on the CPU: on a GPU the result would have to be waited for.
    """
    pairs = len(image_index)
    if pairs == 0:
        return None
    across = int((image_index == image_index[0]).long().cumprod(0).sum())
    if pairs % across:
        return None
    pictures, occluders = image_index[::across].contiguous(), occluder_index[:across]
    listed = _crossed(pictures, occluders)
    same = torch.equal(listed[0], image_index) and torch.equal(listed[1], occluder_index)
    return (pictures, occluders) if same else None


def check_pair_list(image_index: Tensor, occluder_index: Tensor, pictures: int, occluders: int) -> None:
    """Check the ranges of both indices, for callers whose lists are still on the CPU; raises `ValueError`."""
    check_index("image_index", image_index, pictures)
    check_index("occluder_index", occluder_index, occluders + 1)
