"""Shared by `occlude` and its gradient: x + d in pieces for the references, per-channel numbers for the kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ._triton import jit, tl
from .pairs import Pairs

# The references process pairs in pieces of about this many elements, so that the peak memory is the output plus one
# piece. On the CPU a piece (1 MiB of float32) stays in cache, and a pair of `_ALONE` elements or more is one by itself,
# which saves copies; elsewhere small pieces would be bound by their launches.
_PIECE_ELEMENTS_CPU, _ALONE = 1 << 18, 1 << 16
_PIECE_ELEMENTS = 1 << 26

ELEMENTS_224 = 224 * 224 * 3
"""Elements of the picture for which the table of compiled kernels counts bytes."""


def pieces(pairs: Pairs) -> Iterator[slice]:
    """Yield the slices of the pair list to process one after another.

    A traced graph has one piece: the traced number of pieces would fix the number of pairs.
    """
    count, images = pairs.image_index.shape[0], pairs.images
    if torch.compiler.is_compiling():
        return iter([slice(0, count)])
    pair = max(1, math.prod(images.shape[1:]))
    if images.device.type != "cpu":
        step = max(1, _PIECE_ELEMENTS // pair)
    else:
        step = 1 if pair >= _ALONE else _PIECE_ELEMENTS_CPU // pair
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def rows_of_three(values: Sequence[float], images: Tensor) -> Tensor:
    """Repeat three numbers along a row of the picture, float32 [W·3]: an inner loop over three elements is slow."""
    return torch.tensor(values, dtype=torch.float32, device=images.device).repeat(images.shape[2])


def occluded_piece(pairs: Pairs, piece: slice) -> Tensor:
    """Return x + d of some pairs before the clamp, float32 [p, H, W·3]."""
    images, bank = pairs.images.flatten(2), pairs.bank.flatten(2)
    image_index, occluder_index = pairs.image_index[piece], pairs.occluder_index[piece]
    known = images.device.type == "cpu" and not torch.compiler.is_compiling()  # else int() would wait for the value
    if known and len(image_index) == 1:  # views, no copies
        picture, row = images[int(image_index)][None], int(occluder_index) - 1
        return picture.float() if row < 0 else picture + bank[row]
    occluded = images.index_select(0, image_index).float()
    if bank.shape[0] > 0:
        rows = bank.index_select(0, (occluder_index - 1).clamp_min_(0))
        occluded += rows.masked_fill_((occluder_index == 0).view(-1, 1, 1), 0.0)
    return occluded


@jit()
def of_channel(channel: tl.tensor, red: tl.tensor, green: tl.tensor, blue: tl.tensor) -> tl.tensor:
    """Select the channel's number, inside a kernel."""
    return tl.where(channel == 0, red, tl.where(channel == 1, green, blue))
