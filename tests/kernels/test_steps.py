"""`momentum_step` and `adam_step`, references and kernels, against numpy float64; their results stay in the ball."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gfo.kernels.adam_step import adam_step
from gfo.kernels.ball import Norm
from gfo.kernels.momentum_step import momentum_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = pytest.mark.parametrize("impl", ["reference", "triton"])
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
SIZES = st.sampled_from([(1, 1), (2, 3), (9, 9), (31, 29), (32, 32)])  # below, at and above a block of 1,024
PROPERTY = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def project(d: np.ndarray, epsilon: float, norm: str) -> np.ndarray:
    if norm == "linf":
        return np.clip(d, -epsilon, epsilon)
    return np.stack([row * min(1.0, epsilon / max(np.linalg.norm(row), 1e-30)) for row in d])


def momentum_truth(
    d: np.ndarray, v: np.ndarray, g: np.ndarray, step: float, decay: float, epsilon: float, norm: str
) -> tuple[np.ndarray, np.ndarray]:
    v = decay * v + np.stack([row / np.abs(row).mean() if row.any() else row for row in g])
    if norm == "linf":
        return project(d - step * np.sign(v), epsilon, norm), v
    return project(
        d - step * np.stack([row / np.linalg.norm(row) if row.any() else row for row in v]), epsilon, norm
    ), v


def in_the_ball(occluders: torch.Tensor, epsilon: float, norm: str) -> bool:
    if norm == "linf":
        return float(occluders.abs().max()) <= float(np.float32(epsilon))
    # The length is a float32 sum of squares, by blocks or by lanes: a few hundred roundings of 6e-8 that mostly cancel.
    return float(occluders.double().flatten(1).norm(dim=1).max()) <= epsilon * (1 + 1e-5)


@pytest.mark.usefixtures("poisoned")
@IMPLS
@NORMS
@PROPERTY
@given(
    k=st.integers(1, 4),
    size=SIZES,
    decay=st.sampled_from([0.0, 0.9]),
    epsilon=st.floats(0.5, 16),
    seed=st.integers(0, 999),
)
def test_momentum_steps_equal_numpy_and_stay_in_the_ball(
    impl: str, norm: Norm, k: int, size: tuple[int, int], decay: float, epsilon: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (k, *size, 3)
    d, v = np.zeros(shape), np.zeros(shape)
    occluders, momentum = torch.zeros(shape, device=DEVICE), torch.zeros(shape, device=DEVICE)
    for step in (epsilon, epsilon / 3, 0.0):
        g = rng.standard_normal(shape)
        g[0] = 0.0  # an occluder without a gradient stays where its momentum takes it
        d, v = momentum_truth(d, v, g, step, decay, epsilon, norm)
        gradient = torch.tensor(g, dtype=torch.float32, device=DEVICE)
        momentum_step(occluders, momentum, gradient, step=step, decay=decay, epsilon=epsilon, norm=norm, impl=impl)
        np.testing.assert_allclose(occluders.cpu().numpy(), d, rtol=1e-5, atol=1e-5 * epsilon)
        np.testing.assert_allclose(momentum.cpu().numpy(), v, rtol=1e-5, atol=1e-5)
        assert in_the_ball(occluders, epsilon, norm)


@pytest.mark.usefixtures("poisoned")
@IMPLS
@NORMS
@PROPERTY
@given(k=st.integers(1, 3), size=SIZES, epsilon=st.floats(0.5, 16), seed=st.integers(0, 999))
def test_adam_steps_equal_numpy_and_stay_in_the_ball(
    impl: str, norm: Norm, k: int, size: tuple[int, int], epsilon: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (k, *size, 3)
    d, m, s = (np.zeros(shape) for _ in range(3))
    occluders, first, second = (torch.zeros(shape, device=DEVICE) for _ in range(3))
    for count in (1, 2, 3):
        g = rng.standard_normal(shape) * 10.0 ** -rng.integers(0, 6)
        g[0] = 0.0
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
        u = (m / (1 - 0.9**count)) / (np.sqrt(s / (1 - 0.999**count)) + 1e-8)
        d = project(d - epsilon / 2 * u, epsilon, norm)
        gradient = torch.tensor(g, dtype=torch.float32, device=DEVICE)
        numbers: dict[str, Any] = {"step": epsilon / 2, "count": count, "epsilon": epsilon, "norm": norm}
        adam_step(occluders, first, second, gradient, **numbers, impl=impl)
        np.testing.assert_allclose(occluders.cpu().numpy(), d, rtol=2e-5, atol=2e-5 * epsilon)
        assert in_the_ball(occluders, epsilon, norm)


@IMPLS
def test_adam_without_a_ball_is_that_of_torch(impl: str) -> None:
    g = torch.Generator().manual_seed(0)
    theirs = torch.zeros(2, 31, 29, 3, device=DEVICE, requires_grad=True)
    optimizer = torch.optim.Adam([theirs], lr=0.5)
    ours, first, second = (torch.zeros_like(theirs).detach() for _ in range(3))
    for count in range(1, 6):
        theirs.grad = torch.randn(theirs.shape, generator=g).to(DEVICE)
        adam_step(ours, first, second, theirs.grad, step=0.5, count=count, epsilon=1e9, impl=impl)
        optimizer.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@IMPLS
@NORMS
def test_imagenet_size_and_the_same_bits_twice(impl: str, norm: Norm) -> None:
    interpreted = impl == "triton" and DEVICE == "cpu"
    size = 112 if interpreted else 224  # a program takes ten milliseconds there
    gradient = torch.randn(1, size, size, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    nothing = np.zeros(gradient.shape)
    d, _ = momentum_truth(nothing, nothing, gradient.cpu().double().numpy(), 1.0, 0.9, 0.5, norm)
    results = []
    for _ in range(1 if interpreted else 2):  # the interpreter has one order of everything
        occluders, momentum, moved, first, second = (torch.zeros_like(gradient) for _ in range(5))
        momentum_step(occluders, momentum, gradient, step=1.0, decay=0.9, epsilon=0.5, norm=norm, impl=impl)
        adam_step(moved, first, second, gradient, step=1.0, count=1, epsilon=0.5, norm=norm, impl=impl)
        results.append(torch.cat([occluders, moved]))
    assert torch.equal(results[0], results[-1])
    assert in_the_ball(results[0], 0.5, norm)
    np.testing.assert_allclose(results[0][:1].cpu().numpy(), d, rtol=1e-5, atol=1e-7)


@IMPLS
@NORMS
def test_a_zero_gradient_moves_nothing(impl: str, norm: Norm) -> None:
    occluders, momentum = torch.full((1, 2, 2, 3), 0.125, device=DEVICE), torch.zeros(1, 2, 2, 3, device=DEVICE)
    nothing = torch.zeros(1, 2, 2, 3, device=DEVICE)
    momentum_step(occluders, momentum, nothing, step=1.0, decay=0.9, epsilon=1.0, norm=norm, impl=impl)
    adam_step(
        occluders, momentum, torch.zeros_like(momentum), nothing, step=1.0, count=1, epsilon=1.0, norm=norm, impl=impl
    )
    assert torch.equal(occluders, torch.full_like(occluders, 0.125))


@IMPLS
def test_a_momentum_that_has_died_away_is_not_blown_up(impl: str) -> None:
    """Hundreds of steps without a gradient, where float32 loses its squares, and then all of it."""
    direction = torch.randn(1, 9, 9, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    nothing = torch.zeros_like(direction)
    for exponent in (-5, -14, -16, -20, -25, -30, -35):
        occluders, momentum = torch.zeros_like(direction), direction * 10.0**exponent
        length = 0.9 * float(momentum.double().norm())
        momentum_step(occluders, momentum, nothing, step=2.0, decay=0.9, epsilon=9.0, norm="l2", impl=impl)
        assert float(occluders.double().norm()) == pytest.approx(2.0 * min(1.0, length / 1e-15), rel=1e-5)


@IMPLS
@NORMS
def test_a_gradient_that_is_not_finite_reaches_its_own_occluder_alone(impl: str, norm: Norm) -> None:
    tensors = [torch.zeros(2, 2, 3, 3, device=DEVICE) for _ in range(5)]
    occluders, momentum, moved, first, second = tensors
    gradient = torch.ones_like(occluders)
    gradient[0, 1, 2, 0] = float("nan")
    momentum_step(occluders, momentum, gradient, step=1.0, decay=0.9, epsilon=1.0, norm=norm, impl=impl)
    adam_step(moved, first, second, gradient, step=1.0, count=1, epsilon=1.0, norm=norm, impl=impl)
    assert not any(bool(tensor[1].isnan().any()) for tensor in tensors)
    assert bool(momentum[0].isnan().all())  # its mean is NaN
    assert bool(first[0, 1, 2, 0].isnan() & moved[0, 1, 2, 0].isnan())
    if norm == "l2":  # and so is its length; the sign of NaN is 0
        assert bool(occluders[0].isnan().all() & moved[0].isnan().all())


@IMPLS
@NORMS
def test_no_occluders_are_no_error(impl: str, norm: Norm) -> None:
    none = torch.zeros(0, 2, 2, 3, device=DEVICE)
    momentum_step(none, none, none, step=1.0, decay=0.9, epsilon=1.0, norm=norm, impl=impl)
    adam_step(none, none, none, none, step=1.0, count=1, epsilon=1.0, norm=norm, impl=impl)


@IMPLS
def test_the_size_of_the_gradient_does_not_matter(impl: str) -> None:
    g = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    results = []
    for factor in (1.0, 1024.0):
        occluders, momentum = torch.zeros_like(g), torch.zeros_like(g)
        for _ in range(3):
            momentum_step(occluders, momentum, g * factor, step=0.25, decay=0.5, epsilon=1.0, impl=impl)
        results.append(occluders)
    assert torch.equal(*results)


@IMPLS
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"epsilon": 0.0}, ValueError),
        ({"epsilon": float("nan")}, ValueError),
        ({"step": -1.0}, ValueError),
        ({"decay": 1.0}, ValueError),
        ({"norm": "l1"}, ValueError),
        ({"impl": "cuda"}, ValueError),
        ({"gradient": torch.zeros(1, 2, 3, 3)}, ValueError),
        ({"gradient": torch.zeros(1, 2, 3, 2).mT}, ValueError),
        ({"momentum": torch.zeros(1, 2, 2, 3, dtype=torch.float64)}, TypeError),
        ({"momentum": torch.zeros(1, 2, 2, 3, device="meta")}, ValueError),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], impl: str) -> None:
    tensors = {name: torch.zeros(1, 2, 2, 3) for name in ("occluders", "momentum", "gradient")}
    with pytest.raises(error):
        momentum_step(**{**tensors, "step": 1.0, "decay": 0.9, "epsilon": 1.0, "impl": impl, **change})


@pytest.mark.parametrize("change", [{"count": 0}, {"beta1": 1.0}, {"beta2": -0.1}, {"tiny": 0.0}])
def test_bad_numbers_for_adam(change: dict[str, Any]) -> None:
    tensors = {name: torch.zeros(1, 2, 2, 3) for name in ("occluders", "first", "second", "gradient")}
    with pytest.raises(ValueError, match=next(iter(change))):
        adam_step(**{**tensors, "step": 1.0, "count": 1, "epsilon": 1.0, **change})


@NORMS
def test_tensors_that_require_a_gradient_are_updated_and_record_nothing(norm: Norm) -> None:
    tensors = [torch.ones(1, 2, 2, 3, requires_grad=True) for _ in range(4)]
    momentum_step(*tensors[:3], step=1.0, decay=0.9, epsilon=9.0, norm=norm)
    adam_step(*tensors, step=1.0, count=1, epsilon=9.0, norm=norm)
    assert all(tensor.grad_fn is None for tensor in tensors)
    assert not torch.equal(tensors[0], torch.ones_like(tensors[0]))
