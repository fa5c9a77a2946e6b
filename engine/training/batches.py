"""Batches of training pictures: a few classes in memory, each in a seeded order, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...export.errors import InputError
from ..data.folders import ClassFolder
from ..data.source import PictureSource
from .augment import augmented

_READ_BLOCK = 256
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Unreadable:
    """A training picture that could not be read: its path relative to the data folder, and the decoder's reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Pictures of one step: those that occluders are fitted to, and behind them those whose answers are preserved.

    Attributes
    ----------
    images
        uint8 [P, S, S, 3].
    occluder_index
        int64 [P], 1 … G: the occluder that each picture meets.
    labels
        int64 [N], the classes of the first N pictures, those of the occluders' own.
    clean
        float32 [P − N, C], the network's logits for the others without an occluder; None where P = N.
    """

    images: Tensor
    occluder_index: Tensor
    labels: Tensor
    clean: Tensor | None = None

    @classmethod
    def of_noise(cls, count: int, size: int, groups: int, outputs: int) -> Batch:
        """Return seeded noise, `count` pictures of `size` divided among `groups` occluders, for timing."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
        index = torch.arange(1, groups + 1).repeat_interleave(math.ceil(count / groups))[:count]
        return cls(images, index, index % outputs)

    def parts(self, size: int) -> Iterator[Batch]:
        """Yield the batch in parts of at most `size` pictures each."""
        own = len(self.labels)
        for start in range(0, len(self.images), size):
            part = slice(start, start + size)
            kept = slice(max(start - own, 0), max(start + size - own, 0))
            clean = None if self.clean is None or start + size <= own else self.clean[kept]
            yield Batch(self.images[part], self.occluder_index[part], self.labels[part], clean)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        clean = None if self.clean is None else self.clean.to(device)
        return Batch(self.images.to(device), self.occluder_index.to(device), self.labels.to(device), clean)


@dataclass(frozen=True)
class ClassPictures:
    """Training pictures of one class: the readable ones, `images` uint8 [n, S, S, 3], n ≥ 1, and the others' names."""

    folder: ClassFolder
    images: Tensor
    unreadable: Sequence[Unreadable] = ()


class Fitted:
    """The pictures that one occluder is fitted to, of one class or of all that share it.

    Attributes
    ----------
    index
        Number of the occluder among those in work, from 1 on.
    class_id
        The class, or the first of them; it seeds the order of the pictures.
    images, labels
        uint8 [n, S, S, 3], and their classes, int64 [n], on the device where batches are to be.
    """

    def __init__(self, classes: Sequence[ClassPictures], index: int = 1, device: torch.device = _CPU) -> None:
        self.index = index
        self.class_id = classes[0].folder.class_id
        images = classes[0].images if len(classes) == 1 else torch.cat([c.images for c in classes])
        self.images = images.to(device)
        self.labels = torch.cat([torch.full((len(c.images),), c.folder.class_id) for c in classes]).to(device)

    def order(self, epoch: int, pictures: int, seed: int) -> Tensor:
        """Return the places that an epoch takes, int64 [pictures] where the pictures are.

        They are as many seeded permutations as that needs.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + self.class_id * 1009 + epoch)
        rounds = math.ceil(pictures / len(self.images))
        orders = [torch.randperm(len(self.images), generator=generator) for _ in range(rounds)]
        return torch.cat(orders)[:pictures].to(self.images.device)


@dataclass(frozen=True)
class Pool:
    """Pictures whose answers are preserved.

    Attributes
    ----------
    images
        uint8 [M, S, S, 3].
    labels
        int64 [M], the classes of their folders.
    clean
        float32 [M, C], what the network answers without an occluder.

    All are on the device where batches are to be.
    """

    images: Tensor
    labels: Tensor
    clean: Tensor

    @cached_property
    def answers(self) -> Tensor:
        """The classes that the network answers without an occluder, int64 [M]."""
        return self.clean.argmax(dim=1)

    def for_class(self, class_id: int) -> Tensor:
        """Return the places of the pictures that the occluder of a class may meet, int64."""
        others = (self.labels != class_id) & (self.answers != class_id)
        return others.nonzero().squeeze(1)


@dataclass(frozen=True)
class Batches:
    """The cut of an epoch.

    Attributes
    ----------
    share
        Number of own pictures of each occluder in a step.
    rounds
        Number of steps with own pictures; an occluder with fewer pictures starts over.
    kept
        Number of preserved pictures of each occluder in a step.
    every
        0: own and preserved pictures share each step. N > 0: a step of preserved ones alone follows N of own ones.
    augment
        Names in `AUGMENTATIONS`, applied to own pictures in turn.
    """

    share: int
    rounds: int
    kept: int = 0
    every: int = 0
    augment: Sequence[str] = ()

    @property
    def steps(self) -> int:
        """Number of steps of an epoch."""
        return self.rounds + (self.rounds // self.every if self.every else 0)

    def of(self, work: Sequence[Fitted], epoch: int, seed: int, pool: Pool | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        The preserved pictures of an occluder go on from epoch to epoch through seeded permutations of all it may meet.
        What a batch is made of is where the pictures are from the first on: a GPU is not waited for between two.
        """
        orders = [w.order(epoch, self.rounds * self.share, seed) for w in work]
        own = _repeated(work, self.share)
        keeps = self._keeps(work, epoch, seed, pool)
        for count in range(self.rounds):
            places = slice(count * self.share, (count + 1) * self.share)
            images = [
                augmented(w.images[order[places]], self.augment, (seed, w.class_id, epoch, count))
                for w, order in zip(work, orders, strict=True)
            ]
            labels = torch.cat([w.labels[order[places]] for w, order in zip(work, orders, strict=True)])
            kept = next(keeps, None) if not self.every else None
            if kept is None:
                yield Batch(torch.cat(images), own, labels)
            else:
                yield Batch(
                    torch.cat([*images, kept.images]), torch.cat([own, kept.occluder_index]), labels, kept.clean
                )
            if self.every and (count + 1) % self.every == 0:
                yield next(keeps)

    def _keeps(self, work: Sequence[Fitted], epoch: int, seed: int, pool: Pool | None) -> Iterator[Batch]:
        """Yield the preserved pictures of each step that has any."""
        if pool is None:
            return
        steps = self.rounds // self.every if self.every else self.rounds
        device, orders = pool.images.device, list[Tensor]()
        for w in work:
            places = pool.for_class(w.class_id)
            drawn = _drawn(len(places), epoch * steps * self.kept, steps * self.kept, [seed, w.class_id])
            orders.append(places[drawn.to(device)])
        index, none = _repeated(work, self.kept), torch.zeros(0, dtype=torch.int64, device=device)
        for start in range(0, steps * self.kept, self.kept):
            places = torch.cat([order[start : start + self.kept] for order in orders])
            yield Batch(pool.images[places], index, none, pool.clean[places])


def _repeated(work: Sequence[Fitted], times: int) -> Tensor:
    """Return the index of each occluder in work `times` times, int64 where the pictures are."""
    return torch.tensor([w.index for w in work]).repeat_interleave(times).to(work[0].images.device)


def _drawn(size: int, start: int, count: int, seed: list[int]) -> Tensor:
    """Return places start … start + count − 1 of an endless series of seeded permutations of 0 … size − 1."""
    first, last = start // size, (start + count - 1) // size
    rounds = [np.random.default_rng([*seed, number]).permutation(size) for number in range(first, last + 1)]
    return torch.from_numpy(np.concatenate(rounds)[start - first * size :][:count])


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
