"""`ResponseNorm` against PyTorch's own in float64: values, gradients, what is replaced, and half precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck

from gfo.export.classifier import FrozenClassifier
from gfo.export.occluded import OccludedClassifier
from gfo.export.onnx_graph import bare_network
from gfo.export.preprocessing import Preprocessing
from gfo.export.response_norm import ResponseNorm

CAFFE = (5, 1e-4, 0.75, 1.0)
SIZE = 16


@given(
    channels=st.integers(1, 12),
    size=st.integers(1, 15),  # wider than the channels, too, and even: then one channel more before than after
    alpha=st.floats(1e-4, 2),
    beta=st.sampled_from([0.75, 0.5, 1.25]),
    k=st.floats(0.5, 2),
    sides=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    gradient=st.booleans(),
)
def test_values_are_pytorchs(
    channels: int, size: int, alpha: float, beta: float, k: float, sides: tuple[int, int], gradient: bool
) -> None:
    x = 5 * torch.randn(2, channels, *sides, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    norm = nn.LocalResponseNorm(size, alpha, beta, k)
    ours = ResponseNorm(norm, channels).double()(x.clone().requires_grad_(gradient))
    torch.testing.assert_close(ours, norm(x), atol=1e-9, rtol=1e-6)  # the band's bias k is rounded to float32
    assert ours.requires_grad == gradient


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_the_gradient_is_that_of_finite_differences(size: int, beta: float) -> None:
    norm = ResponseNorm(nn.LocalResponseNorm(size, 0.7, beta, 1.0), 6).double()
    x = torch.randn(2, 6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert gradcheck(norm, x.requires_grad_())


def network(norm: nn.Module) -> nn.Module:
    """A network in evaluation mode, with seeded weights."""
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers.apply(lambda module: getattr(module, "reset_parameters", lambda: None)())
    return layers.eval()


def frozen(norm: nn.Module) -> FrozenClassifier:
    return FrozenClassifier.from_module(network(norm), Preprocessing(SIZE, SIZE), model="mine")


class Twice(nn.Module):
    """One module under two names, and in front of maps of other numbers of channels if `other`."""

    def __init__(self, other: int) -> None:
        super().__init__()
        self.norm = nn.LocalResponseNorm(3, alpha=1.0)
        self.middle, self.again = nn.Conv2d(8, other, 1), self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.middle(self.norm(x)))[:, :8]


@pytest.mark.parametrize(("other", "left"), [(8, 0), (9, 1)])
@torch.no_grad()
def test_a_module_is_replaced_under_all_its_names_where_its_channels_are_one_number(other: int, left: int) -> None:
    theirs, ours = network(Twice(other)), frozen(Twice(other))
    kinds = [type(module) for module in ours.network.modules()]
    assert kinds.count(nn.LocalResponseNorm) == left
    assert kinds.count(ResponseNorm) == 1 - left
    x = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.network(x), theirs(x))
    assert nn.LocalResponseNorm in {type(module) for module in theirs.modules()}  # the user's own


class Keyword(nn.Module):
    """Gives the maps by name, where a hook does not see them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LocalResponseNorm(3, alpha=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(input=x)


def test_a_module_that_is_called_by_keyword_stays() -> None:
    kinds = {type(module) for module in frozen(Keyword()).network.modules()}
    assert {Keyword, nn.LocalResponseNorm} <= kinds
    assert ResponseNorm not in kinds


@torch.no_grad()
def test_values_of_fp16s_whole_range_are_normalised_in_fp16() -> None:
    x = torch.logspace(-2, 4.3, 64).expand(1, 8, 1, 64)  # up to 20,000; fp16 lacks squares from 256² on
    norm = nn.LocalResponseNorm(*CAFFE)
    ours = ResponseNorm(norm, 8).half()(x.half()).double()
    torch.testing.assert_close(ours, norm(x.double()), atol=0.0, rtol=6e-3)


def test_half_precision_needs_no_float32_island() -> None:
    model = OccludedClassifier(frozen(nn.LocalResponseNorm(*CAFFE)), "bf16").settled(torch.device("cpu"), gradient=True)
    assert model.islands == ""


def test_an_export_holds_a_convolution_and_no_pooling_over_channels() -> None:
    kinds = [node.op_type for node in bare_network(frozen(nn.LocalResponseNorm(*CAFFE)), "fp32").graph.node]
    assert kinds.count("Conv") == 2
    assert not {"AveragePool", "Pow", "Pad", "LRN"} & set(kinds)
