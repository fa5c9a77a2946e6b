"""An operation called straight, without PyTorch's dispatcher, gives what the registered one gives, its gradient too."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gfo.kernels import occlude as occlude_file
from gfo.kernels.occlude import occlude
from gfo.kernels.score import score

G = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (3, 5, 7, 3), dtype=torch.uint8, generator=G)
BANK = torch.randn(2, 5, 7, 3, generator=G) * 90
PAIRS = torch.tensor([[0, 2, 1, 2], [1, 0, 2, 1]])
SCALE, SHIFT = [0.5, 1.0, 2.0], [0.0, -1.0, 1.0]


def test_straight_and_registered_give_the_same_bits_forward_and_backward() -> None:
    rest = (SCALE, SHIFT, torch.float32, 3, False, "reference", True)
    results = []
    for run in (occlude_file._occlude, torch.ops.gfo.occlude):
        bank = BANK.clone().requires_grad_()
        out = run(IMAGES, bank, *PAIRS, *rest)
        (gradient,) = torch.autograd.grad(out.square().sum(), bank)
        results.append((out.detach(), gradient))
    for straight, registered in zip(*results, strict=True):
        assert torch.equal(straight, registered)


def test_the_dispatcher_is_left_out_for_ordinary_tensors_only(monkeypatch: pytest.MonkeyPatch) -> None:
    registered = occlude_file._occlude._registered
    calls = []

    def counted(*inputs: object) -> torch.Tensor:
        calls.append(inputs)
        return registered(*inputs)

    monkeypatch.setattr(occlude_file._occlude, "_registered", counted)
    occlude(IMAGES, BANK, *PAIRS, scale=SCALE, shift=SHIFT)
    assert calls == []
    tensors = (IMAGES, BANK, *PAIRS.clone())
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in tensors]
        out = occlude(*fakes, scale=SCALE, shift=SHIFT, impl="reference")
    assert len(calls) == 1
    assert out.shape == (4, 3, 5, 7)


def test_no_gradient_is_kept_where_none_is_wanted() -> None:
    bank = BANK.clone().requires_grad_()
    with torch.no_grad():
        assert not occlude(IMAGES, bank, *PAIRS, scale=SCALE, shift=SHIFT).requires_grad
    assert not score(torch.randn(2, 3, requires_grad=True), torch.tensor([0, 1])).margin.requires_grad
