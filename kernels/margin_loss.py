"""`margin_loss`: the Carlini-Wagner margin with confidence κ, which the occluders minimise.

    loss[p] = |w| · max(sign(w) · (z_c − max_{j ≠ c} z_j), −κ)      w = weight[p], 1 where there is none

A positive weight takes the label's evidence out, a negative one keeps it: for pictures of other classes, which an
occluder is to leave alone. The logits are read once: the first pass finds loss and rival, the gradient needs no more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ._checks import check_contiguous, check_index, check_logits, check_same_device, check_tensor
from ._operation import operation
from ._triton import CLASSES_SHOWN, SHORT_NAMES, Variant, jit, row_block, tl
from .impl import choose_impl

# ---- reference


def _reference_loss(
    logits: Tensor, labels: Tensor, weight: Tensor | None, kappa: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, float32 [P], the margin before the clamp, and the first other class that is the largest, int64 [P].

    Differentiable: autograd's gradient of the loss is `_reference_gradient`.
    """
    rival = logits.detach().scatter(1, labels[:, None], float("-inf")).argmax(dim=1)
    rival += rival == labels  # label 0, and all others are −∞
    own, best = logits.gather(1, torch.stack([labels, rival], dim=1)).float().unbind(1)
    margin = own - best
    if weight is not None:
        margin = margin * weight.sign()
    loss = margin.clamp_min(-kappa)
    return loss if weight is None else loss * weight.abs(), margin, rival


def _reference(logits: Tensor, labels: Tensor, weight: Tensor | None, kappa: float) -> tuple[Tensor, Tensor]:
    loss, margin, rival = _reference_loss(logits, labels, weight, kappa)
    return loss, rival.masked_fill_(~(margin > -kappa), -1)  # NaN is not above −κ


def _reference_gradient(grad: Tensor, labels: Tensor, rival: Tensor, weight: Tensor | None, gradient: Tensor) -> Tensor:
    pull = grad.masked_fill(rival < 0, 0.0)
    pull = (pull if weight is None else pull.mul_(weight)).to(gradient.dtype)[:, None]
    # The label last: where there is no rival, its place is class 0, which may be the label.
    return gradient.zero_().scatter_(1, rival.clamp_min(0)[:, None], -pull).scatter_(1, labels[:, None], pull)


# ---- kernels, a program a row


@jit
def _margin_kernel(
    logits: tl.tensor,
    labels: tl.tensor,
    weight: tl.tensor,
    loss: tl.tensor,
    rival: tl.tensor,
    kappa: tl.tensor,
    WEIGHTED: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    here = logits + row * CLASSES
    label = tl.load(labels + row)
    best, broken = tl.full((), float("-inf"), tl.float32), tl.full((), 0, tl.int32)
    at = tl.where(label == 0, 1, 0)  # stays where all others are −∞
    for start in range(0, CLASSES, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(here + column, mask=column < CLASSES, other=float("-inf")).to(tl.float32)
        highest, place = tl.max(tl.where(column == label, float("-inf"), z), axis=0, return_indices=True)
        at = tl.where(highest > best, start + place, at)  # the first of equals
        best = tl.maximum(best, highest)
        broken = tl.maximum(broken, tl.max((z != z).to(tl.int32), axis=0))  # the maximum passes NaN over
    margin = tl.where(broken > 0, float("nan"), tl.load(here + label).to(tl.float32) - best)
    size = 1.0
    if WEIGHTED:
        w = tl.load(weight + row)
        margin *= tl.where(w > 0, 1.0, tl.where(w < 0, -1.0, 0.0))
        size = tl.abs(w)
    tl.store(loss + row, size * tl.maximum(margin, -kappa, propagate_nan=tl.PropagateNan.ALL))
    tl.store(rival + row, tl.where(margin > -kappa, at, -1).to(tl.int64))


@jit
def _margin_gradient_kernel(
    grad: tl.tensor,
    labels: tl.tensor,
    rival: tl.tensor,
    weight: tl.tensor,
    gradient: tl.tensor,
    WEIGHTED: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    label, other = tl.load(labels + row), tl.load(rival + row)
    pull = tl.load(grad + row)
    if WEIGHTED:
        pull *= tl.load(weight + row)
    pull = tl.where(other < 0, 0.0, pull)
    for start in range(0, CLASSES, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.where(column == label, pull, tl.where(column == other, -pull, 0.0))
        tl.store(gradient + row * CLASSES + column, value.to(gradient.dtype.element_ty), mask=column < CLASSES)


# ---- launchers


def _how(classes: int, weight: Tensor | None) -> dict[str, Any]:
    block, warps = row_block(classes)
    return {"WEIGHTED": weight is not None, "CLASSES": classes, "BLOCK": block, "num_warps": warps}


def _launch(logits: Tensor, labels: Tensor, weight: Tensor | None, kappa: float) -> tuple[Tensor, Tensor]:
    loss, rival = logits.new_empty(len(logits), dtype=torch.float32), torch.empty_like(labels)
    how = _how(logits.shape[1], weight)
    # Where there is no weight nothing reads this argument.
    _margin_kernel[(len(logits),)](logits, labels, loss if weight is None else weight, loss, rival, kappa, **how)
    return loss, rival


def _launch_gradient(grad: Tensor, labels: Tensor, rival: Tensor, weight: Tensor | None, gradient: Tensor) -> Tensor:
    how = _how(gradient.shape[1], weight)
    _margin_gradient_kernel[(len(gradient),)](grad, labels, rival, grad if weight is None else weight, gradient, **how)
    return gradient


# ---- registration


@operation("margin_loss")
def _margin_loss(
    logits: Tensor, labels: Tensor, weight: Tensor | None, kappa: float, impl: str, validate: bool
) -> tuple[Tensor, Tensor]:
    """Loss, float32 [P], and the rival: the first class that reaches the maximum, int64 [P], −1 without a gradient."""
    if validate:
        check_index("labels", labels, logits.shape[1])
    chosen, _ = choose_impl(impl, logits.device)
    return (_reference if chosen == "reference" or len(logits) == 0 else _launch)(logits, labels, weight, kappa)


@_margin_loss.register_fake
def _(
    logits: Tensor, labels: Tensor, weight: Tensor | None, kappa: float, impl: str, validate: bool
) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[0], dtype=torch.float32), torch.empty_like(labels)


@operation("margin_loss_backward")
def _margin_loss_backward(
    grad: Tensor,
    labels: Tensor,
    rival: Tensor,
    weight: Tensor | None,
    classes: int,
    dtype: torch.dtype,
    impl: str,
) -> Tensor:
    chosen, _ = choose_impl(impl, grad.device)
    gradient = grad.new_empty(grad.shape[0], classes, dtype=dtype)
    run = _reference_gradient if chosen == "reference" or len(grad) == 0 else _launch_gradient
    return run(grad.contiguous(), labels, rival, weight, gradient)


@_margin_loss_backward.register_fake
def _(
    grad: Tensor,
    labels: Tensor,
    rival: Tensor,
    weight: Tensor | None,
    classes: int,
    dtype: torch.dtype,
    impl: str,
) -> Tensor:
    return grad.new_empty(grad.shape[0], classes, dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, labels, weight, _, ctx.impl, _ = inputs
    ctx.classes, ctx.dtype = logits.shape[1], logits.dtype
    ctx.save_for_backward(labels, output[1], weight)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient = _margin_loss_backward(grad, *ctx.saved_tensors, ctx.classes, ctx.dtype, ctx.impl)
    return gradient, None, None, None, None, None


_margin_loss.register_autograd(_backward, _setup_context)


# ---- public


def margin_loss(
    logits: Tensor,
    labels: Tensor,
    kappa: float,
    *,
    weight: Tensor | None = None,
    impl: str = "auto",
    validate: bool = True,
) -> Tensor:
    """How far each picture still is from being fooled with confidence κ.

    Parameters
    ----------
    logits
        float32, bfloat16 or float16 [P, C], C ≥ 2. Differentiable.
    labels
        int64 [P], the class whose evidence is to vanish, in 0 … C − 1.
    kappa
        ≥ 0, in logit units. A picture that is wrong by more than κ has loss −κ and no gradient.
    weight
        float32 [P]: how much a picture counts. Negative for a picture whose label is to stay: it has loss −|w| · κ and
        no gradient where it is right by more than κ.
    impl
        `auto`, `reference` or `triton`; see `choose_impl`.
    validate
        Whether the labels are checked; on a GPU the check waits for it.

    Returns
    -------
    Tensor
        float32 [P]. Where several other classes tie for the largest logit, the gradient goes to the first. A NaN logit
        makes the loss NaN and has no gradient.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device, layout, label or implementation, a negative κ.

    Source: Carlini and Wagner, IEEE S&P 2017, f₆; reference S1 of Wu et al., CVPR 2020, supplementary.
    """
    if not kappa >= 0:
        raise ValueError(f"kappa: expected a number ≥ 0, got {kappa}")
    check_logits(logits, labels)
    if weight is not None:
        check_tensor("weight", weight, torch.float32, (logits.shape[0],))
        check_same_device(logits=logits, weight=weight)
        check_contiguous(weight=weight)
    if _margin_loss.straight(logits) and choose_impl(impl, logits.device)[0] == "reference":
        # Autograd's own way back costs half of an operation's with its gradient in Python.
        if validate:
            check_index("labels", labels, logits.shape[1])
        return _reference_loss(logits, labels, weight, kappa)[0]
    return _margin_loss(logits, labels, weight, kappa, impl, validate)[0]


# ---- for the table of compiled kernels


def variants() -> Iterator[Variant]:
    """Every form in which the launchers above start these kernels, for 10, 1,000 and 21,841 classes."""
    for (dtype, name), classes, weighted in itertools.product(SHORT_NAMES.items(), CLASSES_SHOWN, (False, True)):
        block, warps = row_block(classes)
        constants = {"WEIGHTED": weighted, "CLASSES": classes, "BLOCK": block}
        rows = {"labels": "*i64", "rival": "*i64", "weight": "*fp32"}
        title = f"{name}, {classes} classes{', weighted' if weighted else ''}"
        moved = float(classes * dtype.itemsize)
        arguments = {"logits": f"*{name}", "loss": "*fp32", "kappa": "fp32", **rows, **constants}
        yield Variant(_margin_kernel, title, arguments, warps, "row", moved, moved)
        arguments = {"grad": "*fp32", "gradient": f"*{name}", **rows, **constants}
        yield Variant(_margin_gradient_kernel, title, arguments, warps, "row", moved, moved)
