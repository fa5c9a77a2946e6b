"""Argument checks shared by the operations, which raise before anything runs."""

from __future__ import annotations

import torch
from torch import Tensor

from ._triton import SHORT_NAMES


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int | str, ...]) -> None:
    """Check dtype and shape; a string in `shape` stands for any size and is only shown in the message.

    Raises
    ------
    TypeError
        A wrong dtype.
    ValueError
        A wrong number of dimensions or a wrong size.
    """
    # The message is built only on failure: these checks run on every call.
    if tensor.dtype != dtype:
        raise TypeError(_unexpected(name, tensor, dtype, shape))
    if len(tensor.shape) != len(shape):
        raise ValueError(_unexpected(name, tensor, dtype, shape))
    for size, want in zip(tensor.shape, shape, strict=True):
        if size != want and not isinstance(want, str):
            raise ValueError(_unexpected(name, tensor, dtype, shape))


def _unexpected(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int | str, ...]) -> str:
    wanted = f"{name}: expected {str(dtype).removeprefix('torch.')} [{', '.join(map(str, shape))}]"
    return f"{wanted}, got {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def check_contiguous(**tensors: Tensor) -> None:
    """Raise `ValueError` unless the named tensors are contiguous, as the kernels assume."""
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name}: expected contiguous memory, got strides {tensor.stride()} for {list(tensor.shape)}; "
                "call .contiguous() first"
            )


def check_index(name: str, index: Tensor, upper: int) -> None:
    """Raise `ValueError` unless every entry of `index` is in 0 … upper − 1."""
    if torch.compiler.is_compiling():  # no values yet: the graph checks them when it runs
        torch._assert_async(((index >= 0) & (index < upper)).all(), f"{name}: an entry is out of range")
        return
    if index.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(index))
    if low < 0 or high >= upper:
        raise ValueError(f"{name}: entries must lie in 0..{upper - 1}, got {low}..{high}")


def check_same_device(**tensors: Tensor) -> None:
    """Raise `ValueError` unless the named tensors are on one device."""
    if len({tensor.device for tensor in tensors.values()}) > 1:
        listed = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"expected all tensors on one device, got {listed}")


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Raise unless `logits` is floating-point [P, C ≥ 2] and `labels` int64 [P], on one device and contiguous."""
    if logits.dim() != 2 or logits.shape[1] < 2 or logits.dtype not in SHORT_NAMES:
        got = f"{str(logits.dtype).removeprefix('torch.')} {list(logits.shape)}"
        raise ValueError(f"logits: expected float32, bfloat16 or float16 [P, C ≥ 2], got {got}")
    check_tensor("labels", labels, torch.int64, (logits.shape[0],))
    check_same_device(logits=logits, labels=labels)
    check_contiguous(logits=logits, labels=labels)
