"""Populations with answers, drawn from a logistic model or hostile to an estimator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gfo.engine.sampling.strata import Population

Made = tuple[Population, np.ndarray]


@pytest.fixture(scope="session")
def made() -> Callable[..., Made]:
    """Build a population and its answers, bool [N, K]: `made(sizes, matched, unmatched, seed)`.

    `sizes` are the pictures of each class; the others shift the logit under an occluder of the own class, and of
    another one. The clean margin tells much of both.
    """

    def made(sizes: list[int], matched: float = -3.0, unmatched: float = -1.0, seed: int = 0) -> Made:
        generator, rows = np.random.default_rng(seed), len(sizes)
        own = np.repeat(np.arange(rows), sizes)
        margin = generator.normal(1.5, 2.0, len(own)) + generator.normal(0, 0.5, rows)[own]
        shifts = np.where(np.eye(rows, dtype=bool)[own], matched, unmatched + generator.normal(0, 0.5, rows))
        right = margin[:, None] + shifts + generator.logistic(0, 1, (len(own), rows)) > 0
        return Population(np.arange(len(own)) * 2, own, margin > 0, margin, rows), right

    return made
