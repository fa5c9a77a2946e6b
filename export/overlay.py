"""Occluders on tensors of pictures as networks and libraries outside this project take them: NCHW, bytes or 0 … 1."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.occlude import Normalisation, occlude
from ..kernels.pairs import Pairs
from .errors import InputError

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_AS_PIXELS = Normalisation((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
_SLACK = 1e-3  # a quarter of a grey level: values that were normalised and taken back are not exactly in 0 … 1
_LISTED = 10  # classes that a message lists


def overlaid(images: Tensor, occluders: Tensor) -> Tensor:
    """Add occluders to pictures and clamp to the pixel range; see `OccluderBank.apply`.

    Parameters
    ----------
    images
        [B, 3, S, S] or [3, S, S], as `check_images` takes them.
    occluders
        float32 [1, S, S, 3] or [B, S, S, 3] in pixel units.
    """
    if images.dim() == 3:
        return overlaid(images[None], occluders)[0]
    occluders = occluders.to(images.device)
    return _on_bytes(images, occluders) if images.dtype == torch.uint8 else _on_floats(images, occluders)


def _on_bytes(images: Tensor, occluders: Tensor) -> Tensor:
    index = torch.arange(len(images), device=images.device)
    row = 1 + index % len(occluders)
    pairs = Pairs(images.permute(0, 2, 3, 1).contiguous(), occluders.contiguous(), index, row)
    # The kernels would launch on PyTorch's current GPU, wherever the pictures are.
    occluded = occlude(pairs, _AS_PIXELS, impl="reference")
    return torch.empty_like(images).copy_(occluded.round())


def _on_floats(images: Tensor, occluders: Tensor) -> Tensor:
    kind = torch.promote_types(images.dtype, torch.float32)  # a bfloat16 of 0 … 1 does not tell grey levels apart
    occluded = images.to(kind) + occluders.permute(0, 3, 1, 2).to(kind) / 255
    inside = (occluded >= 0) & (occluded <= 1)  # a clamp's gradient is 0 at the bounds, see `occlude_backward`
    return torch.where(inside, occluded, occluded.detach().clamp(0, 1)).to(images.dtype)


def check_images(images: Any, size: int) -> None:
    """Raise `InputError` unless these are pictures of a bank of that input size, as bytes or in 0 … 1."""
    if not isinstance(images, Tensor):
        raise InputError(f"images: expected a tensor, got {type(images).__name__}; convert it first (pil_to_tensor)")
    if images.dtype != torch.uint8 and images.dtype not in _FLOATS:
        raise InputError(f"images: expected uint8, or floats in 0..1, got {_name(images.dtype)}; convert them first")
    if images.dim() not in (3, 4) or tuple(images.shape[-3:]) != (3, size, size):
        raise InputError(
            f"images: expected [B, 3, {size}, {size}] or [3, {size}, {size}] for this bank, got {list(images.shape)}; "
            "resize and crop them, channels first"
        )
    if images.dtype == torch.uint8 or images.numel() == 0:
        return
    low, high = (float(bound) for bound in torch.aminmax(images.detach()))
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # so that NaN is refused
        raise InputError(
            f"images: floats are expected in 0..1, got {low:g} to {high:g}; apply occluders before the normalisation, "
            "divide pixels of 0..255 by 255, clamp what an interpolation leaves outside"
        )


def rows_of(class_id: Any, class_ids: Sequence[int], images: Tensor) -> list[int]:
    """Return the bank's row for all pictures, or one for each.

    Parameters
    ----------
    class_id
        An integer, or an int64 tensor [B] or [].
    class_ids
        The class of each row.

    Raises
    ------
    InputError
        Something else, a class without a row, or not as many classes as pictures.
    """
    rows = {known: row for row, known in enumerate(class_ids)}
    wanted = _as_list(class_id, images)
    unknown = next((each for each in wanted if each not in rows), None)
    if unknown is not None:
        listed = ", ".join(map(str, class_ids[:_LISTED])) + (", …" if len(class_ids) > _LISTED else "")
        raise InputError(f"class_id {unknown}: the bank has no occluder of this class; it has those of {listed}")
    return [rows[each] for each in wanted]


def _as_list(class_id: Any, images: Tensor) -> list[int]:
    pictures = f"{len(images)} pictures" if images.dim() == 4 else "a single picture"
    expected = f"class_id: expected an integer, or an int64 tensor with one class for each of {pictures}"
    if not isinstance(class_id, Tensor):
        try:
            return [operator.index(class_id)]
        except TypeError as error:
            raise InputError(f"{expected}, got {type(class_id).__name__}") from error
    fits = class_id.dim() == 0 or (images.dim() == 4 and class_id.shape == images.shape[:1])
    if class_id.dtype != torch.int64 or not fits:
        raise InputError(f"{expected}, got {_name(class_id.dtype)} {list(class_id.shape)}")
    return class_id.reshape(-1).tolist()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
