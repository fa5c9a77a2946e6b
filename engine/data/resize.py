"""Pillow's antialiased resize and the centre crop as two matrix products, for pictures on a GPU.

DALI's own resize differs: it repeats the border where Pillow leaves it out of the mean (up to 19 grey levels at the
edge, for models whose crop is the whole picture), and it does not round and clip between its two passes (up to 31
levels for bicubic). `gfo-bench loaders` measures how far the pictures of each loader are from torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, reduce
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...export.preprocessing import Preprocessing

# Fractional bits of Pillow's fixed-point weights.
_BITS = 22
# Sides of pictures whose weights are kept. Bicubic ones of 224 outputs take 28 kB for a side of 500 pixels, and 0.2 MB
# for one of 4,000.
_KEPT = 256


def resize_and_crop(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize and crop as `Preprocessing.apply` does, to within one grey level: uint8 [H, W, 3] to [S, S, 3].

    Rows come first, then columns, rounded and clipped to 0 … 255 in between, as Pillow does for every picture up to
    twice as high as wide. Products are float64, which represents the integers that Pillow sums exactly.
    """
    height, width, channels = image.shape
    new_height, new_width, top, left = preprocessing.geometry(width, height)
    size, kind, device = preprocessing.input_size, preprocessing.interpolation, image.device
    across, down = _taps(width, new_width, left, size, kind, device), _taps(height, new_height, top, size, kind, device)
    source = image[down.first : down.first + down.used, across.first : across.first + across.used].double()
    rows = _rounded(torch.einsum("sw,hwc->hsc", across.matrix(), source)) if new_width != width else source
    columns = torch.matmul(down.matrix(), rows.reshape(len(rows), size * channels)) if new_height != height else rows
    return _rounded(columns.reshape(size, size, channels)).to(torch.uint8)


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor_().clamp_(0, 255)


class _Taps(NamedTuple):
    """The pixels that each output pixel is made of, on a device."""

    first: int
    """The first pixel that any of them uses."""
    used: int
    """Pixels from there on."""
    places: Tensor
    """int64 [size, taps]: pixels, counted from `first`; `used` where an output has fewer."""
    weights: Tensor
    """float64 [size, taps], 0 there."""

    def matrix(self) -> Tensor:
        """Return the weights as float64 [size, used], which is too large to keep for many pictures."""
        full = self.weights.new_zeros(len(self.weights), self.used + 1)
        return full.scatter_(1, self.places, self.weights)[:, : self.used]


@lru_cache(maxsize=_KEPT)
def _taps(old: int, new: int, start: int, size: int, interpolation: str, device: torch.device) -> _Taps:
    """Return the taps of outputs `start` … `start` + size − 1 of a side that is resized from `old` to `new`."""
    places, weights = pillow_weights(old, new, start, size, interpolation)
    some = weights != 0
    first, used = int(places[some].min()), int(np.ptp(places[some])) + 1
    inside = np.where(some, places - first, used)
    return _Taps(first, used, torch.from_numpy(inside).to(device), torch.from_numpy(weights).to(device))


def pillow_weights(
    old: int, new: int, start: int, size: int, interpolation: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the input pixels of output pixels `start` … `start` + size − 1, int64 [size, taps], and their weights.

    The side is resized from `old` to `new` pixels. An output with fewer taps than another has weights of 0. Source:
    `precompute_coeffs` in Pillow's libImaging/Resample.c, where filters are stretched by the reduction, cut at the
    border and normalised to 1.
    """
    filter_, support = _FILTERS[interpolation]
    scale = old / new
    stretch = max(scale, 1.0)
    centre = (start + np.arange(size) + 0.5) * scale
    low = np.maximum((centre - support * stretch + 0.5).astype(np.int64), 0)
    high = np.minimum((centre + support * stretch + 0.5).astype(np.int64), old)
    places = low[:, None] + np.arange((high - low).max())
    taps = np.where(places < high[:, None], filter_((places - centre[:, None] + 0.5) * (1 / stretch)), 0.0)
    total = reduce(np.add, taps.T)  # one after the other, as Pillow does; numpy's own sum rounds differently
    return places, np.floor(taps / total[:, None] * 2**_BITS + 0.5) / 2**_BITS


Filter = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: NDArray[np.float64], a: float = -0.5) -> NDArray[np.float64]:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_FILTERS: dict[str, tuple[Filter, float]] = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}
