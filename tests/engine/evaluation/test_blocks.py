"""Blocks on their way to the store: what lies side by side in a file is written together, and nothing is lost."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gfo.engine.evaluation import blocks as module
from gfo.engine.evaluation.blocks import ScoredBlock, Writer
from gfo.kernels.score import Score

SIZE = 4


def scored(start: int, pictures: int = SIZE, rows: int = 3) -> ScoredBlock:
    """Scores that name their picture, and a reason for the last one."""
    values = torch.arange(start, start + pictures).repeat_interleave(rows)
    return ScoredBlock(start, Score(values, values + 1, values / 2), {pictures - 1: f"broken {start + pictures - 1}"})


class Written:
    """Takes what a writer writes, and unpacks it picture by picture."""

    def __init__(self) -> None:
        self.calls: list[range] = []
        self.pictures: dict[int, tuple[list[int], str | None, int | None]] = {}

    def __call__(self, start: int, scores: Score, reasons: Mapping[int, str], stamps: Sequence[int] | None) -> None:
        table = scores.prediction.view(-1, 3)
        assert torch.equal(scores.rank, scores.prediction + 1)
        self.calls.append(range(start, start + len(table)))
        for i, values in enumerate(table.tolist()):
            assert start + i not in self.pictures
            self.pictures[start + i] = values, reasons.get(i), None if stamps is None else stamps[i]


@given(st.lists(st.integers(0, 19), unique=True, max_size=20), st.integers(1, 5), st.booleans())
def test_every_block_is_written_once_and_files_together(order: list[int], shard: int, stamped: bool) -> None:
    """Blocks in any order, though they come sorted: those that follow each other in a file are one write."""
    starts = [SIZE * i for i in order]
    written = Written()
    stamps = {start: [1000 + start + i for i in range(SIZE)] for start in starts} if stamped else {}
    with Writer(written, stamps, lambda start: start // (shard * SIZE) if start in starts else None) as writer:
        for start in starts:
            writer.write(scored(start), SIZE)
    assert sorted(written.pictures) == sorted(start + i for start in starts for i in range(SIZE))
    for picture, (values, reason, stamp) in written.pictures.items():
        assert values == [picture] * 3
        assert reason == (f"broken {picture}" if picture % SIZE == SIZE - 1 else None)
        assert stamp == (1000 + picture if stamped else None)
    for call in written.calls:
        assert call[0] // (shard * SIZE) == call[-1] // (shard * SIZE)
    if order == sorted(order):
        files = {(i - at, i // shard) for at, i in enumerate(order)}  # runs of neighbours, cut where a file ends
        assert len(written.calls) == len(files)


def test_a_file_that_takes_long_is_written_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 8))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(now)))
    written = Written()
    with Writer(written, {}, lambda start: "one file" if start < 40 else None) as writer:
        for start in range(0, 40, SIZE):
            writer.write(scored(start), SIZE)
            writer._pool.submit(int).result()  # what was to be written is written
            assert sum(map(len, written.calls)) >= start + SIZE - 4 * SIZE
    assert [len(call) for call in written.calls] == [16, 16, 8]


def test_what_is_held_is_written_though_the_work_ends_early() -> None:
    written = Written()

    def interrupted() -> None:
        with Writer(written, {}, lambda start: "one file") as writer:
            for start in (0, 4):
                writer.write(scored(start), SIZE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert written.calls == [range(8)]


def test_a_write_that_fails_ends_the_work() -> None:
    def fail(*_: object) -> None:
        raise OSError("no space")

    def endless() -> None:
        with Writer(fail, {}, lambda start: start) as writer:
            for start in itertools.count(0, SIZE):
                writer.write(scored(start), SIZE)

    with pytest.raises(OSError, match="no space"):
        endless()
