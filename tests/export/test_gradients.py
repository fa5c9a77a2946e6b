"""Quick gradients: of the convolutions that are slow otherwise, the same numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gfo.export.classifier import FrozenClassifier
from gfo.export.gradients import QuickGradients
from gfo.export.occluded import OccludedClassifier
from gfo.export.preprocessing import Preprocessing

QUICK = "_DepthwiseBackward"


def maps(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """Small whole numbers: half precision adds up some of them exactly."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def name(result: Tensor) -> str:
    return type(result.grad_fn).__name__


@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    taps=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(2, 3)),
    pad=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    channels=st.integers(2, 5),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    channels_last=st.booleans(),
)
def test_the_gradient_of_a_depthwise_convolution_is_float64s(
    size: tuple[int, int],
    taps: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int],
    channels: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> None:
    pad = (min(pad[0], taps[0] - 1), min(pad[1], taps[1] - 1))
    size = (max(size[0], taps[0]), max(size[1], taps[1]))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = maps(2, channels, *size, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    weight, bias = maps(channels, 1, *taps, dtype=dtype, seed=1), maps(channels, dtype=dtype, seed=2)
    with QuickGradients():
        found = F.conv2d(images, weight, bias, stride, pad, groups=channels)
    assert name(found) == QUICK
    assert torch.equal(found, F.conv2d(images, weight, bias, stride, pad, groups=channels))
    exact = images.detach().double().requires_grad_()
    wanted = F.conv2d(exact, weight.double(), bias.double(), stride, pad, groups=channels)
    upstream = maps(*wanted.shape, dtype=dtype, seed=3)
    (gradient,) = torch.autograd.grad(found, images, upstream)
    (right,) = torch.autograd.grad(wanted, exact, upstream.double())
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.double(), right, rtol=2**-7, atol=0)


def test_what_is_not_slow_stays_pytorchs() -> None:
    images, weight = maps(1, 4, 8, 8).requires_grad_(), maps(4, 1, 3, 3)
    with QuickGradients():
        assert name(F.conv2d(images, weight, stride=2, groups=4)) == QUICK
        assert name(F.conv2d(images, weight, padding="valid", stride=2, groups=4)) == QUICK
        assert name(F.conv2d(images, weight, padding="same", groups=4)) != QUICK
        assert name(F.conv2d(images, weight, groups=4)) != QUICK
        assert name(F.conv2d(images, weight, stride=2, dilation=2, groups=4)) != QUICK
        assert name(F.conv2d(images, weight, stride=2, padding=3, groups=4)) != QUICK
        assert name(F.conv2d(images, maps(8, 1, 3, 3), stride=2, groups=4)) != QUICK
        assert name(F.conv2d(images, maps(4, 2, 3, 3), stride=2, groups=2)) != QUICK
        assert name(F.conv2d(images.float(), weight.float(), stride=2, groups=4)) != QUICK
        assert name(F.conv2d(images[0], weight, stride=2, groups=4)) != QUICK
        assert name(F.conv2d(images, maps(4, 1, 3, 3).requires_grad_(), stride=2, groups=4)) != QUICK
        with torch.no_grad():
            assert F.conv2d(images, weight, stride=2, groups=4).grad_fn is None


@pytest.mark.parametrize("gradient", [True, False])
def test_training_takes_them_and_evaluation_does_not(gradient: bool) -> None:
    met = []

    class Noting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            met.append(name(x))
            return x

    layers = (nn.Conv2d(3, 3, 3, 2, groups=3), Noting(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = FrozenClassifier.from_module(nn.Sequential(*layers), Preprocessing(16, 16))
    model = OccludedClassifier(classifier, "bf16").settled(torch.device("cpu"), gradient=gradient)
    bank = torch.zeros(1, 16, 16, 3, requires_grad=True)
    pictures = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    logits = model(pictures, torch.tensor([0]), torch.tensor([1]), bank)
    assert (met[-1] == QUICK) is gradient
    assert torch.autograd.grad(logits.sum(), bank)[0].any()
