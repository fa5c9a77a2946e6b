"""Triton where it is installed, and what a compiled variant of a kernel is.

The kernels lie beside their references; on a system without Triton (macOS, Windows) these files still import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

if TYPE_CHECKING:  # Triton's own annotations do not describe the language inside a kernel
    triton: Any = None

    class _Anything(type):
        def __getattr__(cls, name: str) -> Any: ...

    class tl(metaclass=_Anything):  # noqa: N801
        tensor: TypeAlias = Any
        constexpr: TypeAlias = Any

else:
    try:
        import triton
        import triton.language as tl
    except ImportError:
        triton = tl = None

HAVE_TRITON = triton is not None
# Triton reads TRITON_INTERPRET when it decorates a kernel, so this cannot change later.
INTERPRETED = HAVE_TRITON and bool(triton.knobs.runtime.interpret)

SHORT_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Of the dtypes that networks run in, as Triton calls them."""


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`; without Triton the function itself, which nothing then calls."""
    return triton.jit(function) if HAVE_TRITON else function


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`; Triton's blocks have no other sizes."""
    return 1 << max(0, size - 1).bit_length()


def row_block(classes: int) -> tuple[int, int]:
    """Block and warps for a program that goes through a row of logits: 8 a thread, long rows in several blocks."""
    block = min(4096, power_of_two(classes))
    return block, max(1, block // 256)


CLASSES_SHOWN = (10, 1_000, 21_841)
"""Numbers of classes in the table of compiled kernels: digits, ImageNet, ImageNet-21k."""


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel, as its launcher asks for it.

    Attributes
    ----------
    kernel
        What `jit` gave.
    name
        What tells it from the kernel's other variants: dtypes, layout, sizes.
    arguments
        All of the kernel's: a `constexpr` has its value, another one Triton's type, `*bf16`, `fp32`, `i32`, or `i32:16`
        for an integer that is a multiple of 16, as sizes are at 224² and 160². Pointers always are.
    warps
        Of 32 threads, in one program.
    per
        What `moved` and `minimum` are counted for: a pair, a row of logits, an occluder.
    moved, minimum
        Bytes at 224² or 1,000 classes: what the kernel asks for, and the least that reads each input and writes each
        output of a program's tile once.
    fusion
        Whether the compiler may fuse a product and a sum into one rounding.
    """

    kernel: Any
    name: str
    arguments: Mapping[str, Any]
    warps: int
    per: str
    moved: float
    minimum: float
    fusion: bool = True
