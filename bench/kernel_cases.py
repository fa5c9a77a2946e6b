"""What the kernel benchmark compares: every operation, and the straightforward formula that it replaces.

The formulas are what one writes first in eager PyTorch, straight from the paper. The data are synthetic and seeded:
uniform noise for pictures, normal noise for logits. Their values decide no branch that would cost time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from ..kernels.margin_loss import margin_loss
from ..kernels.occlude import occlude, occlude_grid
from ..kernels.occluder_step import adam_step, occluder_step
from ..kernels.score import score

Results: TypeAlias = tuple[Tensor, ...]
Function: TypeAlias = Callable[..., Any]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SCALE, _SHIFT = [1 / (255 * s) for s in _STD], [-m / s for m, s in zip(_MEAN, _STD, strict=True)]
_EPSILON, _STEP, _DECAY, _KAPPA = 10.0, 1.0, 0.9, 3.0
_BETA1, _BETA2, _TINY, _COUNT = 0.9, 0.999, 1e-8, 100
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Sizes:
    """Of the data: pictures of `size`² pixels, `pairs` of a picture and an occluder or rows of logits, `occluders`,
    `classes`.
    """

    size: int = 224
    pairs: int = 64
    occluders: int = 8
    classes: int = 1000

    @property
    def grid_pictures(self) -> int:
        """Pictures of a grid of about `pairs` pairs."""
        return max(1, self.pairs // self.occluders)


@dataclass(frozen=True)
class Case:
    """One operation on given data.

    Attributes
    ----------
    kernel, precision, sizes
        What it is called, and what one call is given.
    unit, work
        What is counted a second, and how many of it a call does.
    minimum
        Bytes if every input were read and every result written once.
    rounding
        How far results may differ: in units of 2⁻²³ of the largest value, besides one rounding to half precision.
    pictures, occluders
        How many there are; None where the operation sees none.
    operation
        Given an implementation: the call of the shipped operation. What it updates in place is its own copy, and its
        results are good until the next call.
    formula
        Given what is done to a function first (nothing, or `torch.compile`): the call of the straightforward formula.
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


# ---- the straightforward formulas; rows is the bank with a row of zeros first, for the clean picture


def occlude_formula(
    images: Tensor,
    rows: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    scale: Tensor,
    shift: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """As `occlude`: [P, 3, H, W]."""
    occluded = (images[image_index].float() + rows[occluder_index]).clamp(0, 255)
    return (occluded * scale + shift).permute(0, 3, 1, 2).to(dtype)


def occlude_grid_formula(
    images: Tensor,
    rows: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    scale: Tensor,
    shift: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """As `occlude_grid`: [I · J, 3, H, W]."""
    occluded = (images[image_index].float()[:, None] + rows[occluder_index]).clamp(0, 255)
    return (occluded * scale + shift).flatten(0, 1).permute(0, 3, 1, 2).to(dtype)


def margin_formula(logits: Tensor, labels: Tensor) -> Tensor:
    """As `margin_loss`: [P]."""
    column = labels[:, None]
    others = logits.scatter(1, column, float("-inf"))
    return (logits.gather(1, column)[:, 0] - others.max(dim=1).values).clamp(min=-_KAPPA)


def score_formula(logits: Tensor, labels: Tensor) -> Results:
    """As `score`: prediction, rank and margin, each [P]."""
    values, order = logits.sort(dim=1, descending=True, stable=True)
    rank = (order == labels[:, None]).int().argmax(dim=1)
    best_other = torch.where(rank == 0, values[:, 1], values[:, 0])
    return logits.argmax(dim=1), rank, logits.gather(1, labels[:, None])[:, 0] - best_other


def momentum_formula(occluders: Tensor, momentum: Tensor, gradient: Tensor) -> Results:
    """As `occluder_step`: the new occluders and momentum."""
    momentum = _DECAY * momentum + gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
    return (occluders - _STEP * momentum.sign()).clamp(-_EPSILON, _EPSILON), momentum


def adam_formula(occluders: Tensor, first: Tensor, second: Tensor, gradient: Tensor) -> Results:
    """As `adam_step`: the new occluders and moments."""
    first = _BETA1 * first + (1 - _BETA1) * gradient
    second = _BETA2 * second + (1 - _BETA2) * gradient**2
    update = first / (1 - _BETA1**_COUNT) / ((second / (1 - _BETA2**_COUNT)).sqrt() + _TINY)
    return (occluders - _STEP * update).clamp(-_EPSILON, _EPSILON), first, second


# ---- the cases


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _validate(device: str) -> bool:
    return device == "cpu"  # on a GPU the check waits for it, and the engine does it on the CPU


def _pictures(sizes: Sizes, device: str, grid: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures, rows (the bank behind a row of zeros), and the two lists."""
    g, shape = _generator(), (sizes.size, sizes.size, 3)
    pictures = sizes.grid_pictures if grid else sizes.pairs
    images = torch.randint(0, 256, (pictures, *shape), dtype=torch.uint8, generator=g)
    # In steps of 1/128, and never a whole number: x + d is exact and never on a bound, where autograd's clamp differs.
    steps = torch.randint(-128 * int(_EPSILON), 128 * int(_EPSILON), (sizes.occluders, *shape), generator=g)
    rows = torch.cat([torch.zeros(1, *shape), (steps + 0.5) / 128])
    occluder_index = torch.randint(0, sizes.occluders + 1, (sizes.occluders if grid else pictures,), generator=g)
    image_index = torch.randperm(pictures, generator=g)
    return images.to(device), rows.to(device), image_index.to(device), occluder_index.to(device)


def occlude_case(sizes: Sizes, device: str, precision: str, grid: bool = False) -> Case:
    """`occlude` on a batch of different pictures, or `occlude_grid` on fewer under each of some occluders."""
    dtype = _PRECISIONS[precision]
    images, rows, image_index, occluder_index = _pictures(sizes, device, grid)
    bank, (scale, shift) = rows[1:], (torch.tensor(numbers, device=device) for numbers in (_SCALE, _SHIFT))
    run, formula = (occlude_grid, occlude_grid_formula) if grid else (occlude, occlude_formula)
    how = {"scale": _SCALE, "shift": _SHIFT, "dtype": dtype, "validate": _validate(device)}
    tensors, pairs = (image_index, occluder_index), len(images) * (sizes.occluders if grid else 1)
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
        operation=lambda impl: lambda: (run(images, bank, *tensors, **how, impl=impl),),
        formula=lambda wrap: functools.partial(_one, wrap(formula), images, rows, *tensors, scale, shift, dtype),
    )


def _one(function: Function, *arguments: Any) -> Results:
    return (function(*arguments),)


def gradient_case(sizes: Sizes, device: str, precision: str) -> Case:
    """`occlude` and its gradient of the bank, as a training step has them; the formula through autograd."""
    dtype = _PRECISIONS[precision]
    images, rows, *tensors = _pictures(sizes, device, grid=False)
    bank, (scale, shift) = rows[1:].clone(), (torch.tensor(numbers, device=device) for numbers in (_SCALE, _SHIFT))
    bank.requires_grad_()
    rows.requires_grad_()
    upstream = torch.randn(images.shape, generator=_generator()).to(device, dtype).permute(0, 3, 1, 2)
    how = {"scale": _SCALE, "shift": _SHIFT, "dtype": dtype, "validate": _validate(device)}

    def operation(impl: str) -> Callable[[], Results]:
        return lambda: torch.autograd.grad(occlude(images, bank, *tensors, **how, impl=impl), bank, upstream)

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


def _logits(sizes: Sizes, device: str) -> tuple[Tensor, Tensor]:
    g = _generator()
    logits = torch.randn(sizes.pairs, sizes.classes, generator=g)
    return logits.to(device), torch.randint(0, sizes.classes, (sizes.pairs,), generator=g).to(device)


def margin_case(sizes: Sizes, device: str) -> Case:
    """`margin_loss` and its gradient of the logits."""
    logits, labels = _logits(sizes, device)
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
        operation=lambda impl: lambda: both(margin_loss(logits, labels, _KAPPA, impl=impl, validate=_validate(device))),
        formula=formula,
    )


def score_case(sizes: Sizes, device: str) -> Case:
    """`score`."""
    logits, labels = _logits(sizes, device)
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


def _state(sizes: Sizes, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Occluders, momentum, second moment, gradient."""
    g, shape = _generator(), (sizes.occluders, sizes.size, sizes.size, 3)
    occluders, gradient = (torch.rand(shape, generator=g) * 2 - 1) * _EPSILON, torch.randn(shape, generator=g)
    # A momentum of the gradient's own sign: where the two cancel, the sign of the sum would be one of rounding.
    momentum, second = gradient * torch.rand(shape, generator=g), torch.rand(shape, generator=g) + 0.5
    return occluders.to(device), momentum.to(device), second.to(device), gradient.to(device)


def _step_case(
    kernel: str, sizes: Sizes, formula: Function, given: Results, operation: Callable[[str], Callable[[], Results]]
) -> Case:
    # All that is given is read, and all of it but the gradient is written.
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
    """`occluder_step` in the l∞ ball."""
    occluders, momentum, _, gradient = _state(sizes, device)

    def operation(impl: str) -> Callable[[], Results]:
        own = occluders.clone(), momentum.clone()

        def call() -> Results:
            occluder_step(own[0], own[1], gradient, step=_STEP, decay=_DECAY, epsilon=_EPSILON, impl=impl)
            return own

        return call

    return _step_case("occluder_step", sizes, momentum_formula, (occluders, momentum, gradient), operation)


def adam_case(sizes: Sizes, device: str) -> Case:
    """`adam_step` in the l∞ ball."""
    occluders, first, second, gradient = _state(sizes, device)

    def operation(impl: str) -> Callable[[], Results]:
        own = occluders.clone(), first.clone(), second.clone()

        def call() -> Results:
            adam_step(
                *(own[0], own[1], own[2], gradient),
                step=_STEP,
                count=_COUNT,
                epsilon=_EPSILON,
                beta1=_BETA1,
                beta2=_BETA2,
                tiny=_TINY,
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
