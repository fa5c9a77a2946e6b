"""Triton, if it is installed, and the description of a kernel's compiled variants.

The kernels lie beside their references, so these files must import without Triton too (macOS, Windows).
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
# Triton reads TRITON_INTERPRET when it decorates a kernel, so this cannot change afterwards.
INTERPRETED = HAVE_TRITON and bool(triton.knobs.runtime.interpret)

SHORT_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Triton's names of the dtypes that networks run in."""


def jit(*counts: str) -> Callable[[Callable[..., Any]], Any]:
    """Apply `triton.jit`; without Triton return the function, which is then never called.

    `counts` names parameters that differ from call to call: one compiled form serves all their values. By default
    Triton compiles anew for 1 and for multiples of 16, in the middle of a run.
    """
    return triton.jit(do_not_specialize=counts) if HAVE_TRITON else lambda function: function


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least `size`, as Triton requires of a block."""
    return 1 << max(0, size - 1).bit_length()


def row_block(classes: int) -> tuple[int, int]:
    """Return block size and warps of a program per row of logits: 8 per thread, long rows in several blocks."""
    block = min(4096, power_of_two(classes))
    return block, max(1, block // 256)


CLASSES_SHOWN = (10, 1_000, 21_841)
"""Numbers of classes in the table of compiled kernels: digits, ImageNet-1k, ImageNet-21k."""


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel, as its launcher starts it.

    Attributes
    ----------
    kernel
        The kernel, as returned by `jit`.
    name
        Distinguishes the kernel's variants: dtype, norm, sizes.
    arguments
        A value or type for each parameter: a `constexpr` has its value, any other Triton's type, such as `*bf16`,
        `fp32`, `i32`, or `i32:16` for an integer that is a multiple of 16, as sizes are at 224² and 160². Pointers are
        always aligned. Other entries are ignored.
    warps
        Warps of a program, of 32 threads each.
    per
        The unit that `moved` and `minimum` count for: a pair, a row of logits, an occluder.
    moved, minimum
        Bytes at 224² or 1,000 classes: what the kernel requests, and the least, which reads each input and writes each
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
