"""What `occlude` and its gradient share: x + d in pieces for the references, the choice by channel for the kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ._triton import jit, tl

# Pairs are worked through in pieces of about this many elements, so that the peak memory is the output plus one piece.
# On the CPU a piece (1 MiB of float32) stays in cache; elsewhere a small one would cost more to launch than it saves.
_PIECE_ELEMENTS_CPU = 1 << 18
_PIECE_ELEMENTS = 1 << 26

LAYOUTS = (3, 8)
"""Channels of the output: 3, or padded with zeros to 8 for engines that want 16 bytes a pixel."""

# What a picture's bytes are counted at in the table of compiled kernels.
ELEMENTS_224 = 224 * 224 * 3


def pieces(pairs: int, images: Tensor) -> Iterator[slice]:
    """Pieces of the pair list."""
    elements = _PIECE_ELEMENTS_CPU if images.device.type == "cpu" else _PIECE_ELEMENTS
    step = max(1, elements // max(1, math.prod(images.shape[1:])))
    return (slice(start, min(start + step, pairs)) for start in range(0, pairs, step))


def rows_of_three(values: Sequence[float], images: Tensor) -> Tensor:
    """Per channel → float32 [W·3]: a whole line of the picture, because an inner loop of three is slow."""
    return torch.tensor(values, dtype=torch.float32, device=images.device).repeat(images.shape[2])


def occluded_piece(images: Tensor, bank: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
    """x + d before the clamp, float32 [p, H, W·3]."""
    images, bank = images.flatten(2), bank.flatten(2)
    if len(image_index) == 1 and images.device.type == "cpu":  # no copies, and only the CPU knows without waiting
        picture, row = images[int(image_index)][None], int(occluder_index) - 1
        return picture.float() if row < 0 else picture + bank[row]
    occluded = images.index_select(0, image_index).float()
    if bank.shape[0] > 0:
        rows = bank.index_select(0, (occluder_index - 1).clamp_min_(0))
        occluded += rows.masked_fill_((occluder_index == 0).view(-1, 1, 1), 0.0)
    return occluded


@jit
def of_channel(channel: tl.tensor, red: tl.tensor, green: tl.tensor, blue: tl.tensor) -> tl.tensor:
    """In a kernel: the number that belongs to the channel."""
    return tl.where(channel == 0, red, tl.where(channel == 1, green, blue))
