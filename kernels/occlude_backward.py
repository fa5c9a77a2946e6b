"""The gradient of `occlude` with respect to the bank, summed over the pairs of each occluder.

    gradient[k] = scale · Σ_{p: occluder_index[p] = k + 1} grad[p] · [0 ≤ images[image_index[p]] + bank[k] ≤ 255]

The clamp's mask is recomputed, not stored. It includes the bounds: with the gradient of `torch.clamp`, which is 0 at a
bound, black and white pixels would never learn. The sum has a fixed order, so the same input yields the same bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ._pixels import ELEMENTS_224, occluded_piece, of_channel, pieces, rows_of_three
from ._triton import SHORT_NAMES, Variant, jit, tl
from .impl import choose_impl
from .pairs import Pairs

# Four pairs are read at a time, to keep enough loads in flight, by programs of one warp, so that even a single occluder
# spreads over the whole GPU.
_WARPS, _BLOCK, _PAIRS = 1, 256, 4


# ---- reference


def _reference(grad: Tensor, pairs: Pairs, scale: Sequence[float]) -> Tensor:
    bank = pairs.bank
    # Row 0 collects the gradient of clean pairs and is dropped.
    total = torch.zeros(bank.shape[0] + 1, *bank.shape[1:], dtype=torch.float32, device=bank.device)
    for piece in pieces(pairs):
        occluded = occluded_piece(pairs, piece)
        inside = occluded.clamp(0, 255) == occluded  # one comparison less than with the bounds
        masked = grad[piece].float().flatten(2).mul_(inside)
        total.index_add_(0, pairs.occluder_index[piece], masked.view(-1, *total.shape[1:]))
    return total[1:].flatten(2).mul(rows_of_three(scale, pairs.images)).view_as(bank)


# ---- kernel


@jit("occluders")
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
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Sum one block of one occluder over its pairs, order[starts[k] … starts[k + 1]], and write it once."""
    row = (tl.program_id(0) % occluders).to(tl.int64)
    element = tl.program_id(0) // occluders * BLOCK + tl.arange(0, BLOCK)
    there, channel = element < elements, element % 3
    d = tl.load(bank + row * elements + element, mask=there, other=0.0)
    sums = tl.zeros([BLOCK], tl.float32)
    last = tl.load(starts + row + 1)
    for at in range(tl.load(starts + row), last, PAIRS):
        turn = at + tl.arange(0, PAIRS)
        pair = tl.load(order + turn, mask=turn < last, other=0)
        picture = tl.load(image_index + pair, mask=turn < last, other=0)
        mask = (turn < last)[:, None] & there[None, :]
        x = tl.load(images + picture[:, None] * elements + element[None, :], mask=mask, other=0).to(tl.float32)
        g = tl.load(grad + pair[:, None] * elements + element[None, :], mask=mask, other=0.0).to(tl.float32)
        occluded = x + d[None, :]
        sums += tl.sum(tl.where((occluded >= 0) & (occluded <= 255), g, 0.0), axis=0)
    tl.store(total + row * elements + element, sums * of_channel(channel, s0, s1, s2), mask=there)


# ---- launcher


def _launch(grad: Tensor, pairs: Pairs, scale: Sequence[float]) -> Tensor:
    images, bank, image_index, occluder_index = pairs
    total, elements = torch.empty_like(bank), math.prod(bank.shape[1:])
    # A stable sort keeps the pairs of an occluder in the order of the list, which fixes the order of the sum.
    ordered, order = torch.sort(occluder_index, stable=True)
    starts = torch.searchsorted(ordered, torch.arange(1, len(bank) + 2, device=bank.device))
    programs = len(bank) * -(-elements // _BLOCK)
    how = {"PAIRS": _PAIRS, "BLOCK": _BLOCK, "num_warps": _WARPS}
    _bank_gradient_kernel[(programs,)](
        grad, images, bank, image_index, order, starts, total, len(bank), elements, *scale, **how
    )
    return total


# ---- public


def occlude_backward(grad: Tensor, pairs: Pairs, scale: Sequence[float], impl: str = "auto") -> Tensor:
    """Compute the gradient of the bank from the gradient of the output of `occlude`.

    Parameters
    ----------
    grad
        float32, bfloat16 or float16 [P, 3, H, W]; channels-last in memory saves a copy.
    pairs
        As given to `occlude`, not checked again.
    scale
        Three numbers, as in `Normalisation`.
    impl
        `auto`, `reference` or `triton`; see `choose_impl`.

    Returns
    -------
    Tensor
        float32 [K, H, W, 3], zero for an occluder without a pair.
    """
    chosen, _ = choose_impl(impl, pairs.images.device)
    upstream = grad.permute(0, 2, 3, 1).contiguous()
    if chosen == "reference":
        return _reference(upstream, pairs, scale)
    if pairs.bank.numel() == 0:
        return torch.empty_like(pairs.bank)
    return _launch(upstream, pairs, scale)


# ---- for the table of compiled kernels


def variants() -> Iterator[Variant]:
    """Yield every form in which the launcher above starts the kernel."""
    for (dtype, name), fits in itertools.product(SHORT_NAMES.items(), (True, False)):
        arguments = {
            "grad": f"*{name}",
            "images": "*u8",
            "bank": "*fp32",
            **dict.fromkeys(("image_index", "order", "starts"), "*i64"),
            "total": "*fp32",
            "occluders": "i32",
            "elements": "i32:16" if fits else "i32",
            **dict.fromkeys(("s0", "s1", "s2"), "fp32"),
            "PAIRS": _PAIRS,
            "BLOCK": _BLOCK,
        }
        # The gradient and picture of a pair, and a pair's share of an occluder that has 16, read once and written once.
        moved = ELEMENTS_224 * (dtype.itemsize + 1 + (4 + 4) / 16)
        title = f"{name}{'' if fits else ', any size'}"
        yield Variant(_bank_gradient_kernel, title, arguments, _WARPS, "pair", moved, moved)
