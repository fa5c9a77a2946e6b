"""The resize for pictures on a GPU against Pillow's: the same bits, on every device that there is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gfo.engine.data.resize import pillow_weights, resize_and_crop
from gfo.export.preprocessing import Preprocessing

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 40),
    border=st.integers(0, 8),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    seed=st.integers(0, 9),
)
def test_the_same_bits_as_pillow(
    device: str, width: int, height: int, size: int, border: int, interpolation: str, seed: int
) -> None:
    height = min(height, 2 * width)
    # Black and white: bicubic overshoots, and what is clipped between the passes matters.
    pixels = (np.random.default_rng(seed).integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)
    preprocessing = Preprocessing(size, size + border, interpolation)
    found = resize_and_crop(torch.from_numpy(pixels).to(device), preprocessing)
    np.testing.assert_array_equal(found.cpu(), preprocessing.apply(Image.fromarray(pixels)))


@pytest.mark.parametrize(("width", "height"), [(4097, 301), (2001, 4002), (500, 375)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_same_bits_as_pillow_on_large_pictures(width: int, height: int, interpolation: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    preprocessing = Preprocessing(224, 256, interpolation)
    found = resize_and_crop(torch.from_numpy(pixels), preprocessing)
    np.testing.assert_array_equal(found, preprocessing.apply(Image.fromarray(pixels)))


@given(
    old=st.integers(1, 3000),
    new=st.integers(1, 300),
    size=st.integers(1, 40),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    data=st.data(),
)
def test_weights_are_pixels_of_the_side_and_sum_to_1(
    old: int, new: int, size: int, interpolation: str, data: st.DataObject
) -> None:
    size = min(size, new)
    places, weights = pillow_weights(old, new, data.draw(st.integers(0, new - size)), size, interpolation)
    assert places.shape == weights.shape == (size, places.shape[1])
    assert places.min() >= 0
    assert places[weights != 0].max() < old
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=places.shape[1] * 2**-22)


def test_weights_of_a_halved_side() -> None:
    # Triangle of half-width 2 around each centre, in the middle 1/8 3/8 3/8 1/8; cut off and normalised at the border.
    places, weights = pillow_weights(6, 3, 0, 2, "bilinear")
    np.testing.assert_array_equal(places, [[0, 1, 2, 3], [1, 2, 3, 4]])
    np.testing.assert_allclose(weights, [[3 / 7, 3 / 7, 1 / 7, 0], [1 / 8, 3 / 8, 3 / 8, 1 / 8]], atol=1e-6)
