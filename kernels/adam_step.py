"""`adam_step`: one step of Adam down the loss and back into the ball of radius ε, in place.

m ← β₁ · m + (1 − β₁) · g,   s ← β₂ · s + (1 − β₂) · g²,   d ← Π(d − α · m̂ / (√ŝ + tiny))
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
    launch_sizes,
    locate,
    project,
    step_variant,
)
from .impl import choose_impl


class _Numbers(NamedTuple):
    step: float
    number: int
    beta1: float
    beta2: float
    tiny: float
    epsilon: float
    norm: Norm

    def corrections(self) -> tuple[float, float]:
        """Return 1 − βᵗ of both moments."""
        return 1 - self.beta1**self.number, 1 - self.beta2**self.number


# ---- reference


def _reference(occluders: Tensor, first: Tensor, second: Tensor, gradient: Tensor, how: _Numbers) -> None:
    correction1, correction2 = how.corrections()
    first.lerp_(gradient, 1 - how.beta1)
    second.mul_(how.beta2).addcmul_(gradient, gradient, value=1 - how.beta2)
    root = (second / correction2).sqrt_().add_(how.tiny)
    occluders.addcdiv_(first, root, value=-how.step / correction1)
    project(occluders, how.epsilon, how.norm)


# ---- kernels


@jit()
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
    """Update both moments and d; in the l2 ball d is not projected yet and the blocks' sums of d·d are written."""
    _, _, start, at = locate(elements, BLOCK)
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


@jit()
def _shrink_kernel(
    occluders: tl.tensor,
    sums: tl.tensor,
    elements: tl.tensor,
    epsilon: tl.tensor,
    shortest: tl.tensor,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Project d onto the l2 ball."""
    row, _, start, at = locate(elements, BLOCK)
    squares = add_up(sums, row, tl.cdiv(elements, BLOCK), PARTS)
    d = tl.load(occluders + start + at, mask=at < elements, other=0.0)
    tl.store(occluders + start + at, d * kept_share(squares, epsilon, shortest), mask=at < elements)


# ---- launcher


def _launch(occluders: Tensor, first: Tensor, second: Tensor, gradient: Tensor, how: _Numbers) -> None:
    (elements, count, parts), linf = launch_sizes(occluders), how.norm == "linf"
    options: dict[str, Any] = {"BLOCK": BLOCK, "num_warps": WARPS}
    sums = occluders.new_empty(0 if linf else count)
    tensors, (correction1, correction2) = (occluders, first, second, gradient, sums), how.corrections()
    # 1 − β is computed in float64: the rounding of 0.999 to float32 would show in its difference from 1.
    rates = (how.step / correction1, 1 - how.beta1, how.beta2, 1 - how.beta2)
    numbers = (*rates, correction2, how.tiny, how.epsilon)
    _adam_kernel[(count,)](*tensors, elements, *numbers, LINF=linf, **options)
    if not linf:
        _shrink_kernel[(count,)](occluders, sums, elements, how.epsilon, SHORTEST, PARTS=parts, **options)


# ---- public


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
        float32 [K, H, W, 3], of the loss to minimise.
    step
        α ≥ 0, pixel units: about what a pixel moves whose gradient keeps its sign, for either norm.
    count
        ≥ 1, the number of this step since the moments were zero.
    epsilon, norm
        The ball, as in `momentum_step`.
    beta1, beta2, tiny
        Decays in [0, 1), and a term > 0 that keeps the division finite.
    impl
        `auto`, `reference` or `triton`; see `choose_impl`.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device, layout, norm, implementation or number out of range.

    Source: Kingma and Ba, ICLR 2015, algorithm 1.
    """
    check_step(step, epsilon, norm, occluders=occluders, first=first, second=second, gradient=gradient)
    if not (count >= 1 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and tiny > 0):
        raise ValueError(
            "expected count ≥ 1, beta1 and beta2 in [0, 1) and tiny > 0, "
            f"got count={count} beta1={beta1} beta2={beta2} tiny={tiny}"
        )
    chosen, _ = choose_impl(impl, occluders.device)
    if occluders.numel() > 0:
        run = _reference if chosen == "reference" else _launch
        run(occluders, first, second, gradient, _Numbers(step, count, beta1, beta2, tiny, epsilon, norm))


# ---- for the table of compiled kernels


def variants() -> Iterator[Variant]:
    """Yield every form in which the launcher above starts these kernels."""
    for fits, norm in itertools.product((True, False), NORMS):
        tensors, numbers = "occluders first second gradient sums", "step rest1 beta2 rest2 correction2 tiny epsilon"
        yield step_variant(_adam_kernel, tensors, numbers, 7, norm, fits)
    for fits in (True, False):
        yield step_variant(_shrink_kernel, "occluders sums", "epsilon shortest", 2, "l2", fits)
