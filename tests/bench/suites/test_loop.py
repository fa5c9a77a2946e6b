"""The suite of the loop: a simulated device is waited for once a part, and is busy for as long as it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gfo.bench import simulated


def test_the_loop_waits_once_a_part_and_is_no_faster_than_the_device(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated, "OCCLUDERS", (10,))
    ended = run("loop", "--seconds", "0.01")
    assert ended.code == 0
    waits = {(row["sizes"], row["stage"]): row["waits"] for row in ended.rows}
    # 512 pictures under 11 rows. Waiting: parts of 32 pictures, 6 passes of 64 or one of 512 each. Ahead: parts of one
    # block of 256 for passes of 64, and of three for those of 512.
    assert waits == {
        ("64 pairs in 2 ms", "loop-waiting"): 16 * 6,
        ("64 pairs in 2 ms", "loop"): 2,
        ("512 pairs in 15 ms", "loop-waiting"): 16,
        ("512 pairs in 15 ms", "loop"): 1,
    }
    assert all(0 < row["ratio"]["median"] <= 1 for row in ended.rows)
    assert all(row["p50"] <= 512 / 15e-3 for row in ended.rows)
