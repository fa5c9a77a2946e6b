"""The suite of training steps on a tiny network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MODEL = ("--model", "python:gfo_tiny:network", "--weights", "default", "--seconds", "0.2")


def test_training_steps(run: Callable[..., Any]) -> None:
    ended = run("train", *MODEL, "--precision", "fp32,bf16")
    assert ended.code == 0
    assert [row["stage"] for row in ended.rows] == ["train-baseline", "train", "train"]
