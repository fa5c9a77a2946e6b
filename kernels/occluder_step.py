"""`occluder_step` and `adam_step`: one step down the loss and back into the ball of radius ε, in place.

Momentum:  v ← μ · v + g / mean|g|, u = sign(v) in the l∞ ball or v / ‖v‖₂ in the l2 ball       per occluder
Adam:      m ← β₁ · m + (1 − β₁) · g, s ← β₂ · s + (1 − β₂) · g², u = m̂ / (√ŝ + tiny)
then       d ← Π(d − α · u), Π = clamp(·, −ε, ε) or · min(1, ε / ‖·‖₂)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ._checks import check_contiguous, check_same_device, check_tensor
from ._operation import operation
from ._pixels import ELEMENTS_224
from ._triton import Variant, jit, power_of_two, tl
from .impl import choose_impl

Norm = Literal["linf", "l2"]
NORMS: tuple[Norm, ...] = get_args(Norm)

# Keeps 0 / 0 out where an occluder has no gradient: all its pictures are fooled, or none was in the batch.
_TINY = 1e-30
# A shorter occluder or momentum counts as this long: float32 loses the squares of much smaller numbers, and a momentum
# that has died away over hundreds of steps without a gradient would be blown up beyond a whole step.
_SHORTEST = 1e-15

# A thread has two loads of 16 bytes in flight; a 224² occluder gives 147 programs.
_WARPS, _BLOCK = 4, 1024


# ---- reference


def _l2(rows: Tensor) -> Tensor:
    return rows.flatten(1).norm(dim=1).clamp_min_(_SHORTEST).view(-1, 1, 1, 1)


def _project(occluders: Tensor, epsilon: float, norm: str) -> None:
    if norm == "linf":
        occluders.clamp_(-epsilon, epsilon)
    else:
        occluders.mul_((epsilon / _l2(occluders)).clamp_max_(1.0))


def _momentum_reference(
    occluders: Tensor, momentum: Tensor, gradient: Tensor, step: float, decay: float, epsilon: float, norm: str
) -> None:
    momentum.mul_(decay).addcdiv_(gradient, gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min_(_TINY))
    if norm == "linf":
        occluders.add_(momentum.sign(), alpha=-step)
    else:
        occluders.addcdiv_(momentum, _l2(momentum), value=-step)
    _project(occluders, epsilon, norm)


def _adam_reference(
    occluders: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    step: float,
    beta1: float,
    beta2: float,
    corrections: tuple[float, float],
    tiny: float,
    epsilon: float,
    norm: str,
) -> None:
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (second / corrections[1]).sqrt_().add_(tiny)
    occluders.addcdiv_(first, root, value=-step / corrections[0])
    _project(occluders, epsilon, norm)


# ---- kernels: a program a block of one occluder; sums over an occluder are written by block and added up by the next


@jit
def _place(elements: tl.tensor, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Occluder, block, where its elements begin, and the elements themselves."""
    blocks = tl.cdiv(elements, BLOCK)
    row, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    return row, block, row.to(tl.int64) * elements, block * BLOCK + tl.arange(0, BLOCK)


@jit
def _total(partial: tl.tensor, row: tl.tensor, blocks: tl.tensor, PARTS: tl.constexpr) -> tl.tensor:
    part = tl.arange(0, PARTS)
    return tl.sum(tl.load(partial + row * blocks + part, mask=part < blocks, other=0.0), axis=0)


@jit
def _long_enough(squares: tl.tensor, shortest: tl.tensor) -> tl.tensor:
    """The length to divide by, from the sum of squares."""
    return tl.maximum(tl.sqrt(squares), shortest, propagate_nan=tl.PropagateNan.ALL)


@jit
def _kept_share(squares: tl.tensor, epsilon: tl.tensor, shortest: tl.tensor) -> tl.tensor:
    """What the projection onto the l2 ball multiplies by."""
    return tl.minimum(epsilon / _long_enough(squares, shortest), 1.0, propagate_nan=tl.PropagateNan.ALL)


@jit
def _abs_sum_kernel(gradient: tl.tensor, partial: tl.tensor, elements: tl.tensor, BLOCK: tl.constexpr) -> None:
    _, _, start, at = _place(elements, BLOCK)
    g = tl.load(gradient + start + at, mask=at < elements, other=0.0)
    tl.store(partial + tl.program_id(0), tl.sum(tl.abs(g), axis=0))


@jit
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
    """v, and in the l∞ ball d too; for the l2 ball the blocks' sums of v·v, v·d and d·d."""
    row, _, start, at = _place(elements, BLOCK)
    mask = at < elements
    total = _total(absolute, row, tl.cdiv(elements, BLOCK), PARTS)
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


@jit
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
    """d moved along v and projected in one pass: ‖d − a · v‖² = d·d − 2a · v·d + a² · v·v."""
    row, _, start, at = _place(elements, BLOCK)
    mask, blocks, programs = at < elements, tl.cdiv(elements, BLOCK), tl.num_programs(0)
    vv = _total(sums, row, blocks, PARTS)
    vd = _total(sums + programs, row, blocks, PARTS)
    dd = _total(sums + 2 * programs, row, blocks, PARTS)
    along = step / _long_enough(vv, shortest)
    squares = dd - 2 * along * vd + along * (along * vv)  # along² alone may overflow
    squares = tl.maximum(squares, 0.0, propagate_nan=tl.PropagateNan.ALL)
    v = tl.load(momentum + start + at, mask=mask, other=0.0)
    d = tl.load(occluders + start + at, mask=mask, other=0.0) - along * v
    tl.store(occluders + start + at, d * _kept_share(squares, epsilon, shortest), mask=mask)


@jit
def _adam_kernel(
    occluders: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    gradient: tl.tensor,
    sums: tl.tensor,
    elements: tl.tensor,
    step: tl.tensor,
    rest1: tl.tensor,
    beta2: tl.tensor,
    rest2: tl.tensor,
    correction2: tl.tensor,
    tiny: tl.tensor,
    epsilon: tl.tensor,
    LINF: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Both moments and d; for the l2 ball d is yet to be projected, and the blocks' sums of d·d are written."""
    _, _, start, at = _place(elements, BLOCK)
    mask = at < elements
    g = tl.load(gradient + start + at, mask=mask, other=0.0)
    m = tl.load(first + start + at, mask=mask, other=0.0)
    m += rest1 * (g - m)
    s = tl.load(second + start + at, mask=mask, other=0.0) * beta2 + rest2 * g * g
    d = tl.load(occluders + start + at, mask=mask, other=0.0) - step * m / (tl.sqrt(s / correction2) + tiny)
    tl.store(first + start + at, m, mask=mask)
    tl.store(second + start + at, s, mask=mask)
    if LINF:
        d = tl.clamp(d, -epsilon, epsilon, propagate_nan=tl.PropagateNan.ALL)
    else:
        tl.store(sums + tl.program_id(0), tl.sum(tl.where(mask, d * d, 0.0), axis=0))
    tl.store(occluders + start + at, d, mask=mask)


@jit
def _shrink_kernel(
    occluders: tl.tensor,
    sums: tl.tensor,
    elements: tl.tensor,
    epsilon: tl.tensor,
    shortest: tl.tensor,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row, _, start, at = _place(elements, BLOCK)
    squares = _total(sums, row, tl.cdiv(elements, BLOCK), PARTS)
    d = tl.load(occluders + start + at, mask=at < elements, other=0.0)
    tl.store(occluders + start + at, d * _kept_share(squares, epsilon, shortest), mask=at < elements)


# ---- launchers


def _grid(occluders: Tensor) -> tuple[int, int, int]:
    """Elements of an occluder, programs in all, and the parts that a sum over an occluder comes in."""
    elements = math.prod(occluders.shape[1:])
    blocks = -(-elements // _BLOCK)
    return elements, len(occluders) * blocks, power_of_two(blocks)


def _launch_momentum(
    occluders: Tensor, momentum: Tensor, gradient: Tensor, step: float, decay: float, epsilon: float, norm: str
) -> None:
    elements, programs, parts = _grid(occluders)
    how = {"BLOCK": _BLOCK, "num_warps": _WARPS}
    absolute, sums = occluders.new_empty(programs), occluders.new_empty(0 if norm == "linf" else 3 * programs)
    _abs_sum_kernel[(programs,)](gradient, absolute, elements, **how)
    how["PARTS"] = parts
    tensors, numbers = (occluders, momentum, gradient, absolute, sums), (step, decay, epsilon, _TINY)
    _momentum_kernel[(programs,)](*tensors, elements, *numbers, LINF=norm == "linf", **how)
    if norm == "l2":
        _move_l2_kernel[(programs,)](occluders, momentum, sums, elements, step, epsilon, _SHORTEST, **how)


def _launch_adam(
    occluders: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    step: float,
    beta1: float,
    beta2: float,
    corrections: tuple[float, float],
    tiny: float,
    epsilon: float,
    norm: str,
) -> None:
    elements, programs, parts = _grid(occluders)
    how = {"BLOCK": _BLOCK, "num_warps": _WARPS}
    sums = occluders.new_empty(0 if norm == "linf" else programs)
    tensors = (occluders, first, second, gradient, sums)
    # 1 − β is taken in float64: in float32 0.999 is off by enough to show in its difference from 1.
    numbers = (step / corrections[0], 1 - beta1, beta2, 1 - beta2, corrections[1], tiny, epsilon)
    _adam_kernel[(programs,)](*tensors, elements, *numbers, LINF=norm == "linf", **how)
    if norm == "l2":
        _shrink_kernel[(programs,)](occluders, sums, elements, epsilon, _SHORTEST, PARTS=parts, **how)


# ---- registration; what returns nothing needs no fake


@operation("occluder_step", mutates=("occluders", "momentum"))
def _occluder_step(
    occluders: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    step: float,
    decay: float,
    epsilon: float,
    norm: str,
    impl: str,
) -> None:
    chosen, _ = choose_impl(impl, occluders.device)
    if occluders.numel() > 0:
        run = _momentum_reference if chosen == "reference" else _launch_momentum
        run(occluders, momentum, gradient, step, decay, epsilon, norm)


@operation("adam_step", mutates=("occluders", "first", "second"))
def _adam_step(
    occluders: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    step: float,
    count: int,
    beta1: float,
    beta2: float,
    tiny: float,
    epsilon: float,
    norm: str,
    impl: str,
) -> None:
    chosen, _ = choose_impl(impl, occluders.device)
    if occluders.numel() > 0:
        run = _adam_reference if chosen == "reference" else _launch_adam
        corrections = (1 - beta1**count, 1 - beta2**count)
        run(occluders, first, second, gradient, step, beta1, beta2, corrections, tiny, epsilon, norm)


# ---- public


def _check(step: float, epsilon: float, norm: str, **tensors: Tensor) -> None:
    shape = tuple(tensors["occluders"].shape)
    for name, tensor in tensors.items():
        check_tensor(name, tensor, torch.float32, ("K", "H", "W", 3) if name == "occluders" else shape)
    check_same_device(**tensors)
    check_contiguous(**tensors)
    if not (step >= 0 and epsilon > 0):
        raise ValueError(f"expected step ≥ 0 and epsilon > 0, got step={step} epsilon={epsilon}")
    if norm not in NORMS:
        raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")


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
        float32 [K, H, W, 3], of the loss to be lowered. Only its direction matters: it is divided by its mean absolute
        value, so that batches with few unfooled pictures count as much as others.
    step
        α ≥ 0, pixel units: what each pixel moves (l∞), or the length of the step (l2; it fades out with a momentum that
        is shorter than 1e-15).
    decay
        μ in [0, 1).
    epsilon
        > 0, pixel units: the largest |d| of a pixel (l∞), or the largest ‖d‖₂ of an occluder (l2).
    impl
        `auto`, `reference` or `triton`; see `choose_impl`.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device, layout, norm, implementation or number out of range.

    Source: Dong et al., CVPR 2018 (MI-FGSM, equations 6 and 7), over a batch instead of one picture.
    """
    _check(step, epsilon, norm, occluders=occluders, momentum=momentum, gradient=gradient)
    if not 0 <= decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), got {decay}")
    _occluder_step(occluders, momentum, gradient, step, decay, epsilon, norm, impl)


@torch.no_grad()
def adam_step(
    occluders: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    *,
    step: float,
    count: int,
    epsilon: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    tiny: float = 1e-8,
    norm: Norm = "linf",
    impl: str = "auto",
) -> None:
    """Move each occluder one step of Adam against its gradient, and project it onto the ε ball.

    Parameters
    ----------
    occluders
        float32 [K, H, W, 3], pixel units; updated in place.
    first, second
        float32 [K, H, W, 3], the moments of the gradient; updated in place. Start them at zero.
    gradient
        float32 [K, H, W, 3], of the loss to be lowered.
    step
        α ≥ 0, pixel units: about what a pixel moves whose gradient keeps its sign, for either norm.
    count
        ≥ 1, which step this is since the moments were zero.
    epsilon, norm
        The ball, as in `occluder_step`.
    beta1, beta2, tiny
        Decays in [0, 1), and what keeps the division finite, > 0.
    impl
        `auto`, `reference` or `triton`; see `choose_impl`.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device, layout, norm, implementation or number out of range.

    Source: Kingma and Ba, ICLR 2015, algorithm 1.
    """
    _check(step, epsilon, norm, occluders=occluders, first=first, second=second, gradient=gradient)
    if not (count >= 1 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and tiny > 0):
        raise ValueError(
            "expected count ≥ 1, beta1 and beta2 in [0, 1) and tiny > 0, "
            f"got count={count} beta1={beta1} beta2={beta2} tiny={tiny}"
        )
    _adam_step(occluders, first, second, gradient, step, count, beta1, beta2, tiny, epsilon, norm, impl)


# ---- for the table of compiled kernels


def variants() -> Iterator[Variant]:
    """Every form in which the launchers above start these kernels, with the parts of a 224² occluder."""
    for fits, linf in itertools.product((True, False), (True, False)):
        size, norm = "" if fits else ", any size", "linf" if linf else "l2"
        constants = {"BLOCK": _BLOCK, "PARTS": power_of_two(-(-ELEMENTS_224 // _BLOCK)), "LINF": linf}
        # Kernel, its tensors, its numbers, and how often it reads or writes a tensor of an occluder's size.
        parts: list[tuple[Any, str, str, int]] = [
            (_momentum_kernel, "occluders momentum gradient absolute sums", "step decay epsilon tiny", 4 + linf),
            (
                _adam_kernel,
                "occluders first second gradient sums",
                "step rest1 beta2 rest2 correction2 tiny epsilon",
                7,
            ),
        ]
        if linf:
            parts.append((_abs_sum_kernel, "gradient partial", "", 1))
        else:
            parts.append((_move_l2_kernel, "occluders momentum sums", "step epsilon shortest", 3))
            parts.append((_shrink_kernel, "occluders sums", "epsilon shortest", 2))
        for kernel, tensors, numbers, passes in parts:
            arguments = {
                **dict.fromkeys(tensors.split(), "*fp32"),
                **dict.fromkeys(numbers.split(), "fp32"),
                "elements": "i32:16" if fits else "i32",
                **constants,
            }
            moved = 4.0 * passes * ELEMENTS_224
            yield Variant(kernel, f"{norm}{size}", arguments, _WARPS, "occluder", moved, moved)
