"""The gradient of `occlude`: of the bank alone, summed over the pairs of each occluder, the same bits every time.

    gradient[k] = scale · Σ_{p: occluder_index[p] = k + 1} grad[p] · [0 ≤ images[image_index[p]] + bank[k] ≤ 255]

The clamp's mask is recomputed, not stored, and counts the bounds in: PyTorch's own clamp gives 0 at the bound, and
black and white pixels would never learn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ._operation import operation
from ._pixels import ELEMENTS_224, LAYOUTS, occluded_piece, of_channel, pieces, rows_of_three
from ._triton import SHORT_NAMES, Variant, jit, tl
from .impl import choose_impl

# Four pairs are read at a time, to keep enough loads in flight, in programs of one warp, so that even a single occluder
# spreads over the whole GPU.
_WARPS, _BLOCK, _PAIRS = 1, 256, 4


# ---- reference


def _reference(
    grad: Tensor, images: Tensor, bank: Tensor, image_index: Tensor, occluder_index: Tensor, scale: Sequence[float]
) -> Tensor:
    # Row 0 collects what falls on clean pairs and is dropped.
    total = torch.zeros(bank.shape[0] + 1, *bank.shape[1:], dtype=torch.float32, device=bank.device)
    for piece in pieces(len(image_index), images):
        occluded = occluded_piece(images, bank, image_index[piece], occluder_index[piece])
        inside = (occluded >= 0) & (occluded <= 255)
        masked = grad[piece, ..., :3].float().flatten(2).mul_(inside)
        total.index_add_(0, occluder_index[piece], masked.view(-1, *total.shape[1:]))
    return total[1:].flatten(2).mul(rows_of_three(scale, images)).view_as(bank)


# ---- kernel


@jit
def _bank_gradient_kernel(
    grad: tl.tensor,
    images: tl.tensor,
    bank: tl.tensor,
    image_index: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    total: tl.tensor,
    occluders: tl.tensor,
    elements: tl.tensor,
    s0: tl.tensor,
    s1: tl.tensor,
    s2: tl.tensor,
    CHANNELS: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One block of one occluder: its pairs, order[starts[k] … starts[k + 1]], are summed here and written once."""
    row = (tl.program_id(0) % occluders).to(tl.int64)
    element = tl.program_id(0) // occluders * BLOCK + tl.arange(0, BLOCK)
    there, channel = element < elements, element % 3
    place = element if CHANNELS == 3 else element // 3 * CHANNELS + channel
    size = elements if CHANNELS == 3 else elements // 3 * CHANNELS
    d = tl.load(bank + row * elements + element, mask=there, other=0.0)
    sums = tl.zeros([BLOCK], tl.float32)
    last = tl.load(starts + row + 1)
    for at in range(tl.load(starts + row), last, PAIRS):
        turn = at + tl.arange(0, PAIRS)
        pair = tl.load(order + turn, mask=turn < last, other=0)
        picture = tl.load(image_index + pair, mask=turn < last, other=0)
        mask = (turn < last)[:, None] & there[None, :]
        x = tl.load(images + picture[:, None] * elements + element[None, :], mask=mask, other=0).to(tl.float32)
        g = tl.load(grad + pair[:, None] * size + place[None, :], mask=mask, other=0.0).to(tl.float32)
        occluded = x + d[None, :]
        sums += tl.sum(tl.where((occluded >= 0) & (occluded <= 255), g, 0.0), axis=0)
    tl.store(total + row * elements + element, sums * of_channel(channel, s0, s1, s2), mask=there)


# ---- launcher


def _launch(
    grad: Tensor, images: Tensor, bank: Tensor, image_index: Tensor, occluder_index: Tensor, scale: Sequence[float]
) -> Tensor:
    total, elements = torch.empty_like(bank), math.prod(bank.shape[1:])
    # The pairs of an occluder side by side, in their own order: the same sum in the same order every time.
    ordered, order = torch.sort(occluder_index, stable=True)
    starts = torch.searchsorted(ordered, torch.arange(1, len(bank) + 2, device=bank.device))
    programs = len(bank) * -(-elements // _BLOCK)
    how = {"CHANNELS": grad.shape[3], "PAIRS": _PAIRS, "BLOCK": _BLOCK, "num_warps": _WARPS}
    _bank_gradient_kernel[(programs,)](
        grad, images, bank, image_index, order, starts, total, len(bank), elements, *scale, **how
    )
    return total


# ---- registration


@operation("occlude_backward")
def occlude_backward(
    grad: Tensor,
    images: Tensor,
    bank: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    scale: Sequence[float],
    impl: str,
) -> Tensor:
    """Gradient of the bank, float32 [K, H, W, 3], summed over the pairs of each occluder.

    The clamp's mask is recomputed, not stored, and counts the bounds in (1 where 0 ≤ x + d ≤ 255): PyTorch's own clamp
    gives 0 at the bound, and black and white pixels would never learn.
    """
    chosen, _ = choose_impl(impl, images.device)
    upstream = grad.permute(0, 2, 3, 1).contiguous()  # a copy only where it is not channels-last already
    if chosen == "reference":
        return _reference(upstream, images, bank, image_index, occluder_index, scale)
    if bank.numel() == 0:
        return torch.empty_like(bank)
    return _launch(upstream, images, bank, image_index, occluder_index, scale)


@occlude_backward.register_fake
def _(grad: Tensor, images: Tensor, bank: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(bank)


# ---- for the table of compiled kernels


def variants() -> Iterator[Variant]:
    """Every form in which the launcher above starts the kernel."""
    for (dtype, name), channels, fits in itertools.product(SHORT_NAMES.items(), LAYOUTS, (True, False)):
        arguments = {
            "grad": f"*{name}",
            "images": "*u8",
            "bank": "*fp32",
            **dict.fromkeys(("image_index", "order", "starts"), "*i64"),
            "total": "*fp32",
            "occluders": "i32",
            "elements": "i32:16" if fits else "i32",
            **dict.fromkeys(("s0", "s1", "s2"), "fp32"),
            "CHANNELS": channels,
            "PAIRS": _PAIRS,
            "BLOCK": _BLOCK,
        }
        # A pair's gradient and picture, and its share of an occluder with 16 pairs, read once and written once.
        moved = ELEMENTS_224 * (dtype.itemsize + 1 + (4 + 4) / 16)
        title = f"{name}, {channels} channels{'' if fits else ', any size'}"
        yield Variant(_bank_gradient_kernel, title, arguments, _WARPS, "pair", moved, moved)
