"""`momentum_step`: one step of momentum down the loss and back into the ball of radius ε, in place.

    v ← μ · v + g / mean|g|,   d ← Π(d − α · u),   u = sign(v) in the l∞ ball or v / ‖v‖₂ in the l2 ball

The mean and the length are those of each occluder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._triton import Variant, jit, tl
from .ball import (
    BLOCK,
    NORMS,
    SHORTEST,
    WARPS,
    Norm,
    add_up,
    check_step,
    kept_share,
    l2,
    launch_sizes,
    locate,
    long_enough,
    project,
    step_variant,
)
from .impl import choose_impl

# Prevents 0 / 0 for an occluder without a gradient: all its pictures are misclassified, or the batch had none of them.
_TINY = 1e-30


class _Numbers(NamedTuple):
    step: float
    decay: float
    epsilon: float
    norm: Norm


# ---- reference


def _reference(occluders: Tensor, momentum: Tensor, gradient: Tensor, how: _Numbers) -> None:
    momentum.mul_(how.decay).addcdiv_(gradient, gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min_(_TINY))
    if how.norm == "linf":
        occluders.add_(momentum.sign(), alpha=-how.step)
    else:
        occluders.addcdiv_(momentum, l2(momentum), value=-how.step)
    project(occluders, how.epsilon, how.norm)


# ---- kernels


@jit()
def _abs_sum_kernel(gradient: tl.tensor, partial: tl.tensor, elements: tl.tensor, BLOCK: tl.constexpr) -> None:
    _, _, start, at = locate(elements, BLOCK)
    g = tl.load(gradient + start + at, mask=at < elements, other=0.0)
    tl.store(partial + tl.program_id(0), tl.sum(tl.abs(g), axis=0))


@jit()
def _momentum_kernel(
    occluders: tl.tensor,
    momentum: tl.tensor,
    gradient: tl.tensor,
    absolute: tl.tensor,
    sums: tl.tensor,
    elements: tl.tensor,
    step: tl.tensor,
    decay: tl.tensor,
    epsilon: tl.tensor,
    tiny: tl.tensor,
    LINF: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Update v, and d too in the l∞ ball; in the l2 ball write the blocks' sums of v·v, v·d and d·d."""
    row, _, start, at = locate(elements, BLOCK)
    mask = at < elements
    total = add_up(absolute, row, tl.cdiv(elements, BLOCK), PARTS)
    mean = tl.maximum(total / elements, tiny, propagate_nan=tl.PropagateNan.ALL)
    g = tl.load(gradient + start + at, mask=mask, other=0.0)
    v = tl.load(momentum + start + at, mask=mask, other=0.0) * decay + g / mean
    d = tl.load(occluders + start + at, mask=mask, other=0.0)
    tl.store(momentum + start + at, v, mask=mask)
    if LINF:
        d -= step * tl.where(v > 0, 1.0, tl.where(v < 0, -1.0, 0.0))
        d = tl.clamp(d, -epsilon, epsilon, propagate_nan=tl.PropagateNan.ALL)
        tl.store(occluders + start + at, d, mask=mask)
    else:
        programs = tl.num_programs(0)
        tl.store(sums + tl.program_id(0), tl.sum(v * v, axis=0))
        tl.store(sums + programs + tl.program_id(0), tl.sum(v * d, axis=0))
        tl.store(sums + 2 * programs + tl.program_id(0), tl.sum(d * d, axis=0))


@jit()
def _move_l2_kernel(
    occluders: tl.tensor,
    momentum: tl.tensor,
    sums: tl.tensor,
    elements: tl.tensor,
    step: tl.tensor,
    epsilon: tl.tensor,
    shortest: tl.tensor,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Move d along v and project it in one pass: ‖d − a · v‖² = d·d − 2a · v·d + a² · v·v."""
    row, _, start, at = locate(elements, BLOCK)
    mask, blocks, programs = at < elements, tl.cdiv(elements, BLOCK), tl.num_programs(0)
    vv = add_up(sums, row, blocks, PARTS)
    vd = add_up(sums + programs, row, blocks, PARTS)
    dd = add_up(sums + 2 * programs, row, blocks, PARTS)
    along = step / long_enough(vv, shortest)
    squares = dd - 2 * along * vd + along * (along * vv)  # along² alone may overflow
    squares = tl.maximum(squares, 0.0, propagate_nan=tl.PropagateNan.ALL)
    v = tl.load(momentum + start + at, mask=mask, other=0.0)
    d = tl.load(occluders + start + at, mask=mask, other=0.0) - along * v
    tl.store(occluders + start + at, d * kept_share(squares, epsilon, shortest), mask=mask)


# ---- launcher


def _launch(occluders: Tensor, momentum: Tensor, gradient: Tensor, how: _Numbers) -> None:
    (elements, count, parts), linf = launch_sizes(occluders), how.norm == "linf"
    options: dict[str, Any] = {"BLOCK": BLOCK, "num_warps": WARPS}
    absolute, sums = occluders.new_empty(count), occluders.new_empty(0 if linf else 3 * count)
    _abs_sum_kernel[(count,)](gradient, absolute, elements, **options)
    options["PARTS"] = parts
    tensors, numbers = (occluders, momentum, gradient, absolute, sums), (how.step, how.decay, how.epsilon, _TINY)
    _momentum_kernel[(count,)](*tensors, elements, *numbers, LINF=linf, **options)
    if not linf:
        _move_l2_kernel[(count,)](occluders, momentum, sums, elements, how.step, how.epsilon, SHORTEST, **options)


# ---- public


@torch.no_grad()
def momentum_step(
    occluders: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    *,
    step: float,
    decay: float,
    epsilon: float,
    norm: Norm = "linf",
    impl: str = "auto",
) -> None:
    """Move each occluder one step of momentum against its gradient, and project it onto the ε ball.

    Parameters
    ----------
    occluders
        float32 [K, H, W, 3], pixel units; updated in place.
    momentum
        float32 [K, H, W, 3]; updated in place. Start it at zero.
    gradient
        float32 [K, H, W, 3], of the loss to minimise. Only its direction matters: it is divided by its mean absolute
        value, so that batches with few correctly classified pictures count as much as others.
    step
        α ≥ 0, pixel units: what each pixel moves (l∞), or the length of the step (l2; shorter for a momentum below
        1e-15).
    decay
        μ in [0, 1).
    epsilon
        > 0, pixel units: the largest |d| of a pixel (l∞), or the largest ‖d‖₂ of an occluder (l2).
    norm
        `linf` or `l2`, of the ball.
    impl
        `auto`, `reference` or `triton`; see `choose_impl`.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device, layout, norm, implementation or number out of range.

    Source: Dong et al., CVPR 2018 (MI-FGSM, equations 6 and 7), over a batch instead of one picture.
    """
    check_step(step, epsilon, norm, occluders=occluders, momentum=momentum, gradient=gradient)
    if not 0 <= decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), got {decay}")
    chosen, _ = choose_impl(impl, occluders.device)
    if occluders.numel() > 0:
        run = _reference if chosen == "reference" else _launch
        run(occluders, momentum, gradient, _Numbers(step, decay, epsilon, norm))


# ---- for the table of compiled kernels


def variants() -> Iterator[Variant]:
    """Yield every form in which the launcher above starts these kernels."""
    for fits, norm in itertools.product((True, False), NORMS):
        tensors, passes = "occluders momentum gradient absolute sums", 5 if norm == "linf" else 4
        yield step_variant(_momentum_kernel, tensors, "step decay epsilon tiny", passes, norm, fits)
    for fits in (True, False):
        yield step_variant(_abs_sum_kernel, "gradient partial", "", 1, "linf", fits)
        yield step_variant(_move_l2_kernel, "occluders momentum sums", "step epsilon shortest", 3, "l2", fits)
