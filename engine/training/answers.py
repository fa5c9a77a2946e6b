"""What the frozen network answers to many pictures, clean or under one occluder, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ...export.errors import InputError
from ...export.occluded import OccludedClassifier
from ..devices import finite_fix
from .batches import Fitted


def logits_of(
    network: OccludedClassifier, images: Tensor, device: torch.device, pass_size: int, occluder: Tensor | None = None
) -> Tensor:
    """Return the network's logits for pictures, float32 [M, C] on the CPU.

    Parameters
    ----------
    images
        uint8 [M, S, S, 3].
    occluder
        float32 [S, S, 3] in pixel units, on `device`; None means without an occluder.

    Raises
    ------
    InputError
        The logits are not finite: a comparison would take them for wrong answers.
    """
    bank = torch.zeros(0, *images.shape[1:], device=device) if occluder is None else occluder[None]
    found: list[Tensor] = []
    with torch.no_grad():
        for part in images.split(pass_size):
            index = torch.arange(len(part), device=device)
            occluders = torch.full_like(index, len(bank))  # 0 is clean, 1 the only one
            found.append(network(part.to(device), index, occluders, bank, validate=False))
    logits = torch.cat(found).cpu()  # once: a copy waits for the passes before it
    if not bool(logits.isfinite().all()):
        raise InputError(f"--precision {network.precision}: logits are not finite; {finite_fix(network.precision)}")
    return logits


def accuracy_left(
    network: OccludedClassifier, pictures: Fitted, device: torch.device, pass_size: int, occluder: Tensor | None = None
) -> float:
    """Return the top-1 accuracy on pictures; parameters and errors are those of `logits_of`."""
    logits = logits_of(network, pictures.images, device, pass_size, occluder)
    return int((logits.argmax(dim=1) == pictures.labels.cpu()).sum()) / len(pictures.labels)
