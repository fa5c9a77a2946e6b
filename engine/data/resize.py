"""Pillow's antialiased resize and the centre crop as two matrix products, for pictures on a GPU.

DALI's own resize differs: it repeats the border where Pillow leaves it out of the mean (up to 19 grey levels at the
edge, for models whose crop is the whole picture), and it does not round and clip between its two passes (up to 31
levels for bicubic). `gfo-bench loaders` measures how far the pictures of each loader are from torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...export.preprocessing import Preprocessing

# Fractional bits of Pillow's fixed-point weights.
_BITS = 22


def resize_and_crop(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize and crop as `Preprocessing.apply` does, to within one grey level: uint8 [H, W, 3] to [S, S, 3].

    Rows come first, then columns, rounded and clipped to 0 … 255 in between, as Pillow does for every picture up to
    twice as high as wide. Products are float64, which represents the integers that Pillow sums exactly.
    """
    height, width, channels = image.shape
    new_height, new_width, top, left = preprocessing.geometry(width, height)
    size, kind, device = preprocessing.input_size, preprocessing.interpolation, image.device
    across, first_column = _matrix(width, new_width, left, size, kind, device)
    down, first_row = _matrix(height, new_height, top, size, kind, device)
    source = image[first_row : first_row + down.shape[1], first_column : first_column + across.shape[1]].double()
    rows = _rounded(torch.einsum("sw,hwc->hsc", across, source)) if new_width != width else source
    columns = torch.matmul(down, rows.reshape(len(rows), size * channels)) if new_height != height else rows
    return _rounded(columns.reshape(size, size, channels)).to(torch.uint8)


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor_().clamp_(0, 255)


# An entry holds size × used float64 on the device: 0.9 MB for an output of 224 from 500 pixels, 256 of them 0.2 GB.
@lru_cache(maxsize=256)
def _matrix(old: int, new: int, start: int, size: int, interpolation: str, device: torch.device) -> tuple[Tensor, int]:
    """Return weights of outputs `start` … `start` + size − 1, float64 [size, used], and the first input used."""
    weights = pillow_weights(old, new, start, size, interpolation)
    used = np.flatnonzero(weights.any(axis=0))
    first, last = int(used[0]), int(used[-1])
    return torch.from_numpy(weights[:, first : last + 1]).to(device), first


def pillow_weights(old: int, new: int, start: int, size: int, interpolation: str) -> NDArray[np.float64]:
    """Return the weight of every input pixel in output pixels `start` … `start` + size − 1, float64 [size, old].

    The side is resized from `old` to `new` pixels. Source: `precompute_coeffs` in Pillow's libImaging/Resample.c, where
    filters are stretched by the reduction, cut at the border and normalised to 1.
    """
    filter_, support = _FILTERS[interpolation]
    scale = old / new
    stretch = max(scale, 1.0)
    weights = np.zeros((size, old))
    for row in range(size):
        centre = (start + row + 0.5) * scale
        low = max(int(centre - support * stretch + 0.5), 0)
        high = min(int(centre + support * stretch + 0.5), old)
        taps = np.array([filter_((place - centre + 0.5) / stretch) for place in range(low, high)])
        weights[row, low:high] = np.floor(taps / taps.sum() * 2**_BITS + 0.5) / 2**_BITS
    return weights


def _triangle(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _cubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


_FILTERS: dict[str, tuple[Callable[[float], float], float]] = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}
