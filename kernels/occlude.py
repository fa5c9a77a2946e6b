"""`occlude`: pictures + occluders → the network's normalised input, and the gradient of the bank.

    out[p] = clamp(images[image_index[p]] + d, 0, 255) · scale + shift,   d = bank[occluder_index[p] − 1], 0 for index 0

The formula has this one definition; training, the torch engine and every export use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import check_index, check_same_device, check_tensor

# Pairs are worked through in pieces of about this many elements, so that the peak memory is the output plus one piece.
# On the CPU a piece (1 MiB of float32) stays in cache; elsewhere a small one would cost more to launch than to compute.
_PIECE_ELEMENTS_CPU = 1 << 18
_PIECE_ELEMENTS = 1 << 26


def _pieces(pairs: int, images: Tensor) -> Iterator[slice]:
    elements = _PIECE_ELEMENTS_CPU if images.device.type == "cpu" else _PIECE_ELEMENTS
    step = max(1, elements // max(1, math.prod(images.shape[1:])))
    return (slice(start, min(start + step, pairs)) for start in range(0, pairs, step))


def _occluded_piece(images: Tensor, bank: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
    """x + d before the clamp, float32 [p, H, W, 3]."""
    occluded = images.index_select(0, image_index).float()
    clean = occluder_index == 0
    # Where nothing is occluded there is nothing to add, and maybe no row; only the CPU knows without waiting for it.
    if bank.shape[0] > 0 and not (images.device.type == "cpu" and bool(clean.all())):
        rows = bank.index_select(0, (occluder_index - 1).clamp_min_(0))
        occluded += rows.masked_fill_(clean.view(-1, 1, 1, 1), 0.0)
    return occluded


def _check(images: Tensor, bank: Tensor, image_index: Tensor, occluder_index: Tensor) -> None:
    check_tensor("images", images, torch.uint8, ("B", "H", "W", 3))
    check_tensor("bank", bank, torch.float32, ("K", *images.shape[1:]))
    check_tensor("image_index", image_index, torch.int64, ("P",))
    check_tensor("occluder_index", occluder_index, torch.int64, (image_index.shape[0],))
    check_same_device(images=images, bank=bank, image_index=image_index, occluder_index=occluder_index)
    check_index("image_index", image_index, images.shape[0])
    check_index("occluder_index", occluder_index, bank.shape[0] + 1)


@torch.library.custom_op("gfo::occlude", mutates_args=())
def _occlude(
    images: Tensor,
    bank: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    scale: Sequence[float],
    shift: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    _check(images, bank, image_index, occluder_index)
    pairs, (height, width, channels) = len(image_index), images.shape[1:]
    out = torch.empty(pairs, height, width, channels, dtype=dtype, device=images.device)
    scales, shifts = (torch.tensor(list(c), dtype=torch.float32, device=images.device) for c in (scale, shift))
    for piece in _pieces(pairs, images):
        occluded = _occluded_piece(images, bank, image_index[piece], occluder_index[piece])
        out[piece] = occluded.clamp_(0, 255).mul_(scales).add_(shifts)
    return out.permute(0, 3, 1, 2)


@_occlude.register_fake
def _(
    images: Tensor,
    bank: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    scale: Sequence[float],
    shift: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    return images.new_empty(image_index.shape[0], *images.shape[1:], dtype=dtype).permute(0, 3, 1, 2)


@torch.library.custom_op("gfo::occlude_backward", mutates_args=())
def _occlude_backward(
    grad: Tensor, images: Tensor, bank: Tensor, image_index: Tensor, occluder_index: Tensor, scale: Sequence[float]
) -> Tensor:
    """Gradient of the bank, float32 [K, H, W, 3], summed over the pairs of each occluder.

    The clamp's mask is recomputed, not stored, and counts the bounds in (1 where 0 ≤ x + d ≤ 255): PyTorch's own clamp
    gives 0 at the bound, and black and white pixels would never learn.
    """
    # Row 0 collects what falls on clean pairs and is dropped.
    total = torch.zeros(bank.shape[0] + 1, *bank.shape[1:], dtype=torch.float32, device=bank.device)
    scales = torch.tensor(list(scale), dtype=torch.float32, device=bank.device)
    for piece in _pieces(len(image_index), images):
        occluded = _occluded_piece(images, bank, image_index[piece], occluder_index[piece])
        inside = (occluded >= 0) & (occluded <= 255)
        piece_grad = grad[piece].permute(0, 2, 3, 1).float() * scales
        total.index_add_(0, occluder_index[piece], piece_grad.mul_(inside))
    return total[1:].clone()


@_occlude_backward.register_fake
def _(
    grad: Tensor, images: Tensor, bank: Tensor, image_index: Tensor, occluder_index: Tensor, scale: Sequence[float]
) -> Tensor:
    return torch.empty_like(bank)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, bank, image_index, occluder_index, scale, _, _ = inputs
    ctx.save_for_backward(images, bank, image_index, occluder_index)
    ctx.scale = scale


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    bank_grad = _occlude_backward(grad, *ctx.saved_tensors, ctx.scale)
    return None, bank_grad, None, None, None, None, None


_occlude.register_autograd(_backward, setup_context=_setup_context)


def occlude(
    images: Tensor,
    bank: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    *,
    scale: Sequence[float],
    shift: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Put occluders on pictures as a pair list says and normalise the result for the network.

    Parameters
    ----------
    images
        uint8 [B, H, W, 3], pixel values.
    bank
        float32 [K, H, W, 3], pixel units. Differentiable: its gradient is summed over the pairs of each occluder,
        zero for an occluder without a pair.
    image_index
        int64 [P], which picture, in 0 … B − 1.
    occluder_index
        int64 [P], which occluder, in 0 … K; 0 is clean, j is bank row j − 1.
    scale, shift
        Three floats each: 1 / (255 · std) and −mean / std for a network that wants (x / 255 − mean) / std.
    dtype
        float32, bfloat16 or float16, of the result. The arithmetic is float32.

    Returns
    -------
    Tensor
        [P, 3, H, W] in `dtype`, channels-last in memory.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device or index, with what was expected.

    Source: Wu et al., CVPR 2020, supplementary: the occluded picture is the picture plus the class's occluder, kept in
    the pixel range.
    """
    if len(scale) != 3 or len(shift) != 3:
        raise ValueError(f"scale and shift: expected 3 numbers each, got {len(scale)} and {len(shift)}")
    return _occlude(images, bank, image_index, occluder_index, list(scale), list(shift), dtype)
