"""Reading pictures: `open_source` gives the loader of a name, which may keep what it decodes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from ...export.errors import InputError
from ...export.preprocessing import Preprocessing
from .dali import DaliSource
from .decoded_cache import DecodedCache
from .files import PictureFiles
from .pillow import PillowSource
from .source import Block, Decoder, Pictures, PictureSource, shard_starts

__all__ = ["LOADERS", "Block", "Decoder", "PictureSource", "Pictures", "open_source", "shard_starts"]

LOADERS = ("auto", "dali", "pillow")


def open_source(
    loader: str,
    root: Path,
    preprocessing: Preprocessing,
    workers: int,
    *,
    device: torch.device | str = "cpu",
    decoded_cache: bool = False,
) -> PictureSource:
    """The loader of that name, for pictures that are used on `device`.

    Parameters
    ----------
    loader
        `dali`, `pillow`, or `auto`: DALI where it is installed and the pictures go to a GPU, else Pillow.
    decoded_cache
        Keep decoded pictures in the cache folder, and read them from there.

    Raises
    ------
    InputError
        A loader that there is not.
    EngineUnavailable
        `dali` without its package.
    """
    if loader not in LOADERS:
        raise InputError(f"--loader {loader}: expected one of {', '.join(LOADERS)}")
    device = torch.device(device)
    files = PictureFiles(root)
    if loader == "auto":
        loader = "dali" if device.type == "cuda" and _dali_is_installed() else "pillow"
    source: Decoder
    if loader == "dali":
        source = DaliSource(files, preprocessing, workers, device)
    else:
        source = PillowSource(files, preprocessing, workers)
    return DecodedCache(source, files, preprocessing) if decoded_cache else source


def _dali_is_installed() -> bool:
    """Without loading it, which takes half a second."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
