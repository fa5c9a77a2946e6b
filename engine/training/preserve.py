"""Pictures of other classes whose answers training is to preserve: which ones, and what the clean network says to them.

They come from the bank's own other classes, from further classes of the data, or from another data folder. An occluder
never meets pictures of its own class among them, nor ones that the network takes for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...export.errors import InputError
from ...export.occluded import OccludedClassifier
from ...export.options import whole_number
from ...export.preprocessing import Preprocessing
from ..data.folders import ClassFolder, list_classes
from ..data.loading import open_source
from ..data.spec import DataSpec
from .answers import logits_of
from .batches import ClassPictures, Pool, read_class

OWN = "classes"
_DRAW = 1  # tells these draws from those that split a class


@dataclass(frozen=True)
class PreserveConfig:
    """Which pictures are preserved and how much they count, checked when it is made.

    Attributes
    ----------
    sources
        Each `classes` (the fitted pictures of the bank's other classes), a number N (N further classes of the data's
        train split, a seeded draw), or a folder that holds `train/<class>/*`, whose classes of the bank are left out.
    share
        Share of a batch that is preserved pictures, above 0 and below 1.
    weight
        Weight α > 0 of their mean loss beside the mean loss of an occluder's own pictures.
    pictures
        Maximum number of pictures, drawn evenly from the classes; all are in memory (uint8).
    wrong
        Whether pictures that the clean network gets wrong are preserved too, with the answer that it gives.
    every
        0: each batch has preserved pictures. N > 0: after N batches of own pictures comes one of preserved ones only,
        and `share` is not read.

    Raises
    ------
    InputError
        A number out of range, or no source.
    """

    sources: tuple[str, ...]
    share: float = 0.5
    weight: float = 1.0
    pictures: int = 4000
    wrong: bool = False
    every: int = 0

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("--preserve: name a folder, classes, or a number of classes")
        twice = next((source for source in self.sources if self.sources.count(source) > 1), None)
        if twice is not None:
            raise InputError(f"--preserve {twice}: is named twice; leave one out")
        if sum(whole_number(source) is not None for source in self.sources) > 1:
            raise InputError(f"--preserve {' '.join(self.sources)}: give one number of classes")
        if self.every and self.share != 0.5:
            raise InputError(f"--preserve-share {self.share}: is not read with --preserve-every; leave one out")
        for option, value, right, expected in (
            ("--preserve-share", self.share, 0 < self.share < 1, "above 0 and below 1"),
            ("--preserve-weight", self.weight, 0 < self.weight <= 1e6, "above 0 and at most 1e+06"),
            ("--preserve-pictures", self.pictures, 1 <= self.pictures <= 10**9, "at least 1 and at most 1e+09"),
            ("--preserve-every", self.every, 0 <= self.every <= 10**5, "at least 0 and at most 1e+05"),
        ):
            if not right:
                raise InputError(f"{option} {value}: must be {expected}")

    def resolved(self) -> PreserveConfig:
        """Return the same pictures for processes in other folders: folders by their whole paths."""

        def resolved(source: str) -> str:
            return source if source == OWN or whole_number(source) is not None else str(Path(source).resolve())

        return replace(self, sources=tuple(map(resolved, self.sources)))

    def header(self) -> dict[str, Any]:
        """Return what the bank's header records under `preserve`, beside the classes."""
        return {"share": self.share, "weight": self.weight, "wrong": self.wrong, "every": self.every}

    def of_batch(self, share: int) -> int:
        """Return how many of an occluder's `share` pictures in a batch are preserved ones, at least 1.

        Raises
        ------
        InputError
            There is no room for one of each kind.
        """
        if self.every:
            return share
        if share < 2:
            raise InputError(
                f"--preserve: an occluder has {share} picture of a batch, and needs one of its own and a preserved "
                "one; raise --batch-size or lower --classes-together"
            )
        return min(share - 1, max(1, round(share * self.share)))


@dataclass(frozen=True)
class Preserved:
    """The pictures that are preserved, before any is read: for each source its data, and the classes with their files.

    An occluder meets those that are not of its own class.
    """

    parts: Sequence[tuple[DataSpec, Sequence[ClassFolder]]]

    @property
    def classes(self) -> list[int]:
        """Class ids, sorted."""
        return sorted({folder.class_id for _, folders in self.parts for folder in folders})

    @property
    def paths(self) -> list[str]:
        """Paths relative to their data's root, sorted."""
        return sorted({path for _, folders in self.parts for folder in folders for path in folder.paths})

    def stamps(self) -> list[int]:
        """Return what tells a changed picture, of each; see `PictureFiles.stamp`."""
        return [data.files.stamp(path) for data, folders in self.parts for folder in folders for path in folder.paths]


def choose_preserved(
    config: PreserveConfig,
    data: DataSpec,
    folders: Sequence[ClassFolder],
    splits: Mapping[int, tuple[Sequence[str], Sequence[str]]],
    outputs: int,
    seed: int,
    say: Callable[[str], None],
) -> Preserved:
    """Choose the pictures to preserve.

    Parameters
    ----------
    data, folders
        The training data, and the bank's classes in it.
    splits
        {class id of the bank: (fitted paths, held-out paths)}.
    outputs
        Number of outputs of the model.
    say
        Takes a line about classes that are left out.

    Raises
    ------
    InputError
        A source that is not there, has no class beyond the bank's, or has fewer than asked for.
    """
    own = {folder.class_id for folder in folders}
    parts: list[tuple[DataSpec, list[ClassFolder]]] = []
    for source in config.sources:
        if source == OWN:
            if len(folders) < 2:
                raise InputError(f"--preserve {OWN}: the bank has one class, and no other to preserve; name a folder")
            parts.append((data, [replace(folder, paths=tuple(splits[folder.class_id][0])) for folder in folders]))
            continue
        count = whole_number(source)
        where = data if count is not None else _folder(source, data)
        others, left_out = _others(where, own, outputs, seed)
        if count is None and left_out:
            named = ", ".join(left_out[:3]) + (", …" if len(left_out) > 3 else "")
            left = f"{len(left_out)} classes of the bank are left out ({named})"
            say(f"--preserve {source}: {left}; --preserve {OWN} preserves these")
        if not others or (count is not None and not 1 <= count <= len(others)):
            fix = "name another folder" if count is None else f"give 1 to {len(others)}" if others else "name a folder"
            raise InputError(f"--preserve {source}: {where.folder} has {len(others)} classes beyond the bank's; {fix}")
        if count is not None:
            drawn = np.random.default_rng([seed, _DRAW]).choice(len(others), count, replace=False)
            others = [others[i] for i in sorted(drawn)]
        parts.append((where, others))
    return Preserved(_limited(parts, config.pictures, seed))


def _folder(source: str, data: DataSpec) -> DataSpec:
    root = Path(source)
    if not (root / "train").is_dir():
        raise InputError(
            f"--preserve {source}: no folder with train/<class>/<pictures>; name one, {OWN}, or a number of classes"
        )
    own_map = None if (root / "classes.json").is_file() else data.class_map
    return replace(data, root=root, split="train", classes=None, class_map=own_map)


def _others(data: DataSpec, own: set[int], outputs: int, seed: int) -> tuple[list[ClassFolder], list[str]]:
    """Return the classes of a data folder that the bank does not have, and the folders of those that it has."""
    every = list_classes(data, "all", outputs, seed)
    return [f for f in every if f.class_id not in own], [f.folder for f in every if f.class_id in own]


def _limited(
    parts: Sequence[tuple[DataSpec, list[ClassFolder]]], most: int, seed: int
) -> list[tuple[DataSpec, list[ClassFolder]]]:
    """Draw at most `most` pictures, as many of each class."""
    classes = sum(len(folders) for _, folders in parts)
    if classes > most:
        raise InputError(f"--preserve-pictures {most}: is below the number of classes to preserve, {classes}; raise it")
    each = most // classes

    def drawn(folder: ClassFolder) -> ClassFolder:
        order = np.random.default_rng([seed, folder.class_id, _DRAW]).permutation(len(folder.paths))[:each]
        return replace(folder, paths=tuple(folder.paths[i] for i in sorted(order)))

    return [(data, [drawn(folder) for folder in folders]) for data, folders in parts]


def read_pool(
    chosen: Preserved,
    config: PreserveConfig,
    own: Sequence[int],
    preprocessing: Preprocessing,
    network: OccludedClassifier,
    device: torch.device,
    pass_size: int,
    say: Callable[[str], None],
) -> Pool:
    """Read the chosen pictures, and keep those that the clean network gets right, or all if `config.wrong`.

    Raises
    ------
    InputError
        No picture of a class can be read, or none is left for the occluder of a class of `own`.
    """
    read: list[ClassPictures] = []
    for data, folders in chosen.parts:
        source = open_source(data, preprocessing, device)
        read += [read_class(folder, folder.paths, source) for folder in folders]
    images = torch.cat([pictures.images for pictures in read])
    labels = torch.cat([torch.full((len(p.images),), p.folder.class_id) for p in read])
    clean = logits_of(network, images, device, pass_size)
    unreadable = [u for pictures in read for u in pictures.unreadable]
    if unreadable:
        first = unreadable[0].path
        say(f"{len(unreadable)} pictures to preserve could not be read and were left out, the first: {first}")
    right = clean.argmax(dim=1) == labels
    kept = torch.ones_like(right) if config.wrong else right
    if not bool(kept.any()):
        raise InputError(
            f"--preserve {' '.join(config.sources)}: the network gets none of the {len(images)} pictures right; check "
            "the class map, or keep its wrong answers with --preserve-wrong"
        )
    of_right = f"the network gets {int(right.sum())} of {len(right)} right"
    pool = Pool(*(tensor[kept].to(device) for tensor in (images, labels, clean)))
    say(f"preserving {len(pool.labels)} pictures of {len(pool.labels.unique())} classes; {of_right}")
    lonely = [class_id for class_id in own if not len(pool.for_class(class_id))]
    if lonely:
        raise InputError(
            f"--preserve {' '.join(config.sources)}: no picture is left for the occluder of class {lonely[0]}: they "
            "are of that class, or the network takes them for it; name others"
        )
    return pool
