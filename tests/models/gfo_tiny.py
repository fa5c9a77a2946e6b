"""A CNN that runs in microseconds, as a user's own module: `python:gfo_tiny:network`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from gfo.export.preprocessing import Preprocessing

OUTPUTS = 5
PREPROCESSING = Preprocessing(16, 18, "bilinear", (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


class TinyCnn(nn.Module):
    """Two convolutions with BatchNorm, pooled to 2x2, a linear layer."""

    preprocessing = PREPROCESSING

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
        )
        self.head = nn.Linear(32, OUTPUTS)
        self._passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self._passes += 1
        _hold(self._passes)
        _die(x)
        return self.head(self.features(x).flatten(1))


def _hold(passes: int) -> None:
    """Stop in pass GFO_TINY_HOLD_AT and say so by the file GFO_TINY_HELD: where a test interrupts."""
    if passes == int(os.environ.get("GFO_TINY_HOLD_AT", "0")):
        Path(os.environ["GFO_TINY_HELD"]).touch()
        time.sleep(60)


def _die(x: Tensor) -> None:
    """Kill this process at a picture of one bright colour, as often as the file GFO_TINY_DEATHS says."""
    if "GFO_TINY_DEATHS" not in os.environ:
        return
    left = Path(os.environ["GFO_TINY_DEATHS"])
    if left.is_file() and bool(((x > 0) & (x == x[..., :1, :1])).flatten(1).all(dim=1).any()):
        count = int(left.read_text())
        if count > 0:
            left.write_text(str(count - 1))
            os.kill(os.getpid(), signal.SIGKILL)


def network() -> nn.Module:
    """Seeded, with BatchNorm statistics that make folding matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TinyCnn()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.3)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model


def no_module() -> str:
    """What a user may return by mistake."""
    return "a string"
