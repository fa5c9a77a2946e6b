"""Which implementation of an operation runs: never chosen silently, and always the caller's to fix."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from ._triton import HAVE_TRITON, INTERPRETED

Impl = Literal["auto", "reference", "triton"]
IMPLS: tuple[Impl, ...] = get_args(Impl)


def choose_impl(impl: str, device: torch.device) -> tuple[Literal["reference", "triton"], str]:
    """What `impl` stands for on `device`, and why in words.

    Parameters
    ----------
    impl
        `auto` is Triton on CUDA and the plain reference elsewhere.

    Raises
    ------
    ValueError
        No such implementation, or Triton is asked for (on CUDA `auto` does) and cannot run.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl: expected one of {', '.join(IMPLS)}, got {impl!r}")
    if impl == "reference":
        return "reference", "asked for"
    if impl == "auto" and device.type != "cuda":
        return "reference", f"the kernels are for CUDA, this is {device.type}"
    if not HAVE_TRITON:
        raise ValueError(f"impl={impl!r} on {device}: Triton is not installed; install triton or use impl='reference'")
    if device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f"impl='triton': expected tensors on CUDA, got {device}; use impl='reference', or start Python with "
            "TRITON_INTERPRET=1 to interpret the kernels"
        )
    return "triton", "interpreted, for tests" if INTERPRETED else "CUDA"
