"""A step's passes: they cut a batch without losing a picture, and their gradients are the batch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gfo.engine.training.batches import Batch
from gfo.engine.training.config import TrainConfig
from gfo.engine.training.descent import Descent, Taken
from gfo.engine.training.preserve import PreserveConfig
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.occluded import OccludedClassifier

CPU, OUTPUTS = torch.device("cpu"), 5


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
    network = OccludedClassifier(tiny_classifier, "fp32", impl="reference").settled(CPU, gradient=True)
    keep = {"objective": "specific", "preserve": PreserveConfig(("classes",), weight=0.7)} if sizes[1] else {}
    config = TrainConfig(epsilon=200.0, norm="l2", batch_size=16, **keep)
    found = {}
    for size in (16, 4, 3, 1):
        step = Descent(network, replace(config, pass_size=size), torch.zeros(2, 16, 16, 3))
        found[size] = step(batch_of(*sizes), 20.0, 1), step.occluders.clone()
        assert [(taken.count, taken.own) for taken in found[size][0]] == [(1, sizes[0])]
    assert float(found[16][1].abs().max()) > 0.1
    for size in (4, 3, 1):
        assert found[size][0] == found[16][0]
        torch.testing.assert_close(found[size][1], found[16][1], rtol=1e-3, atol=1e-4)


def test_a_pass_that_is_not_finite_spoils_the_whole_step(tiny_classifier: FrozenClassifier) -> None:
    network = OccludedClassifier(tiny_classifier, "fp32", impl="reference").settled(CPU, gradient=True)
    config = TrainConfig(epsilon=8.0, batch_size=16, pass_size=2)
    step = Descent(network, config, torch.zeros(2, 16, 16, 3))
    step.occluders[1] = torch.nan
    batch = batch_of(6, 0)
    batch.occluder_index[:] = torch.tensor([1, 1, 2, 1, 1, 1])
    assert step(batch, 1.0, 1) == [Taken(1, 6, None)]
    assert bool((step.occluders[0] == 0).all())


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_step_that_is_not_finite_changes_nothing(tiny_classifier: FrozenClassifier, optimizer: str) -> None:
    network = OccludedClassifier(tiny_classifier, "fp32", impl="reference").settled(CPU, gradient=True)
    step = Descent(network, TrainConfig(epsilon=8.0, optimizer=optimizer), torch.zeros(2, 16, 16, 3))
    step(batch_of(6, 0), 1.0, 1)
    before = {name: tensor.clone() for name, tensor in step.state_dict().items()}
    assert any(bool(tensor.any()) for name, tensor in before.items() if name != "occluders")
    weights = next(network.network.parameters())
    whole = weights.data.clone()
    weights.data.fill_(torch.nan)
    assert step(batch_of(6, 0), 1.0, 2) == [Taken(2, 6, None)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.state_dict().items())
    weights.data.copy_(whole)
    assert step(batch_of(6, 0), 1.0, 3)[0].wrong is not None
    assert not torch.equal(step.occluders, before["occluders"])


def test_a_device_may_be_some_steps_behind(tiny_classifier: FrozenClassifier) -> None:
    """What steps did is told late, in turn and once; that three in a row were not finite, too."""
    network = OccludedClassifier(tiny_classifier, "fp32", impl="reference").settled(CPU, gradient=True)
    found: dict[int, list[Taken]] = {}
    for behind in (0, 2):
        step = Descent(network, TrainConfig(epsilon=8.0), torch.zeros(2, 16, 16, 3))
        step.behind, found[behind] = behind, []
        for count in range(1, 6):
            found[behind] += step(batch_of(count, 0), 1.0, count)
            assert len(found[behind]) == max(0, count - behind)
        found[behind] += step.finish()
        assert step.finish() == []
    assert found[0] == found[2]
    assert [taken.count for taken in found[2]] == [1, 2, 3, 4, 5]
    step.occluders[:] = torch.nan
    told = [step(batch_of(6, 0), 1.0, count) for count in (6, 7, 8, 9)]
    assert told == [[], [], [Taken(6, 6, None)], [Taken(7, 6, None)]]
    with pytest.raises(InputError, match="not finite; check the weights"):
        step.finish()


class _Waits(TorchDispatchMode):
    """Notes operations for which the host would wait for a GPU: it reads a value, or a mask decides on a length."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [a for a in tree_leaves(args) if isinstance(a, Tensor) and a.dtype == torch.bool]
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal") or (name.startswith("index") and masks):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "read", [lambda t: bool(t.any()), lambda t: int(t.sum()), lambda t: t[t > 0], lambda t: t.max().item()]
)
def test_waits_are_seen(read: Callable[[Tensor], object]) -> None:
    with _Waits() as waits:
        read(torch.arange(3))
    assert waits.found


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("pure", {}),
        ("specific", {"keep": "kl", "pairing": 0.1}),
        ("specific", {"detach_rival": True}),
        ("sink", {"target": 4, "keep": "margin"}),
        ("agnostic", {}),
    ],
)
def test_a_step_waits_for_nothing(
    tiny_classifier: FrozenClassifier, objective: str, options: dict[str, Any], optimizer: str
) -> None:
    """The forms that a GPU runs are the kernels; these wait for nothing either, which `test_gpu` shows there."""
    network = OccludedClassifier(tiny_classifier, "fp32", impl="reference").settled(CPU, gradient=True)
    preserve = PreserveConfig(("classes",)) if objective in ("specific", "sink") else None
    config = TrainConfig(
        8.0, objective=objective, objective_options=options, preserve=preserve, optimizer=optimizer, pass_size=3
    )
    step = Descent(network, config, torch.zeros(2, 16, 16, 3))
    step.behind = 2
    step.stopped[1] = 1
    batch = batch_of(5, 4 if preserve else 0)
    with _Waits() as waits:
        assert step(batch, 1.0, 1) == []
    assert waits.found == []
    assert step.finish()[0].wrong is not None
    assert bool(step.occluders[0].any())
    assert not bool(step.occluders[1].any())


def test_the_size_of_a_pass() -> None:
    config = TrainConfig(epsilon=8.0)
    assert (config.pictures_in_a_pass("cpu"), config.pictures_in_a_pass("cuda")) == (32, 64)
    assert replace(config, pass_size=5).pictures_in_a_pass("cuda") == 5
    assert replace(config, batch_size=8).pictures_in_a_pass("cpu") == 8
