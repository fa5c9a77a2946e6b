"""What is said of a training's memory, against tensors counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gfo.engine.training import memory
from gfo.engine.training.memory import Need, gradient_bytes
from gfo.export.classifier import FrozenClassifier
from gfo.export.occluded import OccludedClassifier
from gfo.export.preprocessing import Preprocessing

CPU = torch.device("cpu")
GIB = 1 << 30


class Wide(nn.Module):
    """Many wide layers, and in each a temporary that no gradient needs."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.layers = layers
        self.last = nn.Linear(channels, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.first(images)
        for _ in range(self.layers):
            found = torch.tanh(found + 1)  # keeps its result, and not what it is of
        return self.last(found.mean((2, 3)))


def bytes_each(size: int, channels: int, layers: int) -> int:
    preprocessing = Preprocessing(size, size, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    classifier = FrozenClassifier.from_module(Wide(channels, layers), preprocessing)
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
        (5 * GIB, "memory: about 2.0 GiB for a pass of 32 pictures and its gradient, 1.5 GiB for pictures"),
        (2.5 * GIB, "only 1.0 GiB are free beside these: use --pass-size 16"),
        (1 * GIB, "only 0.0 GiB are free beside these: lower --classes-together or --preserve-pictures"),
    ],
)
def test_what_is_not_free_is_said(monkeypatch: pytest.MonkeyPatch, free: float, said: str) -> None:
    monkeypatch.setattr(memory, "available", lambda: free)
    line = Need(GIB // 16, 32, GIB * 3 // 2).described(CPU)
    assert line.endswith(said)


def test_a_system_that_does_not_say_has_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: float("inf"))
    assert "free" not in Need(GIB, 1000, GIB).described(CPU)
