"""The choice between the Triton kernels and the plain references; it comes with its reason."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from ._triton import HAVE_TRITON, INTERPRETED

Impl = Literal["auto", "reference", "triton"]
IMPLS: tuple[Impl, ...] = get_args(Impl)


def choose_impl(impl: str, device: torch.device) -> tuple[Literal["reference", "triton"], str]:
    """Choose the implementation that `impl` stands for on `device`, and return it with the reason.

    Parameters
    ----------
    impl
        `auto`, `reference` or `triton`; `auto` is Triton on CUDA and the plain reference elsewhere.

    Raises
    ------
    ValueError
        An unknown implementation, or Triton is requested (by `auto` on CUDA) and cannot run.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl: expected one of {', '.join(IMPLS)}, got {impl!r}")
    if impl == "reference":
        return "reference", "as requested"
    if impl == "auto" and device.type != "cuda":
        return "reference", f"the kernels require CUDA, the device is {device.type}"
    if not HAVE_TRITON:
        raise ValueError(f"impl={impl!r} on {device}: Triton is not installed; install triton or use impl='reference'")
    if device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f"impl='triton': expected tensors on CUDA, got {device}; use impl='reference', or start Python with "
            "TRITON_INTERPRET=1 to interpret the kernels"
        )
    return "triton", "interpreted, for tests" if INTERPRETED else "CUDA"
