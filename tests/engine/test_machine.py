"""How a choice is measured: by the fastest call, without what fails."""

from __future__ import annotations

import time

import pytest
import torch

from gfo.engine.machine import best_seconds, measured_precision
from gfo.export.errors import InputError

CPU = torch.device("cpu")


def test_the_fastest_call_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    # The first turn warms up; then one call of each is disturbed.
    lengths = {"a": iter([0.0, 3.0, 9.0, 3.0]), "b": iter([9.0, 9.0, 2.0, 9.0])}
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        clock[0] += next(lengths[name])

    found = best_seconds({name: lambda name=name: call(name) for name in lengths}, CPU, turns=3)
    assert found == {"a": 3.0, "b": 2.0}
    assert order == ["a", "b"] * 4


def test_what_fails_is_left_out_and_the_reason_says_why() -> None:
    def fails() -> None:
        raise NotImplementedError("no bf16 here\nat all")

    def unfit() -> None:
        raise InputError("mine: use fp32")

    name, why = measured_precision({"bf16": fails, "fp32": lambda: None, "fp16": unfit}, CPU)
    assert name == "fp32"
    assert why.endswith(" ms per step; not bf16: NotImplementedError: no bf16 here; not fp16: mine: use fp32")
    with pytest.raises(NotImplementedError, match="no bf16 here"):
        measured_precision({"bf16": fails, "fp16": unfit}, CPU)
    with pytest.raises(RuntimeError):
        best_seconds({"bf16": fails, "fp32": lambda: None}, CPU)
