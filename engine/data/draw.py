"""A seeded draw of pictures, evenly over classes, read into memory: for parity checks and calibration."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...export.classifier import FrozenClassifier
from ...export.errors import InputError
from .folders import ClassFolder, list_classes
from .loading import open_source
from .spec import DataSpec

_READ_BLOCK = 64


@dataclass(frozen=True)
class DrawnPictures:
    """Pictures uint8 [N, S, S, 3], N ≥ 1, their class ids int64 [N], and their files."""

    images: Tensor
    labels: Tensor
    files: frozenset[Path]


def draw_pictures(
    data: DataSpec,
    classifier: FrozenClassifier,
    own: Sequence[str],
    count: int,
    seed: int,
    without: Collection[Path] = (),
) -> DrawnPictures:
    """Draw about `count` pictures, the same number of each class, and read them; unreadable ones are left out.

    Parameters
    ----------
    data
        Where from; its `classes` are not read.
    own
        Folders of a bank's classes: pictures come from these, or from all classes of the data where some are missing.
    without
        Files that must not be drawn.

    Raises
    ------
    InputError
        No pictures are there, or none can be read.
    """
    # A single occluder meets pictures of other classes only if these are read too.
    there = len(own) > 1 and all((data.folder / folder).is_dir() for folder in own)
    folders = list_classes(data, list(own) if there else "all", classifier.num_classes, seed)
    rng, share = np.random.default_rng(seed), -(-count // len(folders))
    chosen = [(path, folder.class_id) for folder in folders for path in _some(data, folder, share, rng, without)]
    if not chosen:
        raise InputError(f"{data.folder}: all its pictures served the calibration; check with others")
    paths, labels = [path for path, _ in chosen], torch.tensor([class_id for _, class_id in chosen])
    blocks = list(open_source(data, classifier.preprocessing).blocks(paths, _READ_BLOCK))
    images = torch.cat([block.images[block.readable] for block in blocks])
    readable = torch.cat([block.readable + block.start for block in blocks])
    if len(images) == 0:
        raise InputError(f"{data.folder}: none of {len(paths)} pictures could be read; fix them or use other --data")
    return DrawnPictures(images, labels[readable], frozenset(_file(data, path) for path in paths))


def _some(
    data: DataSpec, folder: ClassFolder, count: int, rng: np.random.Generator, without: Collection[Path]
) -> list[str]:
    """Draw paths of a class, in their order."""
    places = rng.permutation(len(folder.paths))
    allowed = [i for i in places if not without or _file(data, folder.paths[i]) not in without]
    return [folder.paths[i] for i in sorted(allowed[:count])]


def _file(data: DataSpec, path: str) -> Path:
    """Return what a picture's path leads to: the same file has several names where there are links."""
    return (data.root / path).resolve()
