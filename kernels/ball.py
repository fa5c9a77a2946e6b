"""The ball of radius ε that occluders stay in: its norms, the projection, and what the two training steps share.

    Π(d) = clamp(d, −ε, ε) in the l∞ ball, d · min(1, ε / ‖d‖₂) in the l2 ball

In the kernels a program handles one block of one occluder. It writes the block's part of a sum over the occluder; the
next kernel adds up the parts.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ._checks import check_contiguous, check_same_device, check_tensor
from ._pixels import ELEMENTS_224
from ._triton import Variant, jit, power_of_two, tl

Norm = Literal["linf", "l2"]
NORMS: tuple[Norm, ...] = get_args(Norm)

SHORTEST = 1e-15
"""The least length to divide by. float32 loses the squares of much smaller numbers, and a momentum that has died away
over hundreds of steps without a gradient would be scaled up beyond a whole step."""

# A thread has two loads of 16 bytes in flight; a 224² occluder takes 147 programs.
WARPS, BLOCK = 4, 1024


def largest_difference(norm: str, size: int) -> float:
    """Return the radius of the ball that holds every difference of two pictures [size, size, 3], pixel units."""
    return 255.0 if norm == "linf" else 255.0 * math.sqrt(3) * size


# ---- reference


def l2(rows: Tensor) -> Tensor:
    """Compute ‖·‖₂ of each occluder, at least `SHORTEST`, float32 [K, 1, 1, 1]."""
    return rows.flatten(1).norm(dim=1).clamp_min_(SHORTEST).view(-1, 1, 1, 1)


def project(occluders: Tensor, epsilon: float, norm: Norm) -> None:
    """Project each occluder onto the ball, in place."""
    if norm == "linf":
        occluders.clamp_(-epsilon, epsilon)
    else:
        occluders.mul_((epsilon / l2(occluders)).clamp_max_(1.0))


# ---- parts of kernels


@jit()
def locate(elements: tl.tensor, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return the program's occluder, its block, the offset of the occluder, and the elements of the block."""
    blocks = tl.cdiv(elements, BLOCK)
    row, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    return row, block, row.to(tl.int64) * elements, block * BLOCK + tl.arange(0, BLOCK)


@jit()
def add_up(partial: tl.tensor, row: tl.tensor, blocks: tl.tensor, PARTS: tl.constexpr) -> tl.tensor:
    """Add up the parts of the sum over an occluder."""
    part = tl.arange(0, PARTS)
    return tl.sum(tl.load(partial + row * blocks + part, mask=part < blocks, other=0.0), axis=0)


@jit()
def long_enough(squares: tl.tensor, shortest: tl.tensor) -> tl.tensor:
    """Compute the length to divide by from the sum of squares."""
    return tl.maximum(tl.sqrt(squares), shortest, propagate_nan=tl.PropagateNan.ALL)


@jit()
def kept_share(squares: tl.tensor, epsilon: tl.tensor, shortest: tl.tensor) -> tl.tensor:
    """Compute the factor of the projection onto the l2 ball from the sum of squares."""
    return tl.minimum(epsilon / long_enough(squares, shortest), 1.0, propagate_nan=tl.PropagateNan.ALL)


# ---- for the launchers, public functions and the table of compiled kernels


def launch_sizes(occluders: Tensor) -> tuple[int, int, int]:
    """Return the elements of an occluder, the number of programs, and the parts of a sum as a power of two."""
    elements = math.prod(occluders.shape[1:])
    blocks = -(-elements // BLOCK)
    return elements, len(occluders) * blocks, power_of_two(blocks)


def check_step(step: float, epsilon: float, norm: str, **tensors: Tensor) -> None:
    """Check the arguments that both steps take; `tensors` are named as in the message and include `occluders`.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device, layout, norm or number out of range.
    """
    shape = tuple(tensors["occluders"].shape)
    for name, tensor in tensors.items():
        check_tensor(name, tensor, torch.float32, ("K", "H", "W", 3) if name == "occluders" else shape)
    check_same_device(**tensors)
    check_contiguous(**tensors)
    if not (step >= 0 and epsilon > 0):
        raise ValueError(f"expected step ≥ 0 and epsilon > 0, got step={step} epsilon={epsilon}")
    if norm not in NORMS:
        raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")


def step_variant(kernel: Any, tensors: str, numbers: str, passes: int, norm: Norm, fits: bool) -> Variant:
    """Describe a kernel that reads or writes tensors of an occluder's size `passes` times.

    `tensors` and `numbers` are the names of its arguments, separated by spaces; `fits` says whether the elements of an
    occluder are a multiple of 16. The parts of a sum are those of a 224² occluder.
    """
    arguments = {
        **dict.fromkeys(tensors.split(), "*fp32"),
        **dict.fromkeys(numbers.split(), "fp32"),
        "elements": "i32:16" if fits else "i32",
        "BLOCK": BLOCK,
        "PARTS": power_of_two(-(-ELEMENTS_224 // BLOCK)),
        "LINF": norm == "linf",
    }
    moved = 4.0 * passes * ELEMENTS_224
    return Variant(kernel, f"{norm}{'' if fits else ', any size'}", arguments, WARPS, "occluder", moved, moved)
