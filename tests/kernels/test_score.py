"""`score`, reference and kernel, against a sort in plain Python, on ties and on what is not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gfo.kernels.score import score

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = pytest.mark.parametrize("impl", ["reference", "triton"])


@pytest.mark.usefixtures("poisoned")
@IMPLS
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(p=st.integers(0, 8), c=st.integers(2, 40), seed=st.integers(0, 999))
def test_equals_sorting_with_ties_by_class_id(impl: str, p: int, c: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.integers(-2, 3, (p, c)).astype(np.float32), rng.integers(0, c, p)
    verdict = score(torch.from_numpy(logits).to(DEVICE), torch.from_numpy(labels).to(DEVICE), impl=impl)
    for i, (z, label) in enumerate(zip(logits, labels, strict=True)):
        order = sorted(range(c), key=lambda j: (-z[j], j))
        assert verdict.prediction[i] == order[0]
        assert verdict.rank[i] == order.index(label)
        assert verdict.margin[i] == z[label] - max(z[j] for j in range(c) if j != label)


@IMPLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_agrees_with_torch_topk_where_nothing_ties(impl: str, dtype: torch.dtype) -> None:
    order = torch.rand(64, 1000, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    logits, labels = (order - 500).to(DEVICE, dtype), torch.arange(64, device=DEVICE)  # exact in fp16
    top5 = logits.topk(5).indices
    verdict = score(logits, labels, impl=impl)
    assert torch.equal(verdict.prediction, top5[:, 0])
    assert torch.equal(verdict.rank < 5, (top5 == labels[:, None]).any(dim=1))


@IMPLS
def test_rows_longer_than_a_block_and_their_ties(impl: str) -> None:
    logits = torch.zeros(4, 9000)
    logits[0, [4095, 4096, 8999]] = 5.0
    logits[1, 8999] = 5.0
    logits[2, 5000] = float("nan")
    labels = torch.tensor([4096, 8999, 0, 8191])
    verdict = score(logits.to(DEVICE), labels.to(DEVICE), impl=impl)
    assert verdict.prediction.tolist() == [4095, 8999, -1, 0]
    assert verdict.rank.tolist() == [1, 0, 9000, 8191]
    assert verdict.margin[:2].tolist() == [0.0, 5.0]


@IMPLS
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_never_correct(impl: str, broken: float) -> None:
    logits = torch.tensor([[broken, 1.0], [1.0, broken], [2.0, 1.0], [broken, broken]], device=DEVICE)
    verdict = score(logits, torch.tensor([1, 0, 0, 0], device=DEVICE), impl=impl)
    assert verdict.prediction.tolist() == [-1, -1, 0, -1]
    assert verdict.rank.tolist() == [2, 2, 0, 2]
    assert [math.isnan(m) for m in verdict.margin.tolist()] == [True, True, False, True]


def test_no_gradient_is_kept() -> None:
    assert not score(torch.randn(2, 3, requires_grad=True), torch.tensor([0, 1])).margin.requires_grad


@IMPLS
@pytest.mark.parametrize(
    ("logits", "labels", "error"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]), ValueError),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), TypeError),
        (torch.zeros(3, 2).T, torch.tensor([0, 1]), ValueError),
    ],
)
def test_bad_arguments(logits: torch.Tensor, labels: torch.Tensor, error: type[Exception], impl: str) -> None:
    with pytest.raises(error):
        score(logits.to(DEVICE), labels.to(DEVICE), impl=impl)
