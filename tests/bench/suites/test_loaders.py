"""The suite of loaders: nothing whose pictures are not torchvision's has a speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gfo.bench import loading, pictures
from gfo.engine.data.source import PictureSource

MODEL = ("--model", "python:gfo_tiny:network", "--weights", "default", "--seconds", "0.2")


def test_loaders_are_checked_and_timed(
    run: Callable[..., Any], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "AWKWARD", ((3, 2), (40, 31)))
    words = ("loaders", *MODEL, "--images", tiny_data / "val", "--loader", "pillow,decoded-cache")
    ended = run(*words)
    assert ended.code == 0
    assert {(row["engine"], row["max_difference"]) for row in ended.rows} == {("pillow", 0), ("decoded-cache", 0)}
    assert all(row["p50"] > 0 for row in ended.rows)
    original = loading.difference
    monkeypatch.setattr(loading, "difference", lambda *a: loading.Difference(original(*a).largest + 2, 0.1, "cpu"))
    ended = run(*words)
    assert ended.code == 4
    assert all(row["p50"] is None and "2 grey levels" in row["reason"] for row in ended.rows)


def test_a_difference_is_found(tmp_path: Path) -> None:
    from gfo.engine.data.loading import open_source
    from gfo.engine.data.spec import DataSpec
    from gfo.export.preprocessing import Preprocessing

    Image.new("RGB", (9, 9), (10, 10, 10)).save(tmp_path / "a.png")
    source: PictureSource = open_source(DataSpec(tmp_path, loader="pillow", workers=1), Preprocessing(8, 8))
    grey = np.full((8, 8, 3), 10, np.uint8)
    assert loading.difference(source, ["a.png"], [grey]) == (0, 0.0, "cpu")
    assert loading.difference(source, ["a.png"], [grey + 3]) == (3, 3.0, "cpu")
    assert loading.difference(source, ["a.png"], [None]).largest == 255
