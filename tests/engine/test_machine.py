"""How a choice is measured: by the fastest call, without what fails."""

from __future__ import annotations

import time

import pytest
import torch

from gfo.engine.machine import best_seconds, measured_precision

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


def test_what_fails_is_left_out() -> None:
    def fails() -> None:
        raise RuntimeError("no bf16 here")

    name, why = measured_precision({"bf16": fails, "fp32": lambda: None}, CPU)
    assert name == "fp32"
    assert "bf16" not in why
    with pytest.raises(RuntimeError, match="no bf16 here"):
        measured_precision({"bf16": fails}, CPU)
    with pytest.raises(RuntimeError):
        best_seconds({"bf16": fails, "fp32": lambda: None}, CPU)
