"""`score`: logits → top-1, rank of the label and margin, which leave the device instead of the logits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_index, check_logits
from ._triton import CLASSES_SHOWN, SHORT_NAMES, Variant, jit, row_block, tl
from .impl import choose_impl


class Score(NamedTuple):
    """The scores of P pairs.

    Attributes
    ----------
    prediction
        int64 [P], the top-1 class id, the lowest id on a tie; −1 where a logit is not finite.
    rank
        int64 [P], the number of classes ahead of the label: 0 is correct, < 5 is top-5; C where a logit is not
        finite.
    margin
        float32 [P], the label's logit minus the best other (0 on a tie, correct or not); NaN where a logit is not
        finite.
    """

    prediction: Tensor
    rank: Tensor
    margin: Tensor


# ---- reference


def _reference(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    column, logits = labels[:, None], logits.float()
    own = logits.gather(1, column)
    lower_id = torch.arange(logits.shape[1], device=logits.device) < column
    rank = ((logits > own) | ((logits == own) & lower_id)).sum(dim=1)
    margin = own[:, 0] - logits.scatter(1, column, float("-inf")).amax(dim=1)
    broken = ~logits.isfinite().all(dim=1)
    return (
        logits.argmax(dim=1).masked_fill_(broken, -1),
        rank.masked_fill_(broken, logits.shape[1]),
        margin.masked_fill_(broken, float("nan")),
    )


# ---- kernel, one program per row


@jit()
def _score_kernel(
    logits: tl.tensor,
    labels: tl.tensor,
    prediction: tl.tensor,
    rank: tl.tensor,
    margin: tl.tensor,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    here = logits + row * CLASSES
    label = tl.load(labels + row)
    own = tl.load(here + label).to(tl.float32)
    # The value and place of the best other class; the label is top-1 where it is larger, or equal with a lower id.
    best, at = tl.full((), float("-inf"), tl.float32), tl.full((), 0, tl.int32)
    ahead, broken = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    for start in range(0, CLASSES, BLOCK):
        column = start + tl.arange(0, BLOCK)
        real = column < CLASSES
        z = tl.load(here + column, mask=real, other=float("-inf")).to(tl.float32)
        ahead += tl.sum((real & ((z > own) | ((z == own) & (column < label)))).to(tl.int32), axis=0)
        highest, place = tl.max(tl.where(column == label, float("-inf"), z), axis=0, return_indices=True)
        at = tl.where(highest > best, start + place, at)  # the first of equals
        best = tl.maximum(best, highest)
        broken = tl.maximum(broken, tl.max((real & ~(tl.abs(z) < float("inf"))).to(tl.int32), axis=0))
    top = tl.where(broken > 0, -1, tl.where(ahead == 0, label, at.to(tl.int64)))
    tl.store(prediction + row, top)
    tl.store(rank + row, tl.where(broken > 0, CLASSES, ahead).to(tl.int64))
    tl.store(margin + row, tl.where(broken > 0, float("nan"), own) - tl.where(broken > 0, 0.0, best))


# ---- launcher


def _launch(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    prediction, rank = torch.empty_like(labels), torch.empty_like(labels)
    margin = logits.new_empty(len(logits), dtype=torch.float32)
    classes = logits.shape[1]
    block, warps = row_block(classes)
    how = {"CLASSES": classes, "BLOCK": block, "num_warps": warps}
    _score_kernel[(len(logits),)](logits, labels, prediction, rank, margin, **how)
    return prediction, rank, margin


# ---- public


@torch.no_grad()
def score(logits: Tensor, labels: Tensor, *, impl: str = "auto", validate: bool = True) -> Score:
    """Score logits against labels; no gradient is kept.

    A class is ahead of the label if its logit is larger, or equal with a lower id. So rank 0 and a prediction equal to
    the label are the same, on ties too. A pair with a logit that is not finite is never correct: an overflow has lost
    the order.

    Parameters
    ----------
    logits
        float32, bfloat16 or float16 [P, C], C ≥ 2.
    labels
        int64 [P], in 0 … C − 1.
    impl
        `auto`, `reference` or `triton`; see `choose_impl`.
    validate
        Whether to check the range of the labels, which on a GPU waits for it.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device, layout, label or implementation.
    """
    check_logits(logits, labels)
    if validate:
        check_index("labels", labels, logits.shape[1])
    chosen, _ = choose_impl(impl, logits.device)
    return Score(*(_reference if chosen == "reference" or len(logits) == 0 else _launch)(logits, labels))


def check_labels(labels: Tensor, classes: int) -> None:
    """Check the range of labels, for callers whose labels are still on the CPU; raises `ValueError`."""
    check_index("labels", labels, classes)


# ---- for the table of compiled kernels


def variants() -> Iterator[Variant]:
    """Yield every form in which the launcher above starts the kernel, for 10, 1,000 and 21,841 classes."""
    for (dtype, name), classes in itertools.product(SHORT_NAMES.items(), CLASSES_SHOWN):
        block, warps = row_block(classes)
        verdict = {"prediction": "*i64", "rank": "*i64", "margin": "*fp32"}
        arguments = {"logits": f"*{name}", "labels": "*i64", **verdict, "CLASSES": classes, "BLOCK": block}
        moved = float(classes * dtype.itemsize)
        yield Variant(_score_kernel, f"{name}, {classes} classes", arguments, warps, "row", moved, moved)
