"""The straightforward formulas that the kernels replace: what one writes first in eager PyTorch, from the paper.

`rows` is the bank with a row of zeros first, for the clean picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

Results = tuple[Tensor, ...]

EPSILON, STEP, DECAY, KAPPA = 10.0, 1.0, 0.9, 3.0
BETA1, BETA2, TINY, COUNT = 0.9, 0.999, 1e-8, 100


def occlude_formula(
    images: Tensor,
    rows: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    scale: Tensor,
    shift: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Compute `occlude`: [P, 3, H, W]."""
    occluded = (images[image_index].float() + rows[occluder_index]).clamp(0, 255)
    return (occluded * scale + shift).permute(0, 3, 1, 2).to(dtype)


def occlude_grid_formula(
    images: Tensor,
    rows: Tensor,
    image_index: Tensor,
    occluder_index: Tensor,
    scale: Tensor,
    shift: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Compute `occlude` of a `Grid`: [I · J, 3, H, W]."""
    occluded = (images[image_index].float()[:, None] + rows[occluder_index]).clamp(0, 255)
    return (occluded * scale + shift).flatten(0, 1).permute(0, 3, 1, 2).to(dtype)


def margin_formula(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute `margin_loss`: [P]."""
    column = labels[:, None]
    others = logits.scatter(1, column, float("-inf"))
    return (logits.gather(1, column)[:, 0] - others.max(dim=1).values).clamp(min=-KAPPA)


def score_formula(logits: Tensor, labels: Tensor) -> Results:
    """Compute `score`: prediction, rank and margin, each [P]."""
    values, order = logits.sort(dim=1, descending=True, stable=True)
    rank = (order == labels[:, None]).int().argmax(dim=1)
    best_other = torch.where(rank == 0, values[:, 1], values[:, 0])
    return logits.argmax(dim=1), rank, logits.gather(1, labels[:, None])[:, 0] - best_other


def momentum_formula(occluders: Tensor, momentum: Tensor, gradient: Tensor) -> Results:
    """Compute `momentum_step`: the new occluders and momentum."""
    momentum = DECAY * momentum + gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
    return (occluders - STEP * momentum.sign()).clamp(-EPSILON, EPSILON), momentum


def adam_formula(occluders: Tensor, first: Tensor, second: Tensor, gradient: Tensor) -> Results:
    """Compute `adam_step`: the new occluders and moments."""
    first = BETA1 * first + (1 - BETA1) * gradient
    second = BETA2 * second + (1 - BETA2) * gradient**2
    update = first / (1 - BETA1**COUNT) / ((second / (1 - BETA2**COUNT)).sqrt() + TINY)
    return (occluders - STEP * update).clamp(-EPSILON, EPSILON), first, second
