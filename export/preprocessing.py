"""Preprocessing: resize, centre crop and normalisation. Training, engines and exports all use this definition."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError
from .records import STRICT

INTERPOLATIONS = ("bilinear", "bicubic")
_LARGEST = 1 << 14  # pixels: a picture of this side takes 0.8 GB as bytes
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Geometry(NamedTuple):
    """Size that a picture is resized to, and top left corner of the crop in it; all in pixels."""

    height: int
    width: int
    top: int
    left: int


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side to `resize`, centre-crop `input_size`², then (x / 255 − mean) / std.

    Attributes
    ----------
    input_size, resize
        Pixels, 1 ≤ input_size ≤ resize ≤ 16,384.
    interpolation
        One of `INTERPOLATIONS`.
    mean, std
        Per RGB channel, for values in 0 … 1; std > 0.

    Raises
    ------
    InputError
        A value out of range.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    input_size: int
    resize: int
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = _IMAGENET_MEAN
    std: tuple[float, float, float] = _IMAGENET_STD

    def __post_init__(self) -> None:
        if not 1 <= self.input_size <= self.resize <= _LARGEST:
            raise InputError(
                f"preprocessing: expected 1 ≤ input size ≤ resize ≤ {_LARGEST}, got input size {self.input_size} and "
                f"resize {self.resize}; set --input-size and --resize"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"preprocessing: interpolation {self.interpolation!r} is not supported; "
                f"use one of {', '.join(INTERPOLATIONS)}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std) or not self._finite():
            raise InputError(
                f"preprocessing: expected 3 finite means and 3 positive stds, got {self.mean} and {self.std}; "
                "set --mean and --std"
            )
        for name in ("mean", "std"):  # 0 and 0.0 are the same, and get the same hash
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))

    def _finite(self) -> bool:
        return all(math.isfinite(value) for value in (*self.mean, *self.std, *self.scale, *self.shift))

    @property
    def scale(self) -> tuple[float, ...]:
        """Per channel 1 / (255 · std), for `occlude`."""
        return tuple(1 / (255 * s) for s in self.std)

    @property
    def shift(self) -> tuple[float, ...]:
        """Per channel −mean / std, for `occlude`."""
        return tuple(-m / s for m, s in zip(self.mean, self.std, strict=True))

    @property
    def doubt(self) -> str | None:
        """A warning about a mean or std of another scale; None where there is nothing to say."""
        if all(0 <= m <= 1 for m in self.mean) and all(s <= 1 for s in self.std):
            return None
        return (
            f"--mean {self.mean}, --std {self.std}: outside of 0 to 1; they apply to pixels scaled to 0..1, not to "
            "0..255"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def resized(self, input_size: int) -> Preprocessing:
        """Return the same crop fraction at another input size: short side floor(new size · resize / old size)."""
        return dataclasses.replace(self, input_size=input_size, resize=input_size * self.resize // self.input_size)

    def geometry(self, width: int, height: int) -> Geometry:
        """Return what torchvision's Resize and CenterCrop do to a picture of `width` × `height` pixels.

        The long side is rounded down, the corner of the crop to the nearest integer, halves to the even one.

        Raises
        ------
        ValueError
            The resized picture has more pixels than Pillow's own limit (178,956,970): it is very long and thin.
        """
        long = int(self.resize * max(width, height) / min(width, height))
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        if limit and long * self.resize > limit:
            raise ValueError(
                f"{width} x {height} pixels would be {long} x {self.resize} when resized, over the limit of {limit}"
            )
        new_width, new_height = (self.resize, long) if width <= height else (long, self.resize)
        corner = (round((side - self.input_size) / 2.0) for side in (new_height, new_width))
        return Geometry(new_height, new_width, *corner)

    def apply(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Resize and crop a picture in memory to uint8 [S, S, 3]. Raises `ValueError` as `geometry` does."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        self.geometry(*picture.size)
        rgb: Any = picture if picture.mode == "RGB" else picture.convert("RGB")  # convert always copies
        resized = F.resize(rgb, [self.resize], InterpolationMode(self.interpolation))
        return np.asarray(F.center_crop(resized, [self.input_size]))

    def load_uint8(self, file: Path | str | BinaryIO) -> NDArray[np.uint8]:
        """Read one picture as the network sees it before occlusion and normalisation: uint8 [S, S, 3], RGB.

        Grey, palette, CMYK, 16-bit, alpha and EXIF orientation are handled exactly as by torchvision's own loader; the
        first frame of an animation is read.

        Raises
        ------
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError
            The file is missing, truncated, not a picture (Pillow raises these) or too large.
        """
        with contextlib.ExitStack() as stack:
            # Pillow leaves a file that it opened itself open when it fails.
            opened = stack.enter_context(Path(file).open("rb")) if isinstance(file, (str, Path)) else file
            return self.apply(Image.open(opened))
