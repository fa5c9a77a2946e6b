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


def test_a_short_call_runs_twice_in_a_row_as_the_first_pays_for_the_change(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], list[str]()
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def call(name: str, seconds: float) -> None:
        changed = order[-1:] != [name]
        order.append(name)
        clock[0] += seconds + (0.25 if changed else 0.0)

    found = best_seconds({"a": lambda: call("a", 0.0625), "b": lambda: call("b", 0.125)}, CPU, turns=2)
    assert found == {"a": 0.0625, "b": 0.125}
    assert order == ["a", "b", *["a", "a", "b", "b"] * 2]


@pytest.mark.parametrize(
    ("device", "slow", "calls"),
    [
        ("cpu", [25.0], 1),  # 25 times as long: not again, not even after its first call
        ("cpu", [2.9, 2.9, 3.1], 3),
        ("cpu", [9.0, 2.0, 2.0, 2.0], 1),
        ("cuda", [9.0, 2.0, 2.0, 0.5], 4),  # the first call there compiles kernels
        ("cuda", [9.0, 9.0], 2),
    ],
)
def test_what_takes_several_times_as_long_is_not_tried_again(
    device: str, slow: list[float], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, lengths = [0.0], iter(slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    taken: list[float] = []

    def call(seconds: float | None) -> None:
        if seconds is None:
            seconds = next(lengths)
            taken.append(seconds)
        clock[0] += seconds

    steps = {"fp32": lambda: call(1.0), "bf16": lambda: call(None)}
    name, why = measured_precision(steps, torch.device(device))
    assert len(taken) == calls
    counted = taken[1:] or taken
    assert name == ("fp32" if min(counted) > 1 else "bf16")
    assert why == f"the fastest of fp32 1000 ms, bf16 {min(counted) * 1e3:.0f} ms per step"


def test_short_calls_and_other_choices_are_measured_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], list[str]()
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def call(name: str, seconds: float) -> None:
        order.append(name)
        clock[0] += seconds

    measured_precision({"fp32": lambda: call("a", 0.01), "bf16": lambda: call("b", 0.9)}, CPU)
    assert order == ["a", "b", *["a", "a", "b"] * 3]  # 10 ms twice in a row
    order.clear()
    # Passes of other sizes: what takes longer may still be the fastest by pair.
    best_seconds({8: lambda: call("a", 1.0), 64: lambda: call("b", 7.0)}, CPU, turns=3)
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
