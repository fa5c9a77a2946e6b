"""DALI's own ways to fail: a pipeline that dies is built anew, and loses no picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gfo.engine.data import dali as dali_source
from gfo.engine.data.dali import DaliSource, plain_jpeg
from gfo.engine.data.files import PictureFiles
from gfo.export.preprocessing import Preprocessing

pytest.importorskip("nvidia.dali")
PREPROCESSING = Preprocessing(16, 18)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i:02}.jpg")
    return tmp_path


@pytest.fixture
def pipelines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every pipeline that is built."""
    built, build = list[Any](), dali_source.decoding_pipeline
    monkeypatch.setattr(dali_source, "decoding_pipeline", lambda *a: built.append(build(*a)) or built[-1])
    return built


def test_a_picture_that_kills_the_pipeline_is_set_aside_alone(
    pictures: Path, pipelines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "05.jpg").write_text("passes for a JPEG")
    check = plain_jpeg
    monkeypatch.setattr(
        dali_source, "plain_jpeg", lambda content: 1 if content.startswith(b"passes") else check(content)
    )
    paths = [f"{i:02}.jpg" for i in range(12)]
    source = DaliSource(PictureFiles(pictures), PREPROCESSING, 2, torch.device("cpu"))
    with pytest.warns(UserWarning, match="DALI failed on 4 pictures, Pillow reads them"):
        blocks = list(source.blocks(paths, 4))
    assert len(pipelines) == 2
    assert [list(block.quarantined) for block in blocks] == [[], [1], []]
    assert "cannot identify image file" in blocks[1].quarantined[1]
    images = torch.cat([block.images for block in blocks])
    for i in (*range(5), *range(6, 12)):
        np.testing.assert_array_equal(images[i], PREPROCESSING.load_uint8(pictures / paths[i]))


def test_plain_jpegs_go_through_dali(pictures: Path, pipelines: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali_source, "decode", None)
    source = DaliSource(PictureFiles(pictures), PREPROCESSING, 2, torch.device("cpu"))
    (block,) = source.blocks([f"{i:02}.jpg" for i in range(12)], 32)
    assert (len(pipelines), block.quarantined) == (1, {})


def test_large_pictures_are_decoded_a_few_at_a_time(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali_source, "_BATCH_PIXELS", 3 * 30 * 40)
    sizes, run = list[int](), DaliSource._run
    monkeypatch.setattr(DaliSource, "_run", lambda self, contents: sizes.append(len(contents)) or run(self, contents))
    source = DaliSource(PictureFiles(pictures), PREPROCESSING, 2, torch.device("cpu"))
    (block,) = source.blocks([f"{i:02}.jpg" for i in range(11)], 32)
    assert sizes == [3, 3, 3, 2]
    np.testing.assert_array_equal(block.images[10], PREPROCESSING.load_uint8(pictures / "10.jpg"))


def test_what_is_plain(pictures: Path) -> None:
    content = (pictures / "00.jpg").read_bytes()
    assert plain_jpeg(content) == plain_jpeg(content + bytes(9)) == 30 * 40
    assert plain_jpeg(content[:-2]) == plain_jpeg(content[:-700] + content[-2:-1]) == plain_jpeg(b"") == 0


def test_any_damage_is_judged_as_pillow_judges_it(pictures: Path) -> None:
    """Bytes of the compressed data are changed at random: the same pictures, and the same ones are set aside."""
    rng = np.random.default_rng(0)
    for i in range(12):
        content = bytearray((pictures / f"{i:02}.jpg").read_bytes())
        for place in rng.integers(content.index(b"\xff\xda") + 14, len(content) - 2, 25):
            content[place] ^= 1 << rng.integers(0, 8)
        (pictures / f"{i:02}.jpg").write_bytes(content)
    source = DaliSource(PictureFiles(pictures), PREPROCESSING, 2, torch.device("cpu"))
    (block,) = source.blocks([f"{i:02}.jpg" for i in range(12)], 32)
    for i in range(12):
        try:
            wanted = PREPROCESSING.load_uint8(pictures / f"{i:02}.jpg")
        except OSError:
            assert i in block.quarantined
        else:
            np.testing.assert_array_equal(block.images[i], wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_decoding_on_a_gpu(tmp_path: Path, interpolation: str) -> None:
    """Smooth pictures: GPU decoders round their transforms otherwise than libjpeg-turbo."""
    rng = np.random.default_rng(0)
    for i in range(40):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((500 - i, 375 + i), Image.Resampling.BICUBIC).save(tmp_path / f"{i:02}.jpg", quality=90)
    (tmp_path / "17.jpg").write_text("broken")
    preprocessing = Preprocessing(224, 256, interpolation)
    source = DaliSource(PictureFiles(tmp_path), preprocessing, 4, torch.device("cuda"))
    blocks = list(source.blocks([f"{i:02}.jpg" for i in range(40)], 16))
    assert [list(block.quarantined) for block in blocks] == [[], [1], []]
    assert all(block.images.is_cuda for block in blocks)
    images = torch.cat([block.images for block in blocks]).cpu().int()
    for i in (*range(17), *range(18, 40)):
        difference = (
            images[i] - torch.from_numpy(preprocessing.load_uint8(tmp_path / f"{i:02}.jpg").copy()).int()
        ).abs()
        assert difference.max() <= 4
        assert difference.double().mean() < 0.5


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_device_that_decodes_is_the_sources(kind: str, tmp_path: Path) -> None:
    assert DaliSource(PictureFiles(tmp_path), PREPROCESSING, 2, torch.device(kind)).decodes_on == kind
