"""`score`: logits → top-1, rank of the label, margin. What travels from the device instead of the logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_index, check_same_device, check_tensor


class Score(NamedTuple):
    """The verdict on P pairs."""

    prediction: Tensor
    """int64 [P], top-1 class id, the lowest id on a tie; −1 where a logit is NaN."""
    rank: Tensor
    """int64 [P], classes ahead of the label: 0 = correct, < 5 = top-5; C where a logit is NaN."""
    margin: Tensor
    """float32 [P], label's logit minus the best other (0 on a tie, correct or not); NaN where a logit is NaN."""


def score(logits: Tensor, labels: Tensor) -> Score:
    """Judge logits against labels.

    A class is ahead of the label if its logit is larger, or equal with a lower id; so rank 0 and a prediction equal to
    the label are the same thing, on ties too. A pair with a NaN logit is never correct.

    Parameters
    ----------
    logits
        float32, bfloat16 or float16 [P, C], C ≥ 2.
    labels
        int64 [P], in 0 … C − 1.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype, shape, device or label.
    """
    if logits.dim() != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(f"logits: expected a floating-point [P, C ≥ 2], got {logits.dtype} {list(logits.shape)}")
    check_tensor("labels", labels, torch.int64, (logits.shape[0],))
    check_same_device(logits=logits, labels=labels)
    check_index("labels", labels, logits.shape[1])
    logits = logits.float()
    column = labels[:, None]
    own = logits.gather(1, column)
    lower_id = torch.arange(logits.shape[1], device=logits.device) < column
    rank = ((logits > own) | ((logits == own) & lower_id)).sum(dim=1)
    margin = own[:, 0] - logits.scatter(1, column, float("-inf")).amax(dim=1)
    broken = logits.isnan().any(dim=1)
    return Score(
        prediction=logits.argmax(dim=1).masked_fill_(broken, -1),
        rank=rank.masked_fill_(broken, logits.shape[1]),
        margin=margin.masked_fill_(broken, float("nan")),
    )
