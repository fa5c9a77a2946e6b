"""`margin_loss`: the Carlini-Wagner margin with confidence κ, which training minimises over the occluders.

    loss[p] = |w| · max(sign(w) · (z_c − max_{j ≠ c} z_j), −κ)      w = weight[p], 1 without weights

A positive weight removes the evidence for the label. A negative one preserves it, for pictures of other classes, which
an occluder should not affect. The kernel reads the logits once; the gradient needs only the rival that it found.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._checks import check_contiguous, check_index, check_logits, check_same_device, check_tensor
from ._triton import CLASSES_SHOWN, SHORT_NAMES, Variant, jit, row_block, tl
from .impl import choose_impl

# ---- reference


def _reference(logits: Tensor, labels: Tensor, weight: Tensor | None, kappa: float) -> Tensor:
    """Compute the loss, float32 [P], by operations that autograd differentiates."""
    rival = logits.detach().scatter(1, labels[:, None], float("-inf")).argmax(dim=1)
    rival += rival == labels  # only for label 0 where all others are −∞
    own, best = logits.gather(1, torch.stack([labels, rival], dim=1)).float().unbind(1)
    margin = own - best
    if weight is not None:
        margin = margin * weight.sign()
    # Not a clamp, whose gradient at its bound has changed between versions of PyTorch.
    loss = torch.where(margin > -kappa, margin, margin.detach().clamp_min(-kappa))
    return loss if weight is None else loss * weight.abs()


# ---- kernels, one program per row


@jit()
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
    at = tl.where(label == 0, 1, 0)  # kept where all others are −∞
    for start in range(0, CLASSES, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(here + column, mask=column < CLASSES, other=float("-inf")).to(tl.float32)
        highest, place = tl.max(tl.where(column == label, float("-inf"), z), axis=0, return_indices=True)
        at = tl.where(highest > best, start + place, at)  # the first of equals
        best = tl.maximum(best, highest)
        broken = tl.maximum(broken, tl.max((z != z).to(tl.int32), axis=0))  # tl.max ignores NaN
    margin = tl.where(broken > 0, float("nan"), tl.load(here + label).to(tl.float32) - best)
    size = 1.0
    if WEIGHTED:
        w = tl.load(weight + row)
        margin *= tl.where(w > 0, 1.0, tl.where(w < 0, -1.0, 0.0))
        size = tl.abs(w)
    tl.store(loss + row, size * tl.maximum(margin, -kappa, propagate_nan=tl.PropagateNan.ALL))
    tl.store(rival + row, tl.where(margin > -kappa, at, -1).to(tl.int64))


@jit()
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
    # Without weights the kernel does not read its argument.
    _margin_kernel[(len(logits),)](logits, labels, loss if weight is None else weight, loss, rival, kappa, **how)
    return loss, rival


def _launch_gradient(grad: Tensor, labels: Tensor, rival: Tensor, weight: Tensor | None, gradient: Tensor) -> Tensor:
    how = _how(gradient.shape[1], weight)
    _margin_gradient_kernel[(len(gradient),)](grad, labels, rival, grad if weight is None else weight, gradient, **how)
    return gradient


# ---- autograd


class _MarginLoss(torch.autograd.Function):
    """The loss by the kernels; `rival` is the first class that reaches the maximum, −1 where there is no gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, weight: Tensor | None, kappa: float) -> Tensor:
        loss, rival = _launch(logits, labels, weight, kappa)
        ctx.classes, ctx.dtype = logits.shape[1], logits.dtype
        ctx.save_for_backward(labels, rival, weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (grad,), (labels, rival, weight) = grads, ctx.saved_tensors
        gradient = grad.new_empty(len(grad), ctx.classes, dtype=ctx.dtype)
        return _launch_gradient(grad.contiguous(), labels, rival, weight, gradient), None, None, None


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
    """Compute how far each picture still is from being misclassified with confidence κ.

    Parameters
    ----------
    logits
        float32, bfloat16 or float16 [P, C], C ≥ 2. Differentiable.
    labels
        int64 [P], the class whose evidence is to be removed, in 0 … C − 1.
    kappa
        ≥ 0, in logit units. A picture that is misclassified by more than κ has loss −κ and no gradient.
    weight
        float32 [P], the weight of each picture. Negative for a picture whose label is to be preserved: it has loss
        −|w| · κ and no gradient where it is classified correctly by more than κ.
    impl
        `auto`, `reference` or `triton`; see `choose_impl`.
    validate
        Whether to check the range of the labels, which on a GPU waits for it.

    Returns
    -------
    Tensor
        float32 [P]. Where several other classes tie for the largest logit, the gradient goes to the first. A NaN logit
        makes the loss of its row NaN and the gradient zero.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device, layout, label or implementation, or a negative κ.

    Source: Carlini and Wagner, IEEE S&P 2017, f₆; reference S1 of Wu et al., CVPR 2020, supplementary.
    """
    if not kappa >= 0:
        raise ValueError(f"kappa: expected a number ≥ 0, got {kappa}")
    check_logits(logits, labels)
    if weight is not None:
        check_tensor("weight", weight, torch.float32, (logits.shape[0],))
        check_same_device(logits=logits, weight=weight)
        check_contiguous(weight=weight)
    chosen, _ = choose_impl(impl, logits.device)
    if validate:
        check_index("labels", labels, logits.shape[1])
    if chosen == "reference" or len(logits) == 0:
        return _reference(logits, labels, weight, kappa)
    return _MarginLoss.apply(logits, labels, weight, kappa)


# ---- for the table of compiled kernels


def variants() -> Iterator[Variant]:
    """Yield every form in which the launchers above start these kernels, for 10, 1,000 and 21,841 classes."""
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
