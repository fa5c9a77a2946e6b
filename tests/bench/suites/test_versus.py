"""The suite `versus`: all engines and precisions take turns, and ratios are to the first that runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("hurried")

MODEL = ("--model", "python:gfo_tiny:network", "--weights", "default", "--seconds", "0.05")


def test_every_row_is_against_the_first(run: Callable[..., Any], tiny_data: Path) -> None:
    words = ("--engine", "openvino,torch", "--precision", "fp32,bf16", "--images", tiny_data / "val")
    ended = run("versus", *MODEL, *words)
    assert ended.code == 0
    named = [(row["stage"], row["engine"], row["precision"]) for row in ended.rows if row["available"]]
    assert named == [("bare", engine, precision) for engine in ("openvino", "torch") for precision in ("fp32", "bf16")]
    first, *others = ended.rows
    assert first["ratio"] is None
    assert {row["rounds"] for row in ended.rows} == {first["rounds"]}
    for row in others:
        assert row["ratio"]["to"] == "openvino fp32"
        assert row["ratio"]["median"] == pytest.approx(row["p50"] / first["p50"])
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]


def test_what_does_not_run_is_a_row(run: Callable[..., Any], tiny_data: Path) -> None:
    words = ("--engine", "onnxruntime,openvino", "--precision", "bf16", "--images", tiny_data / "val")
    ended = run("versus", *MODEL, *words)
    assert ended.code == 0
    found = {row["engine"]: row for row in ended.rows}
    assert found["openvino"]["p50"] > 0
    assert found["openvino"]["ratio"] is None
    assert "bf16" in found["onnxruntime"]["reason"]
    code, out, err = run("versus", *MODEL, "--engine", "onnxruntime", "--precision", "bf16")
    assert (code, out) == (2, "")
    assert "bf16" in err
