"""`margin_loss`, reference and kernels, against a loop over numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gfo.kernels.margin_loss import margin_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = pytest.mark.parametrize("impl", ["reference", "triton"])


def truth(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray, kappa: float) -> tuple[np.ndarray, np.ndarray]:
    """Losses [P] and the gradient of their sum [P, C]."""
    losses, grad = np.zeros(len(logits)), np.zeros_like(logits)
    for p, (z, c, w) in enumerate(zip(logits, labels, weight, strict=True)):
        others = [j for j in range(len(z)) if j != c]
        rival = max(others, key=lambda j: z[j])  # the first on a tie
        margin = np.sign(w) * (z[c] - z[rival])
        losses[p] = abs(w) * max(margin, -kappa)
        if margin > -kappa:
            grad[p, c], grad[p, rival] = w, -w
    return losses, grad


@pytest.mark.usefixtures("poisoned")
@IMPLS
@pytest.mark.parametrize("weighted", [False, True])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(p=st.integers(0, 8), c=st.integers(2, 40), kappa=st.sampled_from([0.0, 0.5, 3.0]), seed=st.integers(0, 999))
def test_equals_the_loop_on_ties_too(impl: str, weighted: bool, p: int, c: int, kappa: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-4, 5, (p, c)) / 2.0  # few values: many ties, exact in float32
    labels = rng.integers(0, c, p)
    weight = rng.integers(-2, 3, p) / 2.0 if weighted else np.ones(p)
    upstream = rng.integers(-3, 4, p).astype(float)
    wanted, grad = truth(logits, labels, weight, kappa)
    leaf = torch.tensor(logits, dtype=torch.float32, device=DEVICE, requires_grad=True)
    weights = torch.tensor(weight, dtype=torch.float32, device=DEVICE) if weighted else None
    losses = margin_loss(leaf, torch.tensor(labels, device=DEVICE), kappa, weight=weights, impl=impl)
    losses.backward(torch.tensor(upstream, dtype=torch.float32, device=DEVICE))
    assert leaf.grad is not None
    np.testing.assert_array_equal(losses.detach().cpu().numpy(), wanted)
    np.testing.assert_array_equal(leaf.grad.cpu().numpy(), grad * upstream[:, None])


@IMPLS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_float32_losses_and_half_gradients(impl: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0]], dtype=dtype, device=DEVICE, requires_grad=True)
    loss = margin_loss(logits, torch.tensor([0], device=DEVICE), 10.0, impl=impl)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.item() == 1.0
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert logits.grad.tolist() == [[1.0, 0.0, -1.0]]


@IMPLS
def test_a_thousand_classes_against_autograd_through_the_plain_formula(impl: str) -> None:
    logits = torch.randn(7, 1000, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    labels = torch.arange(7, device=DEVICE) * 100
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    others = theirs.scatter(1, labels[:, None], float("-inf"))
    plain = (theirs.gather(1, labels[:, None])[:, 0] - others.amax(1)).clamp_min(-1.5)
    loss = margin_loss(ours, labels, 1.5, impl=impl)
    loss.sum().backward()
    plain.sum().backward()
    # One float32 subtraction of numbers below 8.
    torch.testing.assert_close(loss.detach().double(), plain.detach(), rtol=0, atol=2**-21)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad.double(), theirs.grad)


@IMPLS
def test_rows_longer_than_a_block(impl: str) -> None:
    logits = torch.zeros(2, 9000, device=DEVICE)
    logits[0, [4096, 8999]] = 5.0  # the first is the rival
    logits[1, 8999] = 7.0
    leaf = logits.requires_grad_()
    loss = margin_loss(leaf, torch.tensor([0, 8999], device=DEVICE), 6.0, impl=impl)
    loss.sum().backward()
    assert loss.tolist() == [-5.0, 7.0]
    assert leaf.grad is not None
    assert leaf.grad.nonzero().tolist() == [[0, 0], [0, 4096], [1, 0], [1, 8999]]


@IMPLS
@pytest.mark.parametrize("place", [0, 1])
def test_nan_gives_a_nan_loss_and_no_gradient(impl: str, place: int) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]], device=DEVICE)
    logits[0, place] = float("nan")
    leaf = logits.requires_grad_()
    loss = margin_loss(leaf, torch.zeros(2, dtype=torch.int64, device=DEVICE), 5.0, impl=impl)
    loss[1].backward()
    assert [v != v for v in loss.tolist()] == [True, False]
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]]


@IMPLS
@pytest.mark.parametrize(("label", "wanted"), [(0, [1.0, -1.0, 0.0, 0.0]), (2, [-1.0, 0.0, 1.0, 0.0])])
def test_where_all_others_are_minus_infinity_the_first_of_them_is_the_rival(
    impl: str, label: int, wanted: list[float]
) -> None:
    logits = torch.full((1, 4), float("-inf"))
    logits[0, label] = 1.0
    leaf = logits.to(DEVICE).requires_grad_()
    margin_loss(leaf, torch.tensor([label], device=DEVICE), 5.0, impl=impl).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [wanted]


@IMPLS
@pytest.mark.parametrize(
    ("logits", "labels", "kappa", "error", "word"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), 1.0, ValueError, "labels: entries"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), -1.0, ValueError, "kappa"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), float("nan"), ValueError, "kappa"),
        (torch.zeros(2, 1), torch.tensor([0, 0]), 1.0, ValueError, "logits"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), 1.0, ValueError, "labels: expected int64 [2]"),
        (torch.zeros(2, 3), torch.tensor([0, 1], dtype=torch.int32), 1.0, TypeError, "labels: expected int64"),
        (torch.zeros(3, 2).T, torch.tensor([0, 1]), 1.0, ValueError, "logits: expected contiguous"),
        (torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 1]), 1.0, ValueError, "logits: expected float32"),
    ],
)
def test_bad_arguments(
    logits: torch.Tensor, labels: torch.Tensor, kappa: float, error: type[Exception], word: str, impl: str
) -> None:
    with pytest.raises(error) as caught:
        margin_loss(logits.to(DEVICE), labels.to(DEVICE), kappa, impl=impl)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("weight", "error", "word"),
    [
        (torch.ones(2, dtype=torch.float64), TypeError, "weight: expected float32 [2]"),
        (torch.ones(3), ValueError, "weight: expected float32 [2]"),
    ],
)
def test_bad_weights(weight: torch.Tensor, error: type[Exception], word: str) -> None:
    with pytest.raises(error) as caught:
        margin_loss(torch.zeros(2, 3), torch.tensor([0, 1]), 1.0, weight=weight)
    assert word in str(caught.value)


def test_an_unknown_implementation_is_named() -> None:
    with pytest.raises(ValueError, match="impl: expected one of auto, reference, triton, got 'cuda'"):
        margin_loss(torch.zeros(2, 3), torch.tensor([0, 1]), 1.0, impl="cuda")


def test_the_kernels_refuse_a_second_derivative() -> None:
    leaf = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    loss = margin_loss(leaf, torch.tensor([0, 1], device=DEVICE), 9.0, impl="triton")
    (gradient,) = torch.autograd.grad(loss.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
