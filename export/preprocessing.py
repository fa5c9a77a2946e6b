"""What a model wants done to a picture before it looks: resize, centre crop, normalise. One definition for everyone."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError

INTERPOLATIONS = ("bilinear", "bicubic")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Geometry(NamedTuple):
    """The size that a picture is resized to, and the corner of the crop in it; all in pixels."""

    height: int
    width: int
    top: int
    left: int


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side to `resize`, centre-crop `input_size`², then (x / 255 − mean) / std.

    `input_size` and `resize` are in pixels, `mean` and `std` per RGB channel for values in 0 … 1.
    """

    input_size: int
    resize: int
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = _IMAGENET_MEAN
    std: tuple[float, float, float] = _IMAGENET_STD

    def __post_init__(self) -> None:
        if not 1 <= self.input_size <= self.resize:
            raise InputError(
                f"preprocessing: expected 1 ≤ input size ≤ resize, got input size {self.input_size} and resize "
                f"{self.resize}; set --input-size and --resize"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"preprocessing: interpolation {self.interpolation!r} is not supported; "
                f"use one of {', '.join(INTERPOLATIONS)}"
            )
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or not all(s > 0 for s in self.std):
            raise InputError(
                f"preprocessing: expected 3 finite means and 3 positive stds, got {self.mean} and {self.std}; "
                "set --mean and --std"
            )

    @property
    def scale(self) -> tuple[float, ...]:
        """Per channel 1 / (255 · std), for `occlude`."""
        return tuple(1 / (255 * s) for s in self.std)

    @property
    def shift(self) -> tuple[float, ...]:
        """Per channel −mean / std, for `occlude`."""
        return tuple(-m / s for m, s in zip(self.mean, self.std, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Inverse of `to_dict`.

        Raises
        ------
        InputError
            A missing or unknown key, or a value out of range.
        """
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            return cls(**values)
        except TypeError as error:
            raise InputError(f"preprocessing: {error}") from error

    def resized(self, input_size: int) -> Preprocessing:
        """The same crop fraction at another input size: short side to floor(new size · resize / old size)."""
        return dataclasses.replace(self, input_size=input_size, resize=input_size * self.resize // self.input_size)

    def geometry(self, width: int, height: int) -> Geometry:
        """What torchvision's Resize and CenterCrop do to a picture of `width` × `height`: its new size, and the crop.

        The long side is rounded down, and the crop's corner to the even neighbour of a half.

        Raises
        ------
        ValueError
            More pixels than Pillow's own limit (178,956,970) once it is resized: a very long and thin picture.
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
        """Resize and crop a picture in memory: uint8 [S, S, 3]. Raises `ValueError` as `geometry`."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        self.geometry(*picture.size)
        rgb: Any = picture if picture.mode == "RGB" else picture.convert("RGB")  # which copies always
        resized = F.resize(rgb, [self.resize], InterpolationMode(self.interpolation))
        return np.asarray(F.center_crop(resized, [self.input_size]))

    def load_uint8(self, file: Path | str | BinaryIO) -> NDArray[np.uint8]:
        """Read one picture as the network sees it before occlusion and normalisation: uint8 [S, S, 3], RGB.

        Grey, palette, CMYK, 16-bit, alpha and EXIF orientation are handled exactly as torchvision's own loader does; of
        an animation it is the first frame.

        Raises
        ------
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError
            The file is missing, truncated, no picture (what Pillow raises) or too large.
        """
        with contextlib.ExitStack() as stack:
            # Pillow given a path leaves the file open where it fails.
            opened = stack.enter_context(Path(file).open("rb")) if isinstance(file, (str, Path)) else file
            return self.apply(Image.open(opened))


def preprocessing_from_torchvision(model_name: str, weights_name: str | None) -> Preprocessing:
    """The transform that torchvision ships with the weights (with the model's default weights if no name is given)."""
    from torchvision.models import get_model_weights

    members = get_model_weights(model_name)
    weights = members[weights_name] if weights_name else members["DEFAULT"]
    transforms = weights.transforms()
    return Preprocessing(
        input_size=transforms.crop_size[0],
        resize=transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def preprocessing_from_timm(
    pretrained_cfg: Mapping[str, Any], model: str, input_size: int | None = None
) -> Preprocessing:
    """The evaluation transform of timm's own metadata: short side to floor(S / crop_pct), centre crop S.

    S is `input_size`, or the model's own.

    Raises
    ------
    InputError
        A crop mode or a non-square input that this preprocessing does not cover.
    """
    channels, height, width = pretrained_cfg["input_size"]
    crop_mode = pretrained_cfg.get("crop_mode") or "center"
    if channels != 3 or height != width or crop_mode != "center":
        raise InputError(
            f"{model}: needs input {pretrained_cfg['input_size']} with crop mode {crop_mode!r}; only square RGB input "
            "with a centre crop is supported, choose another model"
        )
    size = height if input_size is None else input_size
    return Preprocessing(
        input_size=size,
        resize=math.floor(size / pretrained_cfg["crop_pct"]),
        interpolation=pretrained_cfg["interpolation"],
        mean=tuple(pretrained_cfg["mean"]),
        std=tuple(pretrained_cfg["std"]),
    )
