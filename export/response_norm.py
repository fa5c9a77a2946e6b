"""Local response normalisation by a 1×1 convolution: the same numbers, several times as fast.

    y = x · (k + α/n · Σ x²)^−β,   the sum over n neighbouring channels

PyTorch pads, pools in three dimensions and takes a general power. In channels-last memory the sum is a matrix product
with a band of ones, which every device, engine and precision has; and β is 3/4 in all published networks, so that
square roots serve. x is scaled before it is squared: x² leaves the range of fp16 from 256 on.

Source: Krizhevsky et al., NeurIPS 2012, section 3.3.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def convolved_response_norms(network: nn.Module, example: Tensor) -> dict[str, nn.Module]:
    """Return a `ResponseNorm` for each `nn.LocalResponseNorm` that meets one number of channels; see `Rewrite`.

    Subclasses stay: they may compute something else.
    """
    norms = {name: norm for name, norm in network.named_modules() if type(norm) is nn.LocalResponseNorm}
    if not norms:
        return {}
    met: dict[str, set[tuple[int, ...]]] = {name: set() for name in norms}
    handles = [norm.register_forward_pre_hook(functools.partial(_meet, met[name])) for name, norm in norms.items()]
    network(example)
    for handle in handles:
        handle.remove()
    return {
        name: ResponseNorm(norms[name], *channels)
        for name, shapes in met.items()
        for channels in shapes
        if len(shapes) == len(channels) == 1
    }


def _meet(met: set[tuple[int, ...]], _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Note what stands between the batch and the plane: C alone, for maps given by position."""
    met.add(tuple(inputs[0].shape[1:-2]) if inputs else ())


class ResponseNorm(nn.Module):
    """What a `nn.LocalResponseNorm` computes, for [P, C, H, W] with one C.

    It can be differentiated once.
    """

    band: Tensor
    bias: Tensor

    def __init__(self, norm: nn.LocalResponseNorm, channels: int) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = norm.size, norm.alpha, norm.beta, norm.k
        self.scale = (norm.alpha / norm.size) ** 0.5
        index = torch.arange(channels)
        after = index[None] - index[:, None]  # of a summed channel, seen from the one that is normalised
        band = (after >= -(norm.size // 2)) & (after <= (norm.size - 1) // 2)
        self.register_buffer("band", band.float()[:, :, None, None], persistent=False)
        self.register_buffer("bias", torch.full((channels,), float(norm.k)), persistent=False)

    def extra_repr(self) -> str:
        """Return what `nn.LocalResponseNorm` says of itself."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"

    def forward(self, x: Tensor) -> Tensor:
        """Return [P, C, H, W], in the precision of `x`."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _Differentiable.apply(x, self)
        return x * self.factor(self.denominator(x))

    def denominator(self, x: Tensor) -> Tensor:
        """Return k + α/n · Σ x²."""
        scaled = x * self.scale
        return F.conv2d(scaled * scaled, self.band, self.bias)

    def factor(self, denominator: Tensor) -> Tensor:
        """Return the denominator to the power of −β."""
        if self.beta != 0.75:
            return denominator.pow(-self.beta)
        root = denominator.rsqrt()
        return root * root.sqrt()


class _Differentiable(torch.autograd.Function):
    """`ResponseNorm` with its own gradient, g·r − 2β·α/n · x · Σ g·x·r / d: autograd would keep and pass over more.

    d is the denominator, r = d^−β; the sum runs over the channels that x is normalised for.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: ResponseNorm) -> Tensor:
        denominator = norm.denominator(x)
        factor = norm.factor(denominator)
        ctx.save_for_backward(x, denominator, factor)
        ctx.norm = norm
        return x * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (grad,), norm = grads, ctx.norm
        x, denominator, factor = ctx.saved_tensors
        direct = grad * factor
        through = F.conv2d((direct * x).div_(denominator), norm.band.transpose(0, 1))
        return direct.addcmul_(through, x, value=-2 * norm.beta * norm.alpha / norm.size), None
