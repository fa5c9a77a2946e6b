"""The scaling suite on a tiny network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = ("--model", "python:gfo_tiny:network", "--weights", "default", "--seconds", "0.2")


def test_scaling(run: Callable[..., Any], tiny_data: Path) -> None:
    ended = run("scaling", *MODEL, "--engine", "torch", "--images", tiny_data / "val", "--points", "2x4,5x4,2x9")
    assert ended.code == 0
    rows = ended.rows
    assert [(row["occluders"], row["pictures"]) for row in rows] == [(2, 4), (5, 4), (2, 9)]
    assert [row["ratio"] and row["ratio"]["to"] for row in rows] == [None, "2 x 4", "2 x 4"]
