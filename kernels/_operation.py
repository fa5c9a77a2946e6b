"""How an operation is registered with PyTorch, and how eager code calls it: straight, not through the dispatcher.

The dispatcher's way through a custom operation and its gradient costs about 100 µs, more than the work of a small one.
`torch.compile` and `torch.export` need it, eager code does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


class Operation:
    """A `torch.library.custom_op`, and the function that it was made from.

    Called on ordinary tensors outside of a compiler it runs the function itself, under autograd where a gradient is
    wanted; else the registered operation, `torch.ops.gfo.<name>`.
    """

    def __init__(self, name: str, function: Callable[..., Any], mutates: Sequence[str]) -> None:
        self.function = function
        self._registered = torch.library.custom_op(f"gfo::{name}", function, mutates_args=mutates)
        self._setup: Callable[..., None] | None = None
        self._backward: Callable[..., tuple[Tensor | None, ...]] | None = None

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Shapes and dtypes of the results, for tracing; a decorator."""
        self._registered.register_fake(function)
        return function

    def register_autograd(
        self, backward: Callable[..., tuple[Tensor | None, ...]], setup_context: Callable[..., None]
    ) -> None:
        """As `CustomOpDef.register_autograd`; the same two functions serve the straight call."""
        self._registered.register_autograd(backward, setup_context=setup_context)
        self._backward, self._setup = backward, setup_context

    def __call__(self, *inputs: Any) -> Any:
        """What the function gives."""
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if not self.straight(*tensors):
            return self._registered(*inputs)
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
            return self.function(*inputs)
        if self._backward:
            return _Straight.apply(self, *inputs)
        with torch.no_grad():  # it has no gradient, and its reference's own would be another thing
            return self.function(*inputs)

    @staticmethod
    def straight(*tensors: Tensor) -> bool:
        """Whether a call with these runs the function itself: ordinary tensors, and nothing compiles or exports it."""
        ordinary = all(type(tensor) in (Tensor, Parameter) for tensor in tensors)
        return ordinary and not torch.compiler.is_compiling()

    def setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """What was registered."""
        assert self._setup is not None
        self._setup(ctx, inputs, output)

    def backward(self, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """What was registered."""
        assert self._backward is not None
        return self._backward(ctx, *grads)


def operation(name: str, mutates: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Operation]:
    """Register the function below as `gfo::<name>`; `mutates` names what it changes in place."""
    return lambda function: Operation(name, function, mutates)


class _Straight(torch.autograd.Function):
    """The function under autograd, without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, op: Operation, *inputs: Any) -> Any:
        output = op.function(*inputs)
        ctx.set_materialize_grads(False)  # no zeros for results that have no gradient
        op.setup(ctx, inputs, output)
        ctx.op = op
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, *ctx.op.backward(ctx, *grads)
