"""Passes that do not fit into the memory of a GPU are followed by smaller ones, and the answers are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gfo.engine import EngineChoice, EvaluationConfig, evaluate
from gfo.engine.data.spec import DataSpec
from gfo.engine.engines.base import Listed
from gfo.engine.engines.torch import TorchEngine
from gfo.engine.evaluation.store import RunStore
from gfo.engine.progress import Silent
from gfo.export.errors import InputError
from gfo.export.models.spec import ModelSpec
from gfo.kernels.score import Score

MODEL = ModelSpec("python:gfo_tiny:network")
CONFIG = EvaluationConfig(EngineChoice("torch", "fp32", "cpu"), batch_size=32)


class Lines(Silent):
    """What is said, and what the bar has come to."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.done = 0.0

    def say(self, line: str) -> None:
        self.said.append(line)

    def advance(self, amount: float, note: str = "") -> None:
        self.done += amount


def full_at(most: int, patch: pytest.MonkeyPatch, *, ahead: bool) -> None:
    """Make passes of more than `most` pairs fail: at once, or on a device that runs ahead when they are waited for."""
    queue, fetch = TorchEngine.queue, TorchEngine.fetch

    def queued(engine: TorchEngine, images: Tensor, pairs: Listed) -> Score:
        if not ahead and len(pairs.labels) > most:
            raise torch.OutOfMemoryError("full")
        return queue(engine, images, pairs)

    def fetched(engine: TorchEngine, scores: Sequence[Score]) -> Callable[[], Score]:
        if not ahead:
            return fetch(engine, scores)

        def waited() -> Score:
            if any(len(score.rank) > most for score in scores):
                raise torch.OutOfMemoryError("full")
            return Score(*(torch.cat(part) for part in zip(*scores, strict=True)))

        return waited

    patch.setattr(TorchEngine, "queue", queued)
    patch.setattr(TorchEngine, "fetch", fetched)
    patch.setattr(TorchEngine, "runs_ahead", property(lambda engine: ahead))
    patch.setattr(TorchEngine, "_together", lambda engine, tensors: tensors)  # there is no GPU to copy them to


@pytest.mark.parametrize("ahead", [False, True])
def test_passes_that_do_not_fit_get_smaller(
    ahead: bool, tiny_data: Path, tiny_bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gfo.engine.evaluation.store._MOST", 4)  # blocks: several parts are on their way
    data, lines = DataSpec(tiny_data), Lines()
    plain = evaluate(MODEL, tiny_bank, data, tmp_path / "plain", replace(CONFIG, batch_size=8))
    with monkeypatch.context() as patch:
        full_at(8, patch, ahead=ahead)
        small = evaluate(MODEL, tiny_bank, data, tmp_path / "small", CONFIG, lines)
    said = [line for line in lines.said if "does not fit" in line]
    name = "--batch-size {}: does not fit into the memory of cpu; use a smaller one; going on with {} pairs in a pass"
    assert [line.replace(", square", "") for line in said] == [name.format(32, 16), name.format(16, 8)]
    assert small.pairs == plain.pairs == lines.done  # what is done again counts once
    before, after = (RunStore.open(tmp_path / name) for name in ("plain", "small"))
    assert (before.predictions(0, 18) == after.predictions(0, 18)).all()


def test_a_single_pair_that_does_not_fit_ends_the_run(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_at(0, monkeypatch, ahead=False)
    with pytest.raises(InputError, match="--batch-size 1: does not fit into the memory of cpu"):
        evaluate(MODEL, tiny_bank, DataSpec(tiny_data), tmp_path / "run", CONFIG)
