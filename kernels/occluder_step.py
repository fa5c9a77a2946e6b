"""`occluder_step`: one momentum step down the loss and back into the ball of radius ε, in place.

v ← μ · v + g / mean|g|                      per occluder
l∞:  d ← clamp(d − α · sign(v), −ε, ε)
l2:  d ← d − α · v / ‖v‖₂, then d · min(1, ε / ‖d‖₂)
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ._checks import check_same_device, check_tensor

Norm = Literal["linf", "l2"]
NORMS: tuple[Norm, ...] = get_args(Norm)

# Keeps 0 / 0 out where an occluder has no gradient: all its pictures are fooled, or none was in the batch.
_TINY = 1e-30


def _l2(rows: Tensor) -> Tensor:
    return rows.flatten(1).norm(dim=1).clamp_min(_TINY).view(-1, 1, 1, 1)


@torch.no_grad()
def occluder_step(
    occluders: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    *,
    step: float,
    decay: float,
    epsilon: float,
    norm: Norm = "linf",
) -> None:
    """Move each occluder one step against its gradient, and project it onto the ε ball.

    Parameters
    ----------
    occluders
        float32 [K, H, W, 3], pixel units; updated in place.
    momentum
        float32 [K, H, W, 3]; updated in place. Start it at zero.
    gradient
        float32 [K, H, W, 3], of the loss to be lowered. Only its direction matters: it is divided by its mean absolute
        value, so that batches with few unfooled pictures count as much as others.
    step
        α ≥ 0, pixel units: what each pixel moves (l∞), or the length of the step (l2).
    decay
        μ in [0, 1).
    epsilon
        > 0, pixel units: the largest |d| of a pixel (l∞), or the largest ‖d‖₂ of an occluder (l2).

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device, norm or number out of range.

    Source: Dong et al., CVPR 2018 (MI-FGSM, equations 6 and 7), over a batch instead of one picture.
    """
    check_tensor("occluders", occluders, torch.float32, ("K", "H", "W", 3))
    for name, tensor in (("momentum", momentum), ("gradient", gradient)):
        check_tensor(name, tensor, torch.float32, tuple(occluders.shape))
    check_same_device(occluders=occluders, momentum=momentum, gradient=gradient)
    if not (step >= 0 and 0 <= decay < 1 and epsilon > 0):
        raise ValueError(
            f"expected step ≥ 0, 0 ≤ decay < 1 and epsilon > 0, got step={step} decay={decay} epsilon={epsilon}"
        )
    scale = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min_(_TINY)
    momentum.mul_(decay).add_(gradient / scale)
    if norm == "linf":
        occluders.sub_(momentum.sign().mul_(step)).clamp_(-epsilon, epsilon)
    elif norm == "l2":
        occluders.sub_(momentum / _l2(momentum) * step)
        occluders.mul_((epsilon / _l2(occluders)).clamp_max_(1.0))
    else:
        raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
