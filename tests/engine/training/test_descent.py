"""A step's passes: they cut a batch without losing a picture, and their gradients are the batch's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gfo.engine.training.batches import Batch
from gfo.engine.training.config import TrainConfig
from gfo.engine.training.descent import Descent
from gfo.engine.training.preserve import PreserveConfig
from gfo.export.classifier import FrozenClassifier
from gfo.export.occluded import OccludedClassifier

OUTPUTS = 5


def batch_of(own: int, kept: int, size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(own * 100 + kept)
    count = own + kept
    return Batch(
        torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator),
        torch.randint(1, 3, (count,), generator=generator),
        torch.randint(0, OUTPUTS, (own,), generator=generator),
        torch.randn(kept, OUTPUTS, generator=generator) if kept else None,
    )


@given(own=st.integers(0, 7), kept=st.integers(0, 7), size=st.integers(1, 16))
def test_parts_are_the_batch(own: int, kept: int, size: int) -> None:
    batch = batch_of(own, kept, 2)
    parts = list(batch.parts(size))
    assert all(1 <= len(part.images) <= size for part in parts)
    for name in ("images", "occluder_index", "labels"):
        whole = getattr(batch, name)
        assert torch.equal(torch.cat([getattr(part, name) for part in parts] or [whole]), whole)
    answers = [part.clean for part in parts if part.clean is not None]
    assert sum(map(len, answers)) == kept
    assert not kept or torch.equal(torch.cat(answers), batch.clean)  # type: ignore[arg-type]
    for part in parts:
        assert len(part.labels) + (0 if part.clean is None else len(part.clean)) == len(part.images)


@pytest.mark.parametrize("sizes", [(6, 0), (6, 4), (0, 5), (3, 6)])
def test_a_step_is_the_same_in_any_number_of_passes(tiny_classifier: FrozenClassifier, sizes: tuple[int, int]) -> None:
    """In the l2 ball, where a step is linear in the gradient: signs would hide its size."""
    network = OccludedClassifier(tiny_classifier, "fp32", impl="reference").settled(torch.device("cpu"), gradient=True)
    keep = {"objective": "specific", "preserve": PreserveConfig(("classes",), weight=0.7)} if sizes[1] else {}
    config = TrainConfig(epsilon=200.0, norm="l2", batch_size=16, **keep)
    found = {}
    for size in (16, 4, 3, 1):
        step = Descent(network, replace(config, pass_size=size), torch.zeros(2, 16, 16, 3))
        found[size] = step(batch_of(*sizes), 20.0, 1), step.occluders.clone()
    assert float(found[16][1].abs().max()) > 0.1
    for size in (4, 3, 1):
        assert found[size][0] == found[16][0]
        torch.testing.assert_close(found[size][1], found[16][1], rtol=1e-3, atol=1e-4)


def test_a_pass_that_is_not_finite_spoils_the_whole_step(tiny_classifier: FrozenClassifier) -> None:
    network = OccludedClassifier(tiny_classifier, "fp32", impl="reference").settled(torch.device("cpu"), gradient=True)
    config = TrainConfig(epsilon=8.0, batch_size=16, pass_size=2)
    step = Descent(network, config, torch.zeros(2, 16, 16, 3))
    step.occluders[1] = torch.nan
    batch = batch_of(6, 0)
    batch.occluder_index[:] = torch.tensor([1, 1, 2, 1, 1, 1])
    assert step(batch, 1.0, 1) is None
    assert bool((step.occluders[0] == 0).all())


def test_the_size_of_a_pass() -> None:
    config = TrainConfig(epsilon=8.0)
    assert (config.pictures_in_a_pass("cpu"), config.pictures_in_a_pass("cuda")) == (32, 64)
    assert replace(config, pass_size=5).pictures_in_a_pass("cuda") == 5
    assert replace(config, batch_size=8).pictures_in_a_pass("cpu") == 8
