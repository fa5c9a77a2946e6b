"""The ceilings: a large copy, and a large convolution whose FLOP are counted right."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gfo.bench import ceilings
from gfo.bench.ceilings import bandwidth


def test_bandwidth_of_a_small_copy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ceilings, "_COPY_SECONDS", 0.01)
    assert bandwidth("cpu", size=1 << 16) > 0


def test_the_ceilings_arithmetic() -> None:
    found = ceilings.convolution("fp32", torch.device("cpu"))
    assert found is not None
    run, flop = found
    with FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() == flop
