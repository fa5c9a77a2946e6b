"""`occlude`: pictures and occluders → the network's normalised input, differentiable with respect to the occluders.

    out[p] = clamp(images[image_index[p]] + d, 0, 255) · scale + shift,   d = bank[occluder_index[p] − 1], 0 for index 0

For a `Grid` each program of the kernel loads a tile of pictures and of occluders once for all their pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._checks import check_contiguous, check_same_device, check_tensor
from ._pixels import ELEMENTS_224, occluded_piece, of_channel, pieces, rows_of_three
from ._triton import SHORT_NAMES, Variant, jit, tl
from .impl import choose_impl
from .occlude_backward import occlude_backward
from .pairs import Grid, Pairs, check_pair_list

# A warp has 32 threads, and each thread writes 16 bytes at a time, the widest store: 8 halves or 4 floats.
_WARPS, _STORE_BYTES = 4, 16
# Pictures and occluders that a program of the grid kernel loads once for all their pairs.
_TILE_PICTURES, _TILE_OCCLUDERS = 4, 8


class Normalisation(NamedTuple):
    """The network's input normalisation, applied after the occlusion.

    Attributes
    ----------
    scale, shift
        Three numbers each: 1 / (255 · std) and −mean / std for a network that expects (x / 255 − mean) / std.
    dtype
        float32, bfloat16 or float16, of the result. The arithmetic is float32.
    """

    scale: Sequence[float]
    shift: Sequence[float]
    dtype: torch.dtype = torch.float32


# ---- reference


def _reference(pairs: Pairs, how: Normalisation, out: Tensor) -> None:
    scales, shifts = rows_of_three(how.scale, pairs.images), rows_of_three(how.shift, pairs.images)
    for piece in pieces(pairs):
        occluded = occluded_piece(pairs, piece)
        out[piece] = occluded.clamp_(0, 255).mul_(scales).add_(shifts).unflatten(2, (-1, 3))


# ---- kernels


@jit()
def _normalised(
    occluded: tl.tensor,
    channel: tl.tensor,
    s0: tl.tensor,
    s1: tl.tensor,
    s2: tl.tensor,
    h0: tl.tensor,
    h1: tl.tensor,
    h2: tl.tensor,
) -> tl.tensor:
    # A NaN in a bank must reach the logits, where it is noticed; plain max and min would drop it.
    clamped = tl.clamp(occluded, 0.0, 255.0, propagate_nan=tl.PropagateNan.ALL)
    return clamped * of_channel(channel, s0, s1, s2) + of_channel(channel, h0, h1, h2)


@jit("pairs")
def _occlude_kernel(
    images: tl.tensor,
    bank: tl.tensor,
    image_index: tl.tensor,
    occluder_index: tl.tensor,
    out: tl.tensor,
    pairs: tl.tensor,
    elements: tl.tensor,
    s0: tl.tensor,
    s1: tl.tensor,
    s2: tl.tensor,
    h0: tl.tensor,
    h1: tl.tensor,
    h2: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Write one block of one pair. Pairs vary fastest, so that what they share is still in the L2 cache."""
    pair = (tl.program_id(0) % pairs).to(tl.int64)
    element = tl.program_id(0) // pairs * BLOCK + tl.arange(0, BLOCK)
    channel, there = element % 3, element < elements
    picture, row = tl.load(image_index + pair), tl.load(occluder_index + pair) - 1
    x = tl.load(images + picture * elements + element, mask=there, other=0).to(tl.float32)
    d = tl.load(bank + row * elements + element, mask=there & (row >= 0), other=0.0)
    y = _normalised(x + d, channel, s0, s1, s2, h0, h1, h2)
    tl.store(out + pair * elements + element, y.to(out.dtype.element_ty), mask=there)


@jit("pictures", "occluders")
def _occlude_grid_kernel(
    images: tl.tensor,
    bank: tl.tensor,
    image_index: tl.tensor,
    occluder_index: tl.tensor,
    out: tl.tensor,
    pictures: tl.tensor,
    occluders: tl.tensor,
    elements: tl.tensor,
    s0: tl.tensor,
    s1: tl.tensor,
    s2: tl.tensor,
    h0: tl.tensor,
    h1: tl.tensor,
    h2: tl.tensor,
    TILE_PICTURES: tl.constexpr,
    TILE_OCCLUDERS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write one block of a tile: its pictures stay in registers while its occluders are loaded one by one."""
    across = tl.cdiv(occluders, TILE_OCCLUDERS)
    tiles = tl.cdiv(pictures, TILE_PICTURES) * across
    tile = tl.program_id(0) % tiles
    element = tl.program_id(0) // tiles * BLOCK + tl.arange(0, BLOCK)
    channel, there = element % 3, element < elements
    top = tile // across * TILE_PICTURES
    tile_pictures = ()  # one block per picture, not one for all: a thread then writes the elements that it loaded
    for i in tl.static_range(TILE_PICTURES):
        picture = tl.load(image_index + top + i, mask=top + i < pictures, other=0)
        x = tl.load(images + picture * elements + element, mask=there & (top + i < pictures), other=0)
        tile_pictures += (x.to(tl.float32),)
    left = tile % across * TILE_OCCLUDERS
    for j in range(left, tl.minimum(left + TILE_OCCLUDERS, occluders)):
        row = tl.load(occluder_index + j) - 1
        d = tl.load(bank + row * elements + element, mask=there & (row >= 0), other=0.0)
        for i in tl.static_range(TILE_PICTURES):
            y = _normalised(tile_pictures[i] + d, channel, s0, s1, s2, h0, h1, h2)
            pair = (top + i).to(tl.int64) * occluders + j
            mask = there & (top + i < pictures)
            tl.store(out + pair * elements + element, y.to(out.dtype.element_ty), mask=mask)


# ---- launcher


def _block(dtype: torch.dtype) -> int:
    return _WARPS * 32 * _STORE_BYTES // dtype.itemsize


def _launch(pairs: Pairs | Grid, how: Normalisation, out: Tensor) -> None:
    images, bank, *lists = pairs
    elements, block = math.prod(images.shape[1:]), _block(out.dtype)
    blocks, numbers = -(-elements // block), (*how.scale, *how.shift)
    # Without fused multiply-adds the result has the reference's bits; memory bounds the speed, not arithmetic.
    options: dict[str, Any] = {"BLOCK": block, "num_warps": _WARPS, "enable_fp_fusion": False}
    if isinstance(pairs, Grid):
        pictures, occluders = map(len, lists)
        tiles = -(-pictures // _TILE_PICTURES) * -(-occluders // _TILE_OCCLUDERS)
        options |= {"TILE_PICTURES": _TILE_PICTURES, "TILE_OCCLUDERS": _TILE_OCCLUDERS}
        sizes = (pictures, occluders, elements)
        _occlude_grid_kernel[(tiles * blocks,)](images, bank, *lists, out, *sizes, *numbers, **options)
    else:
        sizes = (len(out), elements)
        _occlude_kernel[(len(out) * blocks,)](images, bank, *lists, out, *sizes, *numbers, **options)


# ---- autograd


class _Occlude(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bank: Tensor, pairs: Pairs | Grid, how: Normalisation, impl: str) -> Tensor:
        ctx.save_for_backward(pairs.images, bank, pairs.image_index, pairs.occluder_index)
        ctx.kind, ctx.scale, ctx.impl = type(pairs), how.scale, impl
        images, count = pairs.images, pairs.image_index.shape[0]
        count *= pairs.occluder_index.shape[0] if isinstance(pairs, Grid) else 1
        out = torch.empty(count, *images.shape[1:], dtype=how.dtype, device=images.device)
        if impl == "reference":
            _reference(pairs.listed(), how, out)
        elif out.numel() > 0:
            _launch(pairs, how, out)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (grad,), pairs = grads, ctx.kind(*ctx.saved_tensors)
        return occlude_backward(grad, pairs.listed(), ctx.scale, ctx.impl), None, None, None


# ---- public


def occlude(pairs: Pairs | Grid, how: Normalisation, *, impl: str = "auto", validate: bool = True) -> Tensor:
    """Add occluders to pictures, clamp to the pixel range and normalise the result for the network.

    Parameters
    ----------
    pairs
        Which picture meets which occluder. Differentiable with respect to `bank`: its gradient is summed over the pairs
        of each occluder, in a fixed order, and zero for an occluder without a pair.
    how
        Scale, shift and dtype of the result.
    impl
        `auto`, `reference` or `triton`; see `choose_impl`.
    validate
        Whether to check the ranges of the indices, which on a GPU waits for it. Pass False after `check_pair_list`, or
        when capturing a CUDA graph; an index out of range then reads foreign memory.

    Returns
    -------
    Tensor
        [P, 3, H, W] in `how.dtype`, channels-last in memory; P is I · J for a `Grid`.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device, layout, index or implementation.

    Source: Wu et al., CVPR 2020, supplementary: the occluded picture is the picture plus the class's occluder, kept in
    the pixel range.
    """
    _check(pairs, how, validate)
    chosen, _ = choose_impl(impl, pairs.images.device)
    return _Occlude.apply(pairs.bank, pairs, how, chosen)


def _check(pairs: Pairs | Grid, how: Normalisation, validate: bool) -> None:
    images, bank, image_index, occluder_index = pairs
    check_same_device(**pairs._asdict())
    if len(how.scale) != 3 or len(how.shift) != 3:
        raise ValueError(f"scale and shift: expected 3 numbers each, got {len(how.scale)} and {len(how.shift)}")
    if how.dtype not in SHORT_NAMES:
        raise TypeError(f"dtype: expected float32, bfloat16 or float16, got {how.dtype}")
    check_tensor("images", images, torch.uint8, ("B", "H", "W", 3))
    check_tensor("bank", bank, torch.float32, ("K", *images.shape[1:]))
    check_tensor("image_index", image_index, torch.int64, ("P",))
    check_tensor(
        "occluder_index", occluder_index, torch.int64, ("J" if isinstance(pairs, Grid) else image_index.shape[0],)
    )
    check_contiguous(**pairs._asdict())
    if validate:
        check_pair_list(image_index, occluder_index, images.shape[0], bank.shape[0])  # len() would fix a traced size


# ---- for the table of compiled kernels


def variants() -> Iterator[Variant]:
    """Yield every form in which the launcher above starts these kernels."""
    lists = {"image_index": "*i64", "occluder_index": "*i64"}
    tile = {"TILE_PICTURES": _TILE_PICTURES, "TILE_OCCLUDERS": _TILE_OCCLUDERS}
    for (dtype, name), fits in itertools.product(SHORT_NAMES.items(), (True, False)):
        elements = "i32:16" if fits else "i32"
        tensors = {"images": "*u8", "bank": "*fp32", **lists, "out": f"*{name}"}
        numbers = dict.fromkeys(("s0", "s1", "s2", "h0", "h1", "h2"), "fp32")
        constants = {"BLOCK": _block(dtype)}
        title = f"{name}{'' if fits else ', any size'}"
        # An element takes 1 byte of a picture and 4 of an occluder.
        single = ELEMENTS_224 * (dtype.itemsize + 1 + 4)
        tiled = ELEMENTS_224 * (dtype.itemsize + 1 / _TILE_OCCLUDERS + 4 / _TILE_PICTURES)
        arguments = {**tensors, "pairs": "i32", "elements": elements, **numbers, **constants}
        yield Variant(_occlude_kernel, title, arguments, _WARPS, "pair", single, single, fusion=False)
        sizes = {"pictures": "i32", "occluders": "i32", "elements": elements}
        arguments = {**tensors, **sizes, **numbers, **constants, **tile}
        yield Variant(_occlude_grid_kernel, title, arguments, _WARPS, "pair", tiled, tiled, fusion=False)
