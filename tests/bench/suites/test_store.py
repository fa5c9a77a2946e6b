"""The suite of the store: every step of it runs, and its counts are those of the store."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gfo.bench.answers import store_rows
from gfo.engine.evaluation.metrics import summarize
from gfo.engine.evaluation.store import block_size
from gfo.engine.progress import no_progress


def test_every_step_is_timed_once(run: Callable[..., Any], tmp_path: Path) -> None:
    sizes = ("--pictures", "150", "--occluders", "126")
    ended = run("store", *sizes, "--create-at", "700", "--folder", str(tmp_path))
    assert ended.code == 0
    steps = [(row["stage"], row["pictures"]) for row in ended.rows]
    names = ("create", "write", "pending", "read", "summary")
    assert steps == [*((f"store-{name}", 150) for name in names), ("store-create", 700)]
    blocks = math.ceil(150 / block_size(128))
    # Three arrays of answers and one of stamps; no picture is quarantined.
    assert ended.rows[1]["files"] - ended.rows[0]["files"] == 4 * blocks
    assert {row["files"] for row in ended.rows[1:5]} == {ended.rows[1]["files"]}
    for row in ended.rows:
        assert row["p50"] * row["seconds"] == pytest.approx(128 * row["pictures"])
        assert 0 < row["bytes_per_pair"] < 13
    assert not list(tmp_path.iterdir())


def test_the_answers_are_as_a_networks(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gfo.bench.answers._must_be_whole", lambda store: stores.append(summarize(store)))
    stores: list[Any] = []
    store_rows(600, 10, None, tmp_path, 0, no_progress)
    (found,) = stores
    for cell, accuracy in ((found.clean, 0.76), (found.matched, 0.2), (found.unmatched, 0.55)):
        assert abs(cell.accuracy - accuracy) < 0.06


def test_bad_input_is_one_line(run: Callable[..., Any], tmp_path: Path) -> None:
    for words, named in (
        (("--pictures", "0"), "--pictures 0: must be at least 1"),
        (("--create-at", "0"), "--create-at 0: must be at least 1"),
        (("--occluders", "1"), "--occluders 1: must be at least 2"),
        (("--folder", str(tmp_path / "none")), "no such folder; create it"),
    ):
        ended = run("store", *words)
        assert ended.code == 2
        assert named in ended.err
