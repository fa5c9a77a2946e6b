"""What the kernel benchmark compares: every operation, and the straightforward formula that it replaces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from ..kernels.adam_step import adam_step
from ..kernels.margin_loss import margin_loss
from ..kernels.momentum_step import momentum_step
from ..kernels.occlude import Normalisation, occlude
from ..kernels.pairs import Grid, Pairs
from ..kernels.score import score
from .kernel_data import Sizes, generator, logits_and_labels, optimizer_state, pictures_and_rows
from .kernel_formulas import (
    BETA1,
    BETA2,
    COUNT,
    DECAY,
    EPSILON,
    KAPPA,
    STEP,
    TINY,
    Results,
    adam_formula,
    margin_formula,
    momentum_formula,
    occlude_formula,
    occlude_grid_formula,
    score_formula,
)

Function: TypeAlias = Callable[..., Any]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SCALE, _SHIFT = [1 / (255 * s) for s in _STD], [-m / s for m, s in zip(_MEAN, _STD, strict=True)]
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One operation on given data.

    Attributes
    ----------
    kernel, precision, sizes
        Its name, and what one call takes.
    unit, work
        What is counted a second, and how many of them a call does.
    minimum
        Bytes if every input were read and every result written once.
    rounding
        How far results may differ: in units of 2⁻²³ of the largest value, besides one rounding to half precision.
    pictures, occluders
        How many there are; None where the operation takes none.
    operation
        Maps an implementation to a call of the shipped operation. What it updates in place is its own copy, and its
        results hold until the next call.
    formula
        Maps what is done to a function first (nothing, or `torch.compile`) to a call of the straightforward formula.
    """

    kernel: str
    precision: str
    sizes: str
    unit: str
    work: int
    minimum: int
    rounding: int
    pictures: int | None
    occluders: int | None
    operation: Callable[[str], Callable[[], Results]]
    formula: Callable[[Callable[[Function], Function]], Callable[[], Results]]


def _validate(device: str) -> bool:
    return device == "cpu"  # on a GPU the check waits for it, and the engine does it on the CPU


def occlude_case(sizes: Sizes, device: str, precision: str, grid: bool = False) -> Case:
    """Make the case of `occlude` on different pictures, or on a grid of fewer, each under some occluders."""
    dtype = _PRECISIONS[precision]
    images, rows, *tensors = pictures_and_rows(sizes, device, grid)
    bank, (scale, shift) = rows[1:], (torch.tensor(numbers, device=device) for numbers in (_SCALE, _SHIFT))
    kind, formula = (Grid, occlude_grid_formula) if grid else (Pairs, occlude_formula)
    met, how, validate = kind(images, bank, *tensors), Normalisation(_SCALE, _SHIFT, dtype), _validate(device)
    pairs = len(images) * (sizes.occluders if grid else 1)
    return Case(
        kernel="occlude_grid" if grid else "occlude",
        precision=precision,
        sizes=f"{len(images)} × {sizes.occluders} pairs, {sizes.size}²" if grid else f"{pairs} pairs, {sizes.size}²",
        unit="pairs/s",
        work=pairs,
        minimum=images.nbytes + bank.nbytes + pairs * images[0].numel() * dtype.itemsize,
        rounding=8,
        pictures=len(images),
        occluders=sizes.occluders,
        operation=lambda impl: lambda: (occlude(met, how, impl=impl, validate=validate),),
        formula=lambda wrap: functools.partial(_one, wrap(formula), images, rows, *tensors, scale, shift, dtype),
    )


def _one(function: Function, *arguments: Any) -> Results:
    return (function(*arguments),)


def gradient_case(sizes: Sizes, device: str, precision: str) -> Case:
    """Make the case of `occlude` and its gradient of the bank, as in a training step; the formula uses autograd."""
    dtype = _PRECISIONS[precision]
    images, rows, *tensors = pictures_and_rows(sizes, device, grid=False)
    bank, (scale, shift) = rows[1:].clone(), (torch.tensor(numbers, device=device) for numbers in (_SCALE, _SHIFT))
    bank.requires_grad_()
    rows.requires_grad_()
    upstream = torch.randn(images.shape, generator=generator()).to(device, dtype).permute(0, 3, 1, 2)
    pairs, how, validate = Pairs(images, bank, *tensors), Normalisation(_SCALE, _SHIFT, dtype), _validate(device)

    def operation(impl: str) -> Callable[[], Results]:
        return lambda: torch.autograd.grad(occlude(pairs, how, impl=impl, validate=validate), bank, upstream)

    def formula(wrap: Callable[[Function], Function]) -> Callable[[], Results]:
        forward = wrap(occlude_formula)

        def call() -> Results:
            (gradient,) = torch.autograd.grad(forward(images, rows, *tensors, scale, shift, dtype), rows, upstream)
            return (gradient[1:],)

        return call

    return Case(
        kernel="occlude + gradient",
        precision=precision,
        sizes=f"{sizes.pairs} pairs, {sizes.size}²",
        unit="pairs/s",
        work=sizes.pairs,
        minimum=2 * (images.nbytes + bank.nbytes + upstream.nbytes) + bank.nbytes,
        rounding=2 * sizes.pairs + 8,  # as many terms may be added up in another order
        pictures=len(images),
        occluders=sizes.occluders,
        operation=operation,
        formula=formula,
    )


def margin_case(sizes: Sizes, device: str) -> Case:
    """Make the case of `margin_loss` and its gradient of the logits."""
    logits, labels = logits_and_labels(sizes, device)
    logits.requires_grad_()

    def both(loss: Tensor) -> Results:
        return loss.detach(), *torch.autograd.grad(loss.sum(), logits)

    def formula(wrap: Callable[[Function], Function]) -> Callable[[], Results]:
        forward = wrap(margin_formula)
        return lambda: both(forward(logits, labels))

    return Case(
        kernel="margin_loss + gradient",
        precision="fp32",
        sizes=f"{sizes.pairs} × {sizes.classes} logits",
        unit="pairs/s",
        work=sizes.pairs,
        minimum=2 * logits.nbytes,
        rounding=4,
        pictures=None,
        occluders=None,
        operation=lambda impl: lambda: both(margin_loss(logits, labels, KAPPA, impl=impl, validate=_validate(device))),
        formula=formula,
    )


def score_case(sizes: Sizes, device: str) -> Case:
    """Make the case of `score`."""
    logits, labels = logits_and_labels(sizes, device)
    return Case(
        kernel="score",
        precision="fp32",
        sizes=f"{sizes.pairs} × {sizes.classes} logits",
        unit="pairs/s",
        work=sizes.pairs,
        minimum=logits.nbytes,
        rounding=4,
        pictures=None,
        occluders=None,
        operation=lambda impl: lambda: tuple(score(logits, labels, impl=impl, validate=_validate(device))),
        formula=lambda wrap: functools.partial(wrap(score_formula), logits, labels),
    )


def _step_case(
    kernel: str, sizes: Sizes, formula: Function, given: Results, operation: Callable[[str], Callable[[], Results]]
) -> Case:
    # All tensors are read, and all but the gradient are written.
    return Case(
        kernel=kernel,
        precision="fp32",
        sizes=f"{sizes.occluders} occluders, {sizes.size}²",
        unit="occluders/s",
        work=sizes.occluders,
        minimum=(2 * len(given) - 1) * given[0].nbytes,
        rounding=16,
        pictures=None,
        occluders=sizes.occluders,
        operation=operation,
        formula=lambda wrap: functools.partial(wrap(formula), *given),
    )


def momentum_case(sizes: Sizes, device: str) -> Case:
    """Make the case of `momentum_step` in the l∞ ball."""
    occluders, momentum, _, gradient = optimizer_state(sizes, device)

    def operation(impl: str) -> Callable[[], Results]:
        own = occluders.clone(), momentum.clone()

        def call() -> Results:
            momentum_step(own[0], own[1], gradient, step=STEP, decay=DECAY, epsilon=EPSILON, impl=impl)
            return own

        return call

    return _step_case("momentum_step", sizes, momentum_formula, (occluders, momentum, gradient), operation)


def adam_case(sizes: Sizes, device: str) -> Case:
    """Make the case of `adam_step` in the l∞ ball."""
    occluders, first, second, gradient = optimizer_state(sizes, device)

    def operation(impl: str) -> Callable[[], Results]:
        own = occluders.clone(), first.clone(), second.clone()

        def call() -> Results:
            adam_step(
                *(own[0], own[1], own[2], gradient),
                step=STEP,
                count=COUNT,
                epsilon=EPSILON,
                beta1=BETA1,
                beta2=BETA2,
                tiny=TINY,
                impl=impl,
            )
            return own

        return call

    return _step_case("adam_step", sizes, adam_formula, (occluders, first, second, gradient), operation)


CASES: Final[tuple[Callable[[Sizes, str], Case], ...]] = (
    *(functools.partial(occlude_case, precision=precision) for precision in _PRECISIONS),
    *(functools.partial(occlude_case, precision=precision, grid=True) for precision in _PRECISIONS),
    *(functools.partial(gradient_case, precision=precision) for precision in _PRECISIONS),
    margin_case,
    momentum_case,
    adam_case,
    score_case,
)
"""Each makes its data on a device, `cpu` or `cuda`, when it is called."""
