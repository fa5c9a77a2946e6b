"""Opening the loader that a `DataSpec` names."""

from __future__ import annotations

import torch

from ...export.errors import EngineUnavailable
from ...export.preprocessing import Preprocessing
from ..machine import worker_count
from . import LOADERS
from .decoded_cache import DecodedCache
from .source import Decoder, PictureSource
from .spec import DataSpec


def open_source(data: DataSpec, preprocessing: Preprocessing, device: torch.device | str = "cpu") -> PictureSource:
    """Return the source that reads pictures of `data` for use on `device`.

    A loader of `auto` is the best-ranked one for that kind of device that is installed: DALI where the pictures go to
    a GPU, Pillow otherwise.

    Raises
    ------
    InputError
        An unknown loader.
    EngineUnavailable
        The loader's package is not installed.
    """
    device = torch.device(device)
    found = _best(device) if data.loader == "auto" else LOADERS[data.loader]
    source = found(data.files, preprocessing, data.workers or worker_count(), device)
    return DecodedCache(source, data.files, preprocessing) if data.decoded_cache else source


def _best(device: torch.device) -> type[Decoder]:
    ranked = [loader for loader in LOADERS.classes() if device.type in loader.rank and loader.installed()]
    if not ranked:
        raise EngineUnavailable(f"--loader auto: no loader reads pictures for {device}")
    return min(ranked, key=lambda loader: loader.rank[device.type])
