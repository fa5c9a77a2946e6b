"""`score` against a sort in plain Python, on ties and NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gfo.kernels.score import score


@settings(deadline=None, max_examples=50)
@given(p=st.integers(0, 8), c=st.integers(2, 12), seed=st.integers(0, 999))
def test_equals_sorting_with_ties_by_class_id(p: int, c: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.integers(-2, 3, (p, c)).astype(np.float32), rng.integers(0, c, p)
    verdict = score(torch.from_numpy(logits), torch.from_numpy(labels))
    for i, (z, label) in enumerate(zip(logits, labels, strict=True)):
        order = sorted(range(c), key=lambda j: (-z[j], j))
        assert verdict.prediction[i] == order[0]
        assert verdict.rank[i] == order.index(label)
        assert verdict.margin[i] == z[label] - max(z[j] for j in range(c) if j != label)


def test_agrees_with_torch_topk_where_nothing_ties() -> None:
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64)
    top5 = logits.topk(5).indices
    verdict = score(logits, labels)
    assert torch.equal(verdict.prediction, top5[:, 0])
    assert torch.equal(verdict.rank < 5, (top5 == labels[:, None]).any(dim=1))


def test_nan_is_never_correct() -> None:
    nan = float("nan")
    verdict = score(torch.tensor([[nan, 1.0], [1.0, nan], [2.0, 1.0]]), torch.tensor([1, 0, 0]))
    assert verdict.prediction.tolist() == [-1, -1, 0]
    assert verdict.rank.tolist() == [2, 2, 0]
    assert [math.isnan(m) for m in verdict.margin.tolist()] == [True, True, False]


def test_infinite_logits_are_ordered() -> None:
    verdict = score(torch.tensor([[float("-inf"), float("inf"), 0.0]]), torch.tensor([2]))
    assert (verdict.prediction.item(), verdict.rank.item()) == (1, 1)


@pytest.mark.parametrize(
    ("logits", "labels", "error"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]), ValueError),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), TypeError),
    ],
)
def test_bad_arguments(logits: torch.Tensor, labels: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        score(logits, labels)
