"""Stores with given answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gfo.engine.evaluation.store import RunStore
from gfo.engine.evaluation.summary import Run
from gfo.kernels.score import Score


@pytest.fixture(scope="module")
def make(run_record: Run) -> Callable[..., RunStore]:
    """Write a store: `make(folder, predictions, labels, bank, quarantined, preserved)`."""

    def make(
        folder: Path,
        predictions: np.ndarray,
        labels: list[int],
        bank: list[int],
        quarantined: dict[int, str] | None = None,
        preserved: tuple[int, ...] = (),
    ) -> RunStore:
        ids = sorted({*labels, *bank})
        names, folders = ({str(i): f"{word}{i}" for i in ids} for word in ("name ", "f"))
        ours = {"class_ids": tuple(bank), "class_names": names, "folders": folders}
        run = replace(run_record, **ours, preserved_classes=preserved)
        paths = [f"val/f{label}/{i}.png" for i, label in enumerate(labels)]
        fit, occluders = [0] * len(labels), [-1, *bank, -2]
        store = RunStore.create(folder, run, paths=paths, labels=labels, fit=fit, occluders=occluders)
        flat = torch.from_numpy(predictions).flatten()
        whole = Score(flat, flat, torch.zeros(len(flat)))
        assert len(labels) <= store.block
        store.write(0, whole, quarantined or {})
        return store

    return make
