"""The device suite: everything is checked before it is timed, and what fails leaves the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gfo.bench import ceilings, device, kernel_cases
from gfo.bench.kernel_cases import CASES
from gfo.kernels.score import Score

pytestmark = pytest.mark.usefixtures("hurried", "no_large_copies")

MODEL = ("--model", "python:gfo_tiny:network", "--weights", "default", "--seconds", "0.05")
ON_CPU = ("device", *MODEL, "--device", "cpu", "--engine", "torch", "--precision", "fp32")


@pytest.fixture
def no_large_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "bandwidth", lambda device: 1e9)


def test_right_comes_before_fast(run: Callable[..., Any], tiny_data: Path) -> None:
    ended = run(*ON_CPU, "--images", tiny_data / "val")
    assert ended.code == 0
    stages = list(dict.fromkeys(row["stage"] for row in ended.rows))
    wanted = ["kernel-check", "memory-check", "self-test", "bare", "pairs", "end-to-end", "baseline", "kernel"]
    assert stages == [*wanted, "train-baseline", "train", "train-forward"]
    checks = [row for row in ended.rows if row["stage"] == "kernel-check"]
    assert len(checks) == len(CASES) * len(device.AWKWARD)
    assert all(row["passed"] and row["max_error"] < 0.1 and row["engine"] == "reference" for row in checks)
    tests = [row for row in ended.rows if row["stage"] == "self-test" and row["device"] == "cpu"]
    assert [row["precision"] for row in tests] == ["fp32", "bf16", "fp16"]
    assert all(row["max_error"] <= row["allowed_error"] and row["agreement"] > 0.9 for row in tests)
    assert any(line.startswith("right: 53 of 53 checks") for line in ended.out.splitlines()), ended.out
    (line,) = (line for line in ended.out.splitlines() if line.startswith("torch fp32: end-to-end is "))
    assert line.endswith(" times the plain loop")


def test_what_is_wrong_is_counted_and_the_rest_still_runs(
    run: Callable[..., Any], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> Score:
        raise RuntimeError("an illegal memory access was encountered\nmore")

    monkeypatch.setattr(kernel_cases, "score", crash)
    for section in ("self_tests", "throughput_rows", "training_rows"):
        monkeypatch.setattr(device, section, crash)
    monkeypatch.setattr(device, "AWKWARD", device.AWKWARD[:1])
    ended = run(*ON_CPU, "--images", tiny_data / "val")
    assert ended.code == 4
    wrong = [row for row in ended.rows if row["passed"] is False]
    assert [row["stage"] for row in wrong] == ["kernel-check", "self-test", "pairs", "kernel", "train"]
    assert all("an illegal memory access was encountered" in row["reason"] for row in wrong)
    assert all(row["p50"] is None for row in wrong)
    assert sum(row["p50"] is not None for row in ended.rows) == 2 * len(CASES) - 1
    assert any("WRONG" in line for line in ended.out.splitlines())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_device_that_is_not_there_is_3(run: Callable[..., Any]) -> None:
    ended = run("device", *MODEL, "--device", "cuda")
    assert (ended.code, ended.out) == (3, "")
    assert "CUDA" in ended.err
