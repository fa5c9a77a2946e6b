"""What is said of a training's memory, against tensors counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gfo.engine.data.spec import DataSpec
from gfo.engine.training import memory
from gfo.engine.training.config import TrainConfig
from gfo.engine.training.memory import Need, gradient_bytes
from gfo.engine.training.preserve import PreserveConfig
from gfo.engine.training.train import train
from gfo.export.classifier import FrozenClassifier
from gfo.export.occluded import OccludedClassifier
from gfo.export.preprocessing import Preprocessing

CPU = torch.device("cpu")
GIB, OUTPUTS = 1 << 30, 12


class Wide(nn.Module):
    """Layers of which autograd keeps the result, and not the sum that it is of."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.layers = layers
        self.last = nn.Linear(channels, OUTPUTS)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.first(images)
        for _ in range(self.layers):
            found = torch.tanh(found + 1)
        return self.last(found.mean((2, 3)))


def classifier_of(size: int, channels: int, layers: int) -> FrozenClassifier:
    preprocessing = Preprocessing(size, size, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    return FrozenClassifier.from_module(Wide(channels, layers), preprocessing)


def bytes_each(size: int, channels: int, layers: int) -> int:
    classifier = classifier_of(size, channels, layers)
    network = OccludedClassifier(classifier, "fp32", impl="reference").settled(CPU, gradient=True)
    return gradient_bytes(network, size, CPU)


def test_what_autograd_keeps_is_counted() -> None:
    """A further layer adds its result, float32 [channels, S, S], and nothing else."""
    few, many = bytes_each(16, 32, 2), bytes_each(16, 32, 6)
    assert many - few == pytest.approx(1.25 * 4 * 4 * 32 * 16 * 16, abs=4)
    assert few >= 1.25 * 2 * 4 * 32 * 16 * 16


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (
            5 * GIB,
            "memory: about 2,048 MiB for a pass of 32 pictures and its gradient, 1,536 MiB for pictures in memory",
        ),
        (2.5 * GIB, "only 1,024 MiB are free beside these: use --pass-size 16"),
        (1 * GIB, "only 0 MiB are free beside these: lower --classes-together or --per-class"),
    ],
)
def test_what_is_not_free_is_said(monkeypatch: pytest.MonkeyPatch, free: float, said: str) -> None:
    monkeypatch.setattr(memory, "available", lambda: free)
    line = Need(GIB // 16, 32, GIB * 3 // 2, 0).described(CPU)
    assert line.endswith(said)


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (2.5, "5,120 MiB for pictures in memory"),
        (1.75, "only 1,280 MiB are free beside these on the GPU: use --pass-size 20"),
        (0.5, "only 0 MiB are free beside these on the GPU: lower --classes-together or --per-class"),
    ],
)
def test_what_pytorch_keeps_on_a_gpu_is_free(monkeypatch: pytest.MonkeyPatch, free: float, said: str) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free * GIB), 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 4 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 3 * GIB)
    assert Need(GIB // 16, 32, 5 * GIB, GIB * 3 // 2).described(torch.device("cuda")).endswith(said)


@pytest.mark.parametrize(
    ("options", "preserved", "pictures"),
    [
        ({}, 0, 5 + 3),
        ({"target_accuracy": 0.1}, 0, 5 + 3 + 2 + 2),
        ({}, 2, 2 + 5 + 3),
        ({}, 9, 3 * 9),
    ],
)
def test_pictures_of_the_largest_group_are_counted(
    options: dict[str, Any], preserved: int, pictures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three classes of 5, 3 and 7 fitted pictures, 2 held out of each, in groups of two and one."""
    asked: list[Need] = []
    monkeypatch.setattr(Need, "described", lambda need, _: asked.append(need) or "")
    rng = np.random.default_rng(0)
    for folder, count in (("ant", 7), ("bee", 5), ("cat", 9), *((f"other-{i}", 1) for i in range(preserved))):
        root = tmp_path / ("others" if folder.startswith("other") else "data") / "train" / folder
        root.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / f"{i}.png")
    names = ["ant", "bee", "cat", *(f"other-{i}" for i in range(preserved))]
    (tmp_path / "map.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    if preserved:
        keep = PreserveConfig((str(tmp_path / "others"),), wrong=True)
        options = {**options, "objective": "specific", "preserve": keep}
    config = TrainConfig(
        epsilon=8.0, epochs=1, batch_size=4, classes_together=2, held_out=2, precision="fp32", **options
    )
    data = DataSpec(tmp_path / "data", "train", None, tmp_path / "map.json")
    train(classifier_of(16, 8, 1), data, tmp_path / "bank.safetensors", config)
    (need,) = asked
    assert (need.pictures, need.pass_size) == (pictures * 3 * 16 * 16, 4)


def test_a_system_that_does_not_say_has_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: float("inf"))
    assert "free" not in Need(GIB, 1000, GIB, GIB).described(CPU)
