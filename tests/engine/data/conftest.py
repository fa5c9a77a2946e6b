"""Every loader by name, for tests of what they all promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch

from gfo.engine.data import LOADERS
from gfo.engine.data.decoded_cache import DecodedCache
from gfo.engine.data.files import PictureFiles
from gfo.engine.data.source import PictureSource
from gfo.export.preprocessing import Preprocessing

Open: TypeAlias = Callable[..., PictureSource]


@pytest.fixture(params=[f"{cached}{name}" for cached in ("", "cached ") for name in LOADERS.names])
def open_loader(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """`open_loader(files or root, preprocessing, workers=2)`: a source; what is kept goes to a folder of the test."""
    loader = LOADERS[request.param.removeprefix("cached ")]
    if not loader.installed():
        pytest.skip(f"needs {', '.join(loader.packages)}")
    monkeypatch.setenv("GFO_CACHE", str(tmp_path / "kept"))

    def open_loader(where: PictureFiles | Path, preprocessing: Preprocessing, workers: int = 2) -> PictureSource:
        files = where if isinstance(where, PictureFiles) else PictureFiles(where)
        source = loader(files, preprocessing, workers, torch.device("cpu"))
        return DecodedCache(source, files, preprocessing) if "cached" in request.param else source

    return open_loader
