"""Gradients of operations that PyTorch computes slowly on a CPU, the same numbers by another way.

Training asks for the gradient with respect to the pictures alone, which few other programs do. At half precision oneDNN
has no fast kernel for that of a depthwise convolution with a stride: on a CPU with AMX the four such layers of
EfficientNet-Lite0 took half of a training step (docs/explanation/performance.md). It is a convolution without a stride,
with the kernel turned around, over the gradient of the output with zeros between its elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_MAPS, _SIDES = 4, 2  # dimensions of [P, C, H, W], and of a picture


class QuickGradients(TorchFunctionMode):
    """Calls inside have quick gradients with respect to their input, where they are known; results are the same."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch, or what stands for it."""
        if func is F.conv2d:
            images, call = _called(*args, **(kwargs or {}))
            if call.is_slow(images):
                return _Depthwise.apply(images, call)
        return func(*args, **(kwargs or {}))


class _Call(NamedTuple):
    """The arguments of `conv2d`, without the pictures."""

    weight: Tensor
    bias: Tensor | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def is_slow(self, images: Tensor) -> bool:
        """Return whether the gradient with respect to the pictures is slow, and alone is asked for."""
        parameters = (self.weight, self.bias)
        return (
            images.device.type == "cpu"
            and images.dtype in (torch.bfloat16, torch.float16)
            and images.dim() == _MAPS
            and self.groups == images.shape[1] == len(self.weight) > 1
            and max(self.stride) > 1
            and self.dilation == [1, 1]
            and len(self.stride) == len(self.padding) == _SIDES
            and all(0 <= pad < taps for pad, taps in zip(self.padding, self.weight.shape[-2:], strict=True))
            and torch.is_grad_enabled()
            and images.requires_grad
            and not any(one is not None and one.requires_grad for one in parameters)
        )


def _called(
    input: Tensor,  # noqa: A002 (PyTorch's name, by which it may be given)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[Tensor, _Call]:
    """Return the pictures of a call of `conv2d`, and its other arguments."""
    sides = {"valid": 0}.get(padding, -1) if isinstance(padding, str) else padding
    return input, _Call(weight, bias, _two(stride), _two(sides), _two(dilation), groups)


def _two(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with a stride, and its gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, call: _Call) -> Tensor:
        ctx.call, ctx.shape = call, images.shape
        return F.conv2d(images, *call)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (grad,), call = grads, ctx.call
        (pictures, channels, *size), kernel = ctx.shape, call.weight.shape[-2:]
        reach = [side + taps - 1 for side, taps in zip(size, kernel, strict=True)]
        spread = grad.new_zeros(pictures, *reach, channels).permute(0, 3, 1, 2)
        rows, columns = (
            slice(taps - 1 - pad, taps - pad + (count - 1) * step, step)
            for taps, pad, count, step in zip(kernel, call.padding, grad.shape[-2:], call.stride, strict=True)
        )
        spread[:, :, rows, columns] = grad
        return F.conv2d(spread, call.weight.flip(2, 3), groups=channels), None
