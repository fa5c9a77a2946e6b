"""`margin_loss`: the Carlini-Wagner margin with confidence κ, which the occluders minimise.

loss[p] = max(z_c − max_{j ≠ c} z_j, −κ)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import check_index, check_same_device, check_tensor


def _margin_and_rival(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """z_c − max_{j≠c} z_j as float32 [P], and the first j that reaches the maximum, int64 [P]."""
    column = labels[:, None]
    others = logits.float().scatter(1, column, float("-inf"))
    rival = others.argmax(dim=1)
    own = logits.float().gather(1, column)[:, 0]
    return own - others.gather(1, rival[:, None])[:, 0], rival


@torch.library.custom_op("gfo::margin_loss", mutates_args=())
def _margin_loss(logits: Tensor, labels: Tensor, kappa: float) -> Tensor:
    check_index("labels", labels, logits.shape[1])
    return _margin_and_rival(logits, labels)[0].clamp_min_(-kappa)


@_margin_loss.register_fake
def _(logits: Tensor, labels: Tensor, kappa: float) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


@torch.library.custom_op("gfo::margin_loss_backward", mutates_args=())
def _margin_loss_backward(grad: Tensor, logits: Tensor, labels: Tensor, kappa: float) -> Tensor:
    margin, rival = _margin_and_rival(logits, labels)
    weight = (grad.float() * (margin > -kappa)).to(logits.dtype)[:, None]
    return torch.zeros_like(logits).scatter_(1, labels[:, None], weight).scatter_(1, rival[:, None], -weight)


@_margin_loss_backward.register_fake
def _(grad: Tensor, logits: Tensor, labels: Tensor, kappa: float) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, labels, ctx.kappa = inputs
    ctx.save_for_backward(logits, labels)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _margin_loss_backward(grad, *ctx.saved_tensors, ctx.kappa), None, None


_margin_loss.register_autograd(_backward, setup_context=_setup_context)


def margin_loss(logits: Tensor, labels: Tensor, kappa: float) -> Tensor:
    """How far each picture still is from being fooled with confidence κ.

    Parameters
    ----------
    logits
        float32, bfloat16 or float16 [P, C], C ≥ 2.
    labels
        int64 [P], the class whose evidence is to vanish, in 0 … C − 1.
    kappa
        ≥ 0, in logit units. A picture that is wrong by more than κ has loss −κ and no gradient.

    Returns
    -------
    Tensor
        float32 [P]. Where several other classes tie for the largest logit, the gradient goes to the first.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device or label, a negative κ.

    Source: Carlini and Wagner, IEEE S&P 2017, f₆; reference S1 of Wu et al., CVPR 2020, supplementary.
    """
    if not kappa >= 0:
        raise ValueError(f"kappa: expected a number ≥ 0, got {kappa}")
    if logits.dim() != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(f"logits: expected a floating-point [P, C ≥ 2], got {logits.dtype} {list(logits.shape)}")
    check_tensor("labels", labels, torch.int64, (logits.shape[0],))
    check_same_device(logits=logits, labels=labels)
    return _margin_loss(logits, labels, kappa)
