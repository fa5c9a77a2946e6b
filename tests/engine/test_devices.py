"""What float32 means on a GPU; the switches are there without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gfo.engine.devices import exact_float32

GPU = torch.device("cuda")


def modes() -> tuple[str, str]:
    """Of convolutions and of matrix products."""
    backends: Any = torch.backends
    return backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision


@pytest.mark.parametrize(("precision", "wanted"), [("fp32", ("ieee", "ieee")), ("tf32", ("tf32", "ieee"))])
def test_a_mode_holds_inside_whatever_is_set_around_it(precision: str, wanted: tuple[str, str]) -> None:
    before = modes()
    for around in ("fp32", "tf32", "bf16"):
        with exact_float32(around, GPU), exact_float32(precision, GPU):
            assert modes() == wanted
    assert modes() == before


def test_other_precisions_and_the_cpu_have_nothing_to_set() -> None:
    before = modes()
    with exact_float32("bf16", GPU):
        assert modes() == before
    with exact_float32("fp32", torch.device("cpu")):
        assert modes() == before
