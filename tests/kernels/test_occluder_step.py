"""`occluder_step` against numpy float64, and the ball that it may never leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gfo.kernels.occluder_step import occluder_step


def truth(
    d: np.ndarray, v: np.ndarray, g: np.ndarray, step: float, decay: float, epsilon: float, norm: str
) -> tuple[np.ndarray, np.ndarray]:
    v = decay * v + np.stack([row / np.abs(row).mean() if row.any() else row for row in g])
    if norm == "linf":
        return np.clip(d - step * np.sign(v), -epsilon, epsilon), v
    moved = d - step * np.stack([row / np.linalg.norm(row) if row.any() else row for row in v])
    return np.stack([row * min(1.0, epsilon / max(np.linalg.norm(row), 1e-30)) for row in moved]), v


@settings(deadline=None, max_examples=40)
@given(
    k=st.integers(1, 4),
    size=st.integers(1, 9),
    norm=st.sampled_from(["linf", "l2"]),
    decay=st.sampled_from([0.0, 0.9]),
    epsilon=st.floats(0.5, 16),
    seed=st.integers(0, 999),
)
def test_steps_equal_numpy_and_stay_in_the_ball(
    k: int, size: int, norm: str, decay: float, epsilon: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (k, size, size, 3)
    d, v = np.zeros(shape), np.zeros(shape)
    occluders, momentum = torch.zeros(shape), torch.zeros(shape)
    for step in (epsilon, epsilon / 3, 0.0):
        g = rng.standard_normal(shape)
        g[0] = 0.0  # an occluder without a gradient stays where its momentum takes it
        d, v = truth(d, v, g, step, decay, epsilon, norm)
        gradient = torch.tensor(g, dtype=torch.float32)
        occluder_step(occluders, momentum, gradient, step=step, decay=decay, epsilon=epsilon, norm=norm)  # type: ignore[arg-type]
        np.testing.assert_allclose(occluders.numpy(), d, rtol=1e-5, atol=1e-5 * epsilon)
        np.testing.assert_allclose(momentum.numpy(), v, rtol=1e-5, atol=1e-5)
        radius = occluders.abs().max() if norm == "linf" else occluders.flatten(1).norm(dim=1).max()
        assert float(radius) <= epsilon * (1 + 1e-6)


def test_a_zero_gradient_moves_nothing() -> None:
    occluders, momentum = torch.full((1, 2, 2, 3), 0.5), torch.zeros(1, 2, 2, 3)
    occluder_step(occluders, momentum, torch.zeros(1, 2, 2, 3), step=1.0, decay=0.9, epsilon=1.0)
    assert torch.equal(occluders, torch.full((1, 2, 2, 3), 0.5))


def test_the_size_of_the_gradient_does_not_matter() -> None:
    g = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    results = []
    for factor in (1.0, 1024.0):
        occluders, momentum = torch.zeros_like(g), torch.zeros_like(g)
        for _ in range(3):
            occluder_step(occluders, momentum, g * factor, step=0.25, decay=0.5, epsilon=1.0)
        results.append(occluders)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"epsilon": 0.0}, ValueError),
        ({"epsilon": float("nan")}, ValueError),
        ({"step": -1.0}, ValueError),
        ({"decay": 1.0}, ValueError),
        ({"norm": "l1"}, ValueError),
        ({"gradient": torch.zeros(1, 2, 3, 3)}, ValueError),
        ({"momentum": torch.zeros(1, 2, 2, 3, dtype=torch.float64)}, TypeError),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception]) -> None:
    tensors = {name: torch.zeros(1, 2, 2, 3) for name in ("occluders", "momentum", "gradient")}
    with pytest.raises(error):
        occluder_step(**{**tensors, "step": 1.0, "decay": 0.9, "epsilon": 1.0, **change})
