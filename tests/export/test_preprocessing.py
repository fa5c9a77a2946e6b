"""Preprocessing against the libraries' own evaluation transforms, on pictures of every kind that Pillow opens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision.datasets.folder import pil_loader
from torchvision.models import ResNet50_Weights

from gfo.export.errors import InputError
from gfo.export.models.timm import preprocessing_from_timm
from gfo.export.models.torchvision import preprocessing_from_torchvision
from gfo.export.preprocessing import Preprocessing
from gfo.export.records import read_record
from gfo.kernels.occlude import Normalisation, occlude
from gfo.kernels.pairs import Pairs

LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    return timm.create_model(LITE0)


def timm_transform(network: nn.Module, size: int, **options: Any) -> Any:
    config = resolve_model_data_config(network, args={"input_size": (3, size, size)})
    return create_transform(**config, is_training=False, **options)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes and noise, so that interpolation and its rounding matter."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse, dtype=int) + rng.integers(-40, 40, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


SIZES = st.tuples(st.integers(3, 420), st.integers(3, 420)).filter(lambda wh: max(wh) < 6 * min(wh))
ONE_FILE = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ONE_FILE
@given(size=SIZES)
def test_equals_torchvision_resnet50(size: tuple[int, int], tmp_path: Path) -> None:
    preprocessing = preprocessing_from_torchvision("resnet50", "IMAGENET1K_V1")
    path = tmp_path / "x.png"
    picture(*size).save(path)
    weights = ResNet50_Weights.IMAGENET1K_V1
    before_mean = weights.transforms(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))(pil_loader(str(path)))
    pixels = preprocessing.load_uint8(path)
    assert pixels.shape == (224, 224, 3)
    np.testing.assert_array_equal(pixels, (before_mean * 255).round().byte().permute(1, 2, 0))
    torch.testing.assert_close(clean_input(pixels, preprocessing), weights.transforms()(pil_loader(str(path))))


@ONE_FILE
@given(size=SIZES)
def test_equals_timm_lite0_at_160(size: tuple[int, int], tmp_path: Path, lite0: nn.Module) -> None:
    preprocessing = preprocessing_from_timm(lite0.pretrained_cfg, LITE0, 160)  # type: ignore[arg-type]
    path = tmp_path / "x.png"
    picture(*size).save(path)
    opened = pil_loader(str(path))
    pixels = preprocessing.load_uint8(path)
    np.testing.assert_array_equal(pixels.transpose(2, 0, 1), timm_transform(lite0, 160, use_prefetcher=True)(opened))
    torch.testing.assert_close(clean_input(pixels, preprocessing), timm_transform(lite0, 160)(opened))


def clean_input(pixels: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """What the network gets: `occlude` with a zero occluder, [3, S, S]."""
    image = torch.from_numpy(pixels.copy())[None]
    zero, one = torch.zeros(1, *image.shape[1:]), torch.tensor([1])
    how = Normalisation(preprocessing.scale, preprocessing.shift)
    return occlude(Pairs(image, zero, one - 1, one), how)[0]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [(LITE0, (160, 224, 320)), ("tf_efficientnet_lite1", (157, 160, 202, 262)), ("tf_efficientnet_lite2", (146, 160))],
)
def test_the_short_side_is_floor_of_size_by_crop_pct(name: str, sizes: tuple[int, ...]) -> None:
    # From the ratio, not from the model's own short side: that is rounded, and at 157 it gives another one for Lite1.
    network = timm.create_model(name)
    for size in sizes:
        ours = preprocessing_from_timm(network.pretrained_cfg, name, size)  # type: ignore[arg-type]
        resize = timm_transform(network, size).transforms[0]
        assert ours.resize == resize.size == math.floor(size / network.pretrained_cfg["crop_pct"])  # type: ignore[index]


def test_lite0_at_160_resizes_to_182(lite0: nn.Module) -> None:
    at_home = preprocessing_from_timm(lite0.pretrained_cfg, LITE0)  # type: ignore[arg-type]
    assert (at_home.input_size, at_home.resize, at_home.interpolation) == (224, 256, "bicubic")
    assert at_home.resized(160).resize == 182


def exif_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° before showing
    picture(50, 41).save(path, exif=exif)


def transparent_palette(path: Path) -> None:
    picture(50, 41).quantize(16).save(path, transparency=3)


KINDS: dict[str, Callable[[Path], None]] = {
    "grey.png": lambda path: picture(50, 41).convert("L").save(path),
    "bilevel.png": lambda path: picture(50, 41).convert("1").save(path),
    "cmyk.jpg": lambda path: picture(50, 41).convert("CMYK").save(path),
    "palette.gif": lambda path: picture(50, 41).quantize(16).save(path),
    "transparent-palette.png": transparent_palette,
    "16-bit.png": lambda path: Image.fromarray(np.arange(50 * 41, dtype=np.uint16).reshape(41, 50) * 31).save(path),
    "alpha.png": lambda path: picture(50, 41).convert("RGBA").rotate(30).save(path),
    "grey-alpha.png": lambda path: picture(50, 41).convert("LA").rotate(30).save(path),
    "exif.jpg": exif_rotated,
    "webp.webp": lambda path: picture(50, 41).save(path),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_as_torchvisions_loader_reads_it(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / kind)
    preprocessing = Preprocessing(41, 41)  # no resizing of the short side: the crop of the loader's own pixels
    wanted = np.asarray(pil_loader(str(tmp_path / kind)))
    left = round((wanted.shape[1] - 41) / 2)
    np.testing.assert_array_equal(preprocessing.load_uint8(tmp_path / kind), wanted[:, left : left + 41])


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture_raises(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(OSError, match=r"cannot identify|x\.jpg"):
        Preprocessing(8, 8).load_uint8(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"input_size": 224, "resize": 100}, "--resize"),
        ({"input_size": 0, "resize": 100}, "--input-size"),
        ({"input_size": 8, "resize": 8, "interpolation": "nearest"}, "'nearest' is not supported"),
        ({"input_size": 8, "resize": 8, "mean": [0.5]}, "3 finite means"),
        ({"input_size": 8, "resize": 8, "mean": [math.nan, 0.0, 0.0]}, "3 finite means"),
        ({"input_size": 8, "resize": 8, "std": [0.5, 0.5, 0.0]}, "3 positive stds"),
        ({"input_size": 8, "resize": 8, "std": [0.5, 0.5, 1e-320]}, "3 positive stds"),
        ({"input_size": 8, "resize": 8, "mean": [1e308, 0.0, 0.0], "std": [1e-5, 0.5, 0.5]}, "3 finite means"),
        ({"input_size": 1000, "resize": 10**30}, "resize ≤ 16384"),
    ],
)
def test_out_of_range_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Preprocessing(**values)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"input_size": 8, "resize": 8, "mean": [0.5]}, "mean"),
        ({"input_size": 8, "resize": 8, "mean": [10**400, 0, 0]}, "mean.0: .*finite"),
        ({"input_size": 8, "resize": 7}, "--resize"),
        ({"input_size": 8.5, "resize": 9}, "input_size: .*integer"),
        ({"input_size": 8, "resize": True}, "resize: .*integer"),
        ({"input_size": 8}, "resize"),
        ({"input_size": 8, "resize": 8, "colour": "red"}, "colour"),
        ([], "should be an object"),
        (None, "should be an object"),
    ],
)
def test_what_is_no_preprocessing_in_a_file_is_named(values: object, named: str) -> None:
    with pytest.raises(InputError, match=f"^a file: .*{named}"):
        read_record(Preprocessing, json.dumps(values), "a file", "write it anew")


def test_round_trip_through_json_types() -> None:
    preprocessing = preprocessing_from_torchvision("vgg16", None)
    text = json.dumps(preprocessing.to_dict())
    assert read_record(Preprocessing, text, "a file", "write it anew") == preprocessing


@pytest.mark.parametrize("config", [{"crop_mode": "squash"}, {"input_size": (1, 224, 224)}, {"input_size": (3, 8, 9)}])
def test_a_transform_that_is_not_covered_is_refused(config: dict[str, object], lite0: nn.Module) -> None:
    with pytest.raises(InputError, match="choose another model"):
        preprocessing_from_timm({**lite0.pretrained_cfg, **config}, LITE0)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("mean", "std", "doubtful"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False),
        ((0.0, 0.0, 1.0), (1.0, 1.0, 1.0), False),
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), True),
        ((0.5, 0.5, 0.5), (0.2, 0.2, 1.5), True),
        ((-0.1, 0.5, 0.5), (0.2, 0.2, 0.2), True),
    ],
)
def test_a_mean_or_std_of_another_scale_is_doubtful(
    mean: tuple[float, float, float], std: tuple[float, float, float], doubtful: bool
) -> None:
    found = Preprocessing(8, 8, mean=mean, std=std).doubt
    assert (found is not None) == doubtful
    assert found is None or "outside of 0 to 1" in found
