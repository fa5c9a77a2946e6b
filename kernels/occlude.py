"""`occlude`: pictures + occluders → the network's normalised input, and the gradient of the bank.

    out[p] = clamp(images[image_index[p]] + d, 0, 255) · scale + shift,   d = bank[occluder_index[p] − 1], 0 for index 0

The formula has this one definition; training, the torch engine and every export use it. `occlude` takes any pair list;
`occlude_grid` every given picture under every given occluder, and loads a tile of both once for all their pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import check_contiguous, check_index, check_same_device, check_tensor
from ._operation import operation
from ._pixels import ELEMENTS_224, LAYOUTS, occluded_piece, of_channel, pieces, rows_of_three
from ._triton import SHORT_NAMES, Variant, jit, tl
from .impl import choose_impl
from .occlude_backward import occlude_backward

# A warp of the kernels has 32 threads, and a thread writes 16 bytes at a time, the widest store: 8 halves or 4 floats.
_WARPS, _STORE_BYTES = 4, 16
# Pictures and occluders that a program of the grid kernel loads once for all their pairs.
_TILE_PICTURES, _TILE_OCCLUDERS = 4, 8

# ---- reference


def _reference(
    images: Tensor,
    bank: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    scale: Sequence[float],
    shift: Sequence[float],
    out: Tensor,
) -> None:
    scales, shifts = rows_of_three(scale, images), rows_of_three(shift, images)
    out[..., 3:] = 0
    for piece in pieces(len(image_index), images):
        occluded = occluded_piece(images, bank, image_index[piece], occluder_index[piece])
        out[piece, ..., :3] = occluded.clamp_(0, 255).mul_(scales).add_(shifts).unflatten(2, (-1, 3))


# ---- forward kernels


@jit
def _source(place: tl.tensor, elements: tl.tensor, CHANNELS: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """For places in an output [H·W·CHANNELS]: element of the picture [H·W·3], channel, and whether there is one."""
    channel = place % CHANNELS
    if CHANNELS == 3:  # written out, or the compiler would not see that neighbours share their mask
        element, there = place, place < elements
    else:
        element = place // CHANNELS * 3 + channel
        there = (channel < 3) & (element < elements)
    return element, channel, there


@jit
def _finish(
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
    scaled = clamped * of_channel(channel, s0, s1, s2) + of_channel(channel, h0, h1, h2)
    return tl.where(channel < 3, scaled, 0.0)


@jit
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
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One block of one pair. Pairs run fastest, so that what they share is still in the L2 cache."""
    pair = (tl.program_id(0) % pairs).to(tl.int64)
    place = tl.program_id(0) // pairs * BLOCK + tl.arange(0, BLOCK)
    size = elements if CHANNELS == 3 else elements // 3 * CHANNELS
    element, channel, there = _source(place, elements, CHANNELS)
    picture, row = tl.load(image_index + pair), tl.load(occluder_index + pair) - 1
    x = tl.load(images + picture * elements + element, mask=there, other=0).to(tl.float32)
    d = tl.load(bank + row * elements + element, mask=there & (row >= 0), other=0.0)
    y = _finish(x + d, channel, s0, s1, s2, h0, h1, h2)
    tl.store(out + pair * size + place, y.to(out.dtype.element_ty), mask=place < size)


@jit
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
    CHANNELS: tl.constexpr,
    TILE_PICTURES: tl.constexpr,
    TILE_OCCLUDERS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One block of a tile: its pictures stay in registers while its occluders come by, each loaded once."""
    across = tl.cdiv(occluders, TILE_OCCLUDERS)
    tiles = tl.cdiv(pictures, TILE_PICTURES) * across
    tile = tl.program_id(0) % tiles
    place = tl.program_id(0) // tiles * BLOCK + tl.arange(0, BLOCK)
    size = elements if CHANNELS == 3 else elements // 3 * CHANNELS
    element, channel, there = _source(place, elements, CHANNELS)
    top = tile // across * TILE_PICTURES
    tile_pictures = ()  # a block each, not one block of them all: what a thread loads it then also writes
    for i in tl.static_range(TILE_PICTURES):
        picture = tl.load(image_index + top + i, mask=top + i < pictures, other=0)
        x = tl.load(images + picture * elements + element, mask=there & (top + i < pictures), other=0)
        tile_pictures += (x.to(tl.float32),)
    left = tile % across * TILE_OCCLUDERS
    for j in range(left, tl.minimum(left + TILE_OCCLUDERS, occluders)):
        row = tl.load(occluder_index + j) - 1
        d = tl.load(bank + row * elements + element, mask=there & (row >= 0), other=0.0)
        for i in tl.static_range(TILE_PICTURES):
            y = _finish(tile_pictures[i] + d, channel, s0, s1, s2, h0, h1, h2)
            pair = (top + i).to(tl.int64) * occluders + j
            mask = (place < size) & (top + i < pictures)
            tl.store(out + pair * size + place, y.to(out.dtype.element_ty), mask=mask)


# ---- launchers


def _block(dtype: torch.dtype) -> int:
    return _WARPS * 32 * _STORE_BYTES // dtype.itemsize


def _launch(
    images: Tensor,
    bank: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    numbers: Sequence[float],
    out: Tensor,
    grid: bool,
) -> None:
    elements, (height, width, channels) = math.prod(images.shape[1:]), out.shape[1:]
    block, lists = _block(out.dtype), (image_index, occluder_index)
    blocks = -(-height * width * channels // block)
    # Without fused multiply-adds the result has the reference's bits, and it is memory that sets the pace.
    how = {"CHANNELS": channels, "BLOCK": block, "num_warps": _WARPS, "enable_fp_fusion": False}
    if grid:
        tiles = -(-len(image_index) // _TILE_PICTURES) * -(-len(occluder_index) // _TILE_OCCLUDERS)
        how |= {"TILE_PICTURES": _TILE_PICTURES, "TILE_OCCLUDERS": _TILE_OCCLUDERS}
        sizes = (len(image_index), len(occluder_index), elements)
        _occlude_grid_kernel[(tiles * blocks,)](images, bank, *lists, out, *sizes, *numbers, **how)
    else:
        _occlude_kernel[(len(out) * blocks,)](images, bank, *lists, out, len(out), elements, *numbers, **how)


# ---- registration


def _check(
    images: Tensor, bank: Tensor, image_index: Tensor, occluder_index: Tensor, grid: bool, validate: bool
) -> None:
    check_tensor("images", images, torch.uint8, ("B", "H", "W", 3))
    check_tensor("bank", bank, torch.float32, ("K", *images.shape[1:]))
    check_tensor("image_index", image_index, torch.int64, ("P",))
    check_tensor("occluder_index", occluder_index, torch.int64, ("J" if grid else image_index.shape[0],))
    check_contiguous(images=images, bank=bank, image_index=image_index, occluder_index=occluder_index)
    if validate:
        check_pair_list(image_index, occluder_index, images.shape[0], bank.shape[0])


@operation("occlude")
def _occlude(
    images: Tensor,
    bank: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    scale: Sequence[float],
    shift: Sequence[float],
    dtype: torch.dtype,
    channels: int,
    grid: bool,
    impl: str,
    validate: bool,
) -> Tensor:
    _check(images, bank, image_index, occluder_index, grid, validate)
    chosen, _ = choose_impl(impl, images.device)
    pairs = len(image_index) * len(occluder_index) if grid else len(image_index)
    out = torch.empty(pairs, *images.shape[1:3], channels, dtype=dtype, device=images.device)
    if chosen == "reference":
        _reference(images, bank, *_pair_list(image_index, occluder_index, grid), scale, shift, out)
    elif out.numel() > 0:
        _launch(images, bank, image_index, occluder_index, [*scale, *shift], out, grid)
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
    channels: int,
    grid: bool,
    impl: str,
    validate: bool,
) -> Tensor:
    pairs = image_index.shape[0] * occluder_index.shape[0] if grid else image_index.shape[0]
    return images.new_empty(pairs, *images.shape[1:3], channels, dtype=dtype).permute(0, 3, 1, 2)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, bank, image_index, occluder_index, scale, _, _, _, grid, impl, _ = inputs
    ctx.save_for_backward(images, bank, *_pair_list(image_index, occluder_index, grid))
    ctx.scale, ctx.impl = scale, impl


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    bank_grad = occlude_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.impl)
    return None, bank_grad, *[None] * 9


_occlude.register_autograd(_backward, _setup_context)


# ---- public


def _pair_list(image_index: Tensor, occluder_index: Tensor, grid: bool) -> tuple[Tensor, Tensor]:
    if not grid:
        return image_index, occluder_index
    return image_index.repeat_interleave(len(occluder_index)), occluder_index.repeat(len(image_index))


def check_pair_list(image_index: Tensor, occluder_index: Tensor, pictures: int, occluders: int) -> None:
    """What `validate` checks, for callers that still have their lists on the CPU; raises `ValueError`."""
    check_index("image_index", image_index, pictures)
    check_index("occluder_index", occluder_index, occluders + 1)


def as_grid(image_index: Tensor, occluder_index: Tensor) -> tuple[Tensor, Tensor] | None:
    """A pair list as the pictures and occluders of a grid, in the order of `occlude_grid`; None if it is none.

    int64 [P] twice, on the CPU: elsewhere the answer would have to be waited for.
    """
    pairs = len(image_index)
    if pairs == 0:
        return None
    across = int((image_index == image_index[0]).long().cumprod(0).sum())
    if pairs % across:
        return None
    pictures, occluders = image_index[::across].contiguous(), occluder_index[:across]
    listed = _pair_list(pictures, occluders, grid=True)
    same = torch.equal(listed[0], image_index) and torch.equal(listed[1], occluder_index)
    return (pictures, occluders) if same else None


def occlude(
    images: Tensor,
    bank: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    *,
    scale: Sequence[float],
    shift: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels: int = 3,
    impl: str = "auto",
    validate: bool = True,
) -> Tensor:
    """Put occluders on pictures as a pair list says and normalise the result for the network.

    Parameters
    ----------
    images
        uint8 [B, H, W, 3], pixel values.
    bank
        float32 [K, H, W, 3], pixel units. Differentiable: its gradient is summed over the pairs of each occluder,
        zero for an occluder without a pair, and the same bits every time.
    image_index
        int64 [P], which picture, in 0 … B − 1.
    occluder_index
        int64 [P], which occluder, in 0 … K; 0 is clean, j is bank row j − 1.
    scale, shift
        Three floats each: 1 / (255 · std) and −mean / std for a network that wants (x / 255 − mean) / std.
    dtype
        float32, bfloat16 or float16, of the result. The arithmetic is float32.
    channels
        Of the result: 3, or 8 with zeros in the last five.
    impl
        `auto`, `reference` or `triton`; see `choose_impl`.
    validate
        Whether the indices are checked. On a GPU the check waits for it, so a caller that has checked its pair lists on
        the CPU, or captures a CUDA graph, turns it off; wrong indices then read foreign memory.

    Returns
    -------
    Tensor
        [P, channels, H, W] in `dtype`, channels-last in memory.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device, layout, index or implementation, with what was expected.

    Source: Wu et al., CVPR 2020, supplementary: the occluded picture is the picture plus the class's occluder, kept in
    the pixel range.
    """
    tensors = (images, bank, image_index, occluder_index)
    return _put(*tensors, scale, shift, dtype, channels, False, impl, validate)


def occlude_grid(
    images: Tensor,
    bank: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    *,
    scale: Sequence[float],
    shift: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels: int = 3,
    impl: str = "auto",
    validate: bool = True,
) -> Tensor:
    """`occlude` for a Cartesian block: each of I pictures under each of J occluders.

    Parameters
    ----------
    image_index, occluder_index
        int64 [I] and int64 [J]. Pair i · J + j is picture image_index[i] under occluder_index[j].

    Returns
    -------
    Tensor
        [I · J, channels, H, W] in `dtype`, channels-last in memory.

    Everything else is as in `occlude`.
    """
    tensors = (images, bank, image_index, occluder_index)
    return _put(*tensors, scale, shift, dtype, channels, True, impl, validate)


def _put(
    images: Tensor,
    bank: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    scale: Sequence[float],
    shift: Sequence[float],
    dtype: torch.dtype,
    channels: int,
    grid: bool,
    impl: str,
    validate: bool,
) -> Tensor:
    # What decides how PyTorch dispatches the operation is checked before it does.
    check_same_device(images=images, bank=bank, image_index=image_index, occluder_index=occluder_index)
    if len(scale) != 3 or len(shift) != 3:
        raise ValueError(f"scale and shift: expected 3 numbers each, got {len(scale)} and {len(shift)}")
    if dtype not in SHORT_NAMES:
        raise TypeError(f"dtype: expected float32, bfloat16 or float16, got {dtype}")
    if channels not in LAYOUTS:
        raise ValueError(f"channels: expected one of {', '.join(map(str, LAYOUTS))}, got {channels}")
    numbers = (list(scale), list(shift))
    return _occlude(images, bank, image_index, occluder_index, *numbers, dtype, channels, grid, impl, validate)


# ---- for the table of compiled kernels


def variants() -> Iterator[Variant]:
    """Every form in which the launchers above start these kernels."""
    lists = {"image_index": "*i64", "occluder_index": "*i64"}
    tile = {"TILE_PICTURES": _TILE_PICTURES, "TILE_OCCLUDERS": _TILE_OCCLUDERS}
    for (dtype, name), channels, fits in itertools.product(SHORT_NAMES.items(), LAYOUTS, (True, False)):
        elements = "i32:16" if fits else "i32"
        tensors = {"images": "*u8", "bank": "*fp32", **lists, "out": f"*{name}"}
        numbers = dict.fromkeys(("s0", "s1", "s2", "h0", "h1", "h2"), "fp32")
        constants = {"CHANNELS": channels, "BLOCK": _block(dtype)}
        title = f"{name}, {channels} channels{'' if fits else ', any size'}"
        # An element of a picture has 1 byte, of an occluder 4.
        written = ELEMENTS_224 // 3 * channels * dtype.itemsize
        single = written + ELEMENTS_224 * (1 + 4)
        tiled = written + ELEMENTS_224 * (1 / _TILE_OCCLUDERS + 4 / _TILE_PICTURES)
        arguments = {**tensors, "pairs": "i32", "elements": elements, **numbers, **constants}
        yield Variant(_occlude_kernel, title, arguments, _WARPS, "pair", single, single, fusion=False)
        sizes = {"pictures": "i32", "occluders": "i32", "elements": elements}
        arguments = {**tensors, **sizes, **numbers, **constants, **tile}
        yield Variant(_occlude_grid_kernel, title, arguments, _WARPS, "pair", tiled, tiled, fusion=False)
