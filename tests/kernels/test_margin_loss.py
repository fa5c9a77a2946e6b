"""`margin_loss` against a loop over numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gfo.kernels.margin_loss import margin_loss


def truth(logits: np.ndarray, labels: np.ndarray, kappa: float) -> tuple[np.ndarray, np.ndarray]:
    """Losses [P] and the gradient of their sum [P, C]."""
    losses, grad = np.zeros(len(logits)), np.zeros_like(logits)
    for p, (z, c) in enumerate(zip(logits, labels, strict=True)):
        others = [j for j in range(len(z)) if j != c]
        rival = max(others, key=lambda j: z[j])  # the first on a tie
        margin = z[c] - z[rival]
        losses[p] = max(margin, -kappa)
        if margin > -kappa:
            grad[p, c], grad[p, rival] = 1, -1
    return losses, grad


@settings(deadline=None, max_examples=50)
@given(p=st.integers(0, 8), c=st.integers(2, 12), kappa=st.sampled_from([0.0, 0.5, 3.0]), seed=st.integers(0, 999))
def test_equals_the_loop_on_ties_too(p: int, c: int, kappa: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-4, 5, (p, c)) / 2.0  # few values: many ties, exact in float32
    labels = rng.integers(0, c, p)
    upstream = rng.integers(-3, 4, p).astype(float)
    wanted, grad = truth(logits, labels, kappa)
    leaf = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    losses = margin_loss(leaf, torch.tensor(labels), kappa)
    losses.backward(torch.tensor(upstream, dtype=torch.float32))
    assert leaf.grad is not None
    np.testing.assert_array_equal(losses.detach().numpy(), wanted)
    np.testing.assert_array_equal(leaf.grad.numpy(), grad * upstream[:, None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_float32_losses_and_half_gradients(dtype: torch.dtype) -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0]], dtype=dtype, requires_grad=True)
    loss = margin_loss(logits, torch.tensor([0]), 10.0)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.item() == 1.0
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert logits.grad.tolist() == [[1.0, 0.0, -1.0]]


# opcheck reads .grad of a clone that it made itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.library.opcheck(torch.ops.gfo.margin_loss.default, (logits, torch.tensor([0, 5, 2, 2]), 1.0))


@pytest.mark.parametrize(
    ("logits", "labels", "kappa", "error", "word"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), 1.0, ValueError, "labels: entries"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), -1.0, ValueError, "kappa"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), float("nan"), ValueError, "kappa"),
        (torch.zeros(2, 1), torch.tensor([0, 0]), 1.0, ValueError, "logits"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), 1.0, ValueError, "labels: expected int64 [2]"),
        (torch.zeros(2, 3), torch.tensor([0, 1], dtype=torch.int32), 1.0, TypeError, "labels: expected int64"),
    ],
)
def test_bad_arguments(
    logits: torch.Tensor, labels: torch.Tensor, kappa: float, error: type[Exception], word: str
) -> None:
    with pytest.raises(error) as caught:
        margin_loss(logits, labels, kappa)
    assert word in str(caught.value)
