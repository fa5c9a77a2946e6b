"""Every loader by name, for tests of what they all promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch

from gfo.engine.data.dali import DaliSource
from gfo.engine.data.decoded_cache import DecodedCache
from gfo.engine.data.files import PictureFiles
from gfo.engine.data.pillow import PillowSource
from gfo.engine.data.source import Decoder, PictureSource
from gfo.export.preprocessing import Preprocessing

Open: TypeAlias = Callable[..., PictureSource]
LOADERS = ("pillow", "dali", "cached pillow", "cached dali")


@pytest.fixture(params=LOADERS)
def open_loader(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """`open_loader(files or root, preprocessing, workers=2)`: a source; what is kept goes to a folder of the test."""
    if "dali" in request.param:
        pytest.importorskip("nvidia.dali")
    monkeypatch.setenv("GFO_CACHE", str(tmp_path / "kept"))

    def open_loader(where: PictureFiles | Path, preprocessing: Preprocessing, workers: int = 2) -> PictureSource:
        files = where if isinstance(where, PictureFiles) else PictureFiles(where)
        source: Decoder
        if "dali" in request.param:
            source = DaliSource(files, preprocessing, workers, torch.device("cpu"))
        else:
            source = PillowSource(files, preprocessing, workers, torch.device("cpu"))
        return DecodedCache(source, files, preprocessing) if "cached" in request.param else source

    return open_loader
