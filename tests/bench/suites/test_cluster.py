"""The suite `cluster`: every task comes back once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("distributed")


def test_tasks_are_timed(run: Callable[..., Any]) -> None:
    ended = run("cluster", "--tasks", "20")
    assert ended.code == 0
    (row,) = ended.rows
    assert (row["stage"], row["engine"], row["unit"], row["sizes"]) == (
        "cluster-tasks",
        "dask",
        "tasks/s",
        "20 tasks, local:1",
    )
    assert row["p50"] > 0
    assert row["grown_mb"] >= 0


@pytest.mark.parametrize(
    ("words", "named"),
    [(("--tasks", "0"), "--tasks 0: must be at least 1"), (("--cluster", "here"), "--cluster here: expected local")],
)
def test_bad_input(run: Callable[..., Any], words: tuple[str, ...], named: str) -> None:
    ended = run("cluster", *words)
    assert ended.code == 2
    assert named in ended.err
