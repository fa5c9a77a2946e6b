"""Ceilings: what this machine could do at most, measured like everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .measure import Call, Rates, measure, timer

if TYPE_CHECKING:
    from ..export.classifier import FrozenClassifier

_COPY_BYTES, _COPY_SECONDS = {"cpu": 1 << 28, "cuda": 1 << 30}, 1.0
_PICTURES, _CHANNELS, _SIDE = {"cpu": 4, "cuda": 256}, 256, 28


def bandwidth(device: str, *, size: int | None = None) -> float:
    """Measure the bytes a second, read and written, that a large copy moves: the ceiling of any kernel.

    Parameters
    ----------
    device
        `cpu` or `cuda`.
    size
        Bytes of the copied block.
    """
    size = _COPY_BYTES[device] if size is None else size
    source = torch.ones(size, dtype=torch.uint8, device=device)  # ones: pages of fresh zeros need not exist
    target = torch.ones_like(source)
    times = measure({"copy": lambda: target.copy_(source)}, seconds=_COPY_SECONDS, timer=timer(device))
    return 2 * size / float(np.median(times["copy"]))


def convolution(precision: str, device: torch.device) -> tuple[Call, int] | None:
    """Return a large 3 x 3 convolution in PyTorch and its FLOP (an addition is one): a yardstick for the multipliers.

    It comes nearer to them than a matrix product, whose operands are laid out anew in every call. None where the
    precision has no convolution on the device.
    """
    from ..engine.devices import exact_float32
    from ..export.classifier import DTYPES, INT8

    if precision == INT8:
        return None
    pictures, dtype = _PICTURES[device.type], DTYPES[precision]
    channels_last = {"dtype": dtype, "device": device, "memory_format": torch.channels_last}
    pixels = torch.randn(pictures, _CHANNELS, _SIDE, _SIDE).to(**channels_last)
    large = torch.nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1).to(**channels_last)

    @torch.inference_mode()
    def run() -> Tensor:
        with exact_float32(precision, device):
            return large(pixels)

    try:
        run()
    except RuntimeError:
        return None
    return run, 2 * pictures * _SIDE**2 * _CHANNELS**2 * 9


def share(rates: Rates, work: float, seconds: Rates, flop: int) -> float:
    """Return the FLOP/s of what does `work` FLOP at each of `rates`, over that of a yardstick; of medians.

    `seconds` are those that the yardstick's calls took, of `flop` FLOP each (`convolution`).
    """
    return float(np.median(rates * work) / np.median(flop / seconds))


def flops(classifier: FrozenClassifier) -> int:
    """Count the FLOP of the network for one picture, as PyTorch does: convolutions and products; an addition is one."""
    from torch.utils.flop_counter import FlopCounterMode

    size = classifier.preprocessing.input_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        classifier.network(torch.zeros(1, 3, size, size))
    return counter.get_total_flops()
