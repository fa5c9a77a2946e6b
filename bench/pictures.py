"""The pictures of a benchmark: a folder of one's own, or synthetic ones, and how they are opened."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..engine.data.loading import open_source
from ..engine.data.source import PictureSource
from ..engine.data.spec import DataSpec
from ..export.errors import InputError
from ..export.files import ScratchFolder
from ..export.preprocessing import Preprocessing
from .rows import DECODED_CACHE

SYNTHETIC = "synthetic"
_COUNT = 64

# Sides: tiny, odd, extreme, one pixel off the short side or the crop, larger than 4,000.
AWKWARD = ((1, 1), (2, 3), (17, 31), (5, 400), (400, 5), (1000, 10), (255, 256), (257, 256), (256, 257), (256, 256))
AWKWARD += ((223, 224), (225, 224), (224, 225), (333, 501), (4097, 301), (301, 4097), (4003, 4001))


def open_pictures(
    loader: str, folder: Path, preprocessing: Preprocessing, workers: int, device: torch.device | str = "cpu"
) -> PictureSource:
    """Open a folder of pictures without classes, for use on `device`.

    Parameters
    ----------
    loader
        `auto`, a name in `LOADERS`, or `decoded-cache`: Pillow, with what it decoded kept in the cache folder.

    Raises
    ------
    EngineUnavailable
        The loader's package is not installed.
    """
    cached = loader == DECODED_CACHE
    name = "pillow" if cached else loader
    data = DataSpec(folder, loader=name, decoded_cache=cached, workers=workers)
    return open_source(data, preprocessing, device)


def picture_paths(folder: Path) -> list[str]:
    """List every file below a folder, relative to it and sorted; hidden files do not count.

    Raises
    ------
    InputError
        There is none.
    """
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    paths = sorted(path.relative_to(folder).as_posix() for path in found)
    if not paths:
        raise InputError(f"--images {folder}: holds no pictures; give a folder of pictures, or {SYNTHETIC}")
    return paths


@contextlib.contextmanager
def picture_folder(images: str) -> Iterator[Path]:
    """Yield the folder that `--images` names, or one of synthetic pictures for the duration of a `with` block.

    Raises
    ------
    InputError
        There is no such folder.
    """
    if images == SYNTHETIC:
        with synthetic_pictures() as folder:
            yield folder
    elif Path(images).is_dir():
        yield Path(images)
    else:
        raise InputError(f"--images {images}: no such folder; give a folder of pictures, or {SYNTHETIC}")


@contextlib.contextmanager
def synthetic_pictures(count: int = _COUNT, seed: int = 0) -> Iterator[Path]:
    """Yield a folder of JPEGs of ImageNet's usual 500 x 375 pixels and about 110 kB each; remove it at the end."""
    with ScratchFolder() as folder:
        rng = np.random.default_rng(seed)
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
            noisy = np.asarray(coarse.resize((500, 375))) + rng.normal(0, 12, (375, 500, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(Path(folder) / f"{i:04}.jpg", quality=90)
        yield Path(folder)


@contextlib.contextmanager
def awkward_pictures(seed: int = 0) -> Iterator[Path]:
    """Yield a folder of JPEGs of awkward sizes, in the noise that is hardest for a resize; remove it at the end."""
    with ScratchFolder() as folder:
        rng = np.random.default_rng(seed)
        for width, height in AWKWARD:
            pixels = rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
            Image.fromarray(pixels).save(Path(folder) / f"{width}x{height}.jpg", quality=95, subsampling=0)
        yield Path(folder)
