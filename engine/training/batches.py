"""Batches of training pictures: a few classes in memory, each in a seeded order, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...export.errors import InputError
from ..data.folders import ClassFolder
from ..data.source import PictureSource
from .checkpoint import Unreadable

_READ_BLOCK = 256


@dataclass(frozen=True)
class Batch:
    """Pictures of one step: `images` uint8 [P, S, S, 3], `occluder_index` int64 [P] (1 … G), `labels` int64 [P]."""

    images: Tensor
    occluder_index: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(self.images.to(device), self.occluder_index.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ClassPictures:
    """Training pictures of one class: the readable ones, `images` uint8 [n, S, S, 3], n ≥ 1, and the others' names."""

    folder: ClassFolder
    images: Tensor
    unreadable: Sequence[Unreadable] = ()

    def order(self, epoch: int, pictures: int, seed: int) -> Tensor:
        """Return the positions that an epoch takes, int64 [pictures]: as many seeded permutations as that needs."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + self.folder.class_id * 1009 + epoch)
        rounds = math.ceil(pictures / len(self.images))
        return torch.cat([torch.randperm(len(self.images), generator=generator) for _ in range(rounds)])[:pictures]


@dataclass(frozen=True)
class Batches:
    """The cut of an epoch: `share` pictures of each class in a step, `steps` steps; small classes start over."""

    share: int
    steps: int

    def of(self, work: Sequence[ClassPictures], epoch: int, seed: int) -> Iterator[Batch]:
        """Yield the batches of an epoch; the G classes in work take the occluders 1 … G, in order."""
        orders = [c.order(epoch, self.steps * self.share, seed) for c in work]
        occluder_index = torch.arange(1, len(work) + 1).repeat_interleave(self.share)
        labels = torch.tensor([c.folder.class_id for c in work]).repeat_interleave(self.share)
        for start in range(0, self.steps * self.share, self.share):
            places = slice(start, start + self.share)
            chosen = [c.images[order[places]] for c, order in zip(work, orders, strict=True)]
            yield Batch(torch.cat(chosen), occluder_index, labels)


def read_class(folder: ClassFolder, paths: Sequence[str], source: PictureSource) -> ClassPictures:
    """Read the pictures of a class into memory.

    Raises
    ------
    InputError
        No picture can be read.
    """
    images, unreadable = [], []
    for block in source.blocks(paths, _READ_BLOCK):
        images.append(block.images[block.readable].cpu())
        unreadable += [Unreadable(paths[block.start + i], reason) for i, reason in block.quarantined.items()]
    if len(unreadable) == len(paths):
        split = Path(paths[0]).parts[0]  # the class of a tar file has no folder, and is named as if it had
        raise InputError(
            f"{split}/{folder.folder}: none of its {len(paths)} pictures could be read "
            f"({unreadable[0].reason}); fix them or leave the class out"
        )
    return ClassPictures(folder, torch.cat(images), unreadable)
