"""Data: ROOT/<split>/<class>/* or ROOT/<split>/*.tar, and which model output each class is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from ...export.errors import InputError
from .webdataset import shard_pictures, shards_of

if TYPE_CHECKING:
    from timm.data.imagenet_info import ImageNetInfo

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)

_WNID = re.compile(r"n\d{8}")
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class ClassFolder:
    """One class of a split: its folder's name, the model's output index, its files relative to ROOT, sorted.

    In shards a class has no folder: it is called as its folder would be, its files are `<shard>.tar/<member>`.
    """

    folder: str
    class_id: int
    paths: tuple[str, ...]


@cache
def _imagenet_info() -> ImageNetInfo:
    from timm.data.imagenet_info import ImageNetInfo

    return ImageNetInfo("imagenet-1k")


def class_name(model_outputs: int, class_id: int) -> str:
    """A short human name: the first ImageNet synonym for a model with 1,000 outputs, else the index."""
    if model_outputs != _IMAGENET_CLASSES:
        return str(class_id)
    return _imagenet_info().index_to_description(class_id).split(",")[0]


def name_of(class_id: int, model_outputs: int, folders: Mapping[str, str]) -> str:
    """What a class is called where `folders` {class id: folder} are at hand.

    Its folder's name; ImageNet's where the folder is a WordNet id, and where it has no folder but the others are such.
    """
    folder = folders.get(str(class_id))
    if folder is not None and not _WNID.fullmatch(folder):
        return folder
    if any(_WNID.fullmatch(other) for other in folders.values()):
        return class_name(model_outputs, class_id)
    return str(class_id)


def list_classes(
    root: Path, split: Split, *, classes: str | Sequence[str], model_outputs: int, class_map: Path | None, seed: int
) -> list[ClassFolder]:
    """The classes of a split that are to be read, in folder order.

    Parameters
    ----------
    root
        Holds `train/<folder>/*` or `val/<folder>/*`, or WebDataset shards `train/*.tar` or `val/*.tar`; only the split
        that is read must exist.
    classes
        `all`, `random:N` (seeded), or folder names (a list, or one string separated by commas).
    model_outputs
        Every class id must be below it.
    class_map
        JSON {folder: index}; else ROOT/classes.json, else WordNet ids for a model with 1,000 outputs.

    Raises
    ------
    InputError
        A folder that is missing or empty, a class that the data or the model does not know, a map that is not valid.
    """
    base = root / split
    if not base.is_dir():
        raise InputError(f"{base}: no such folder; --data must hold {split}/<class>/<pictures>")
    folders = sorted(entry.name for entry in os.scandir(base) if entry.is_dir() and not entry.name.startswith("."))
    shards = shards_of(base)
    if folders and shards:
        raise InputError(f"{base}: holds class folders and tar shards; keep one of the two there")
    if shards:
        return _shard_classes(root, base, shards, classes, model_outputs, class_map, seed)
    if not folders:
        raise InputError(f"{base}: holds no class folders; expected {split}/<class>/<pictures> or {split}/*.tar")
    chosen = _choose(folders, classes, base, seed)
    ids = _class_ids(root, chosen, model_outputs, class_map)
    return [ClassFolder(folder, ids[folder], _files(base / folder, root)) for folder in chosen]


def _shard_classes(
    root: Path,
    base: Path,
    shards: Sequence[Path],
    classes: str | Sequence[str],
    model_outputs: int,
    class_map: Path | None,
    seed: int,
) -> list[ClassFolder]:
    """Classes of shards, which say the model's output themselves; a class map, or ImageNet, gives their names."""
    pictures = shard_pictures(root, shards)
    out = next((index for index in sorted(pictures) if index >= model_outputs), None)
    if out is not None:
        raise InputError(
            f"{base}: {pictures[out][0]} is of class {out}, the model has outputs 0..{model_outputs - 1}; give the "
            "model that the shards were labelled for"
        )
    if class_map is None and (root / "classes.json").is_file():
        class_map = root / "classes.json"
    if class_map is not None:
        names = {index: folder for folder, index in _read_class_map(class_map).items()}
    else:
        names = dict(enumerate(_imagenet_info().label_names() if model_outputs == _IMAGENET_CLASSES else ()))
    ids = {names.get(index, str(index)): index for index in pictures}
    chosen = _choose(sorted(ids), classes, base, seed)
    return [ClassFolder(folder, ids[folder], tuple(pictures[ids[folder]])) for folder in chosen]


def _choose(folders: list[str], classes: str | Sequence[str], base: Path, seed: int) -> list[str]:
    if classes == "all":
        return folders
    if isinstance(classes, str) and classes.startswith("random:"):
        count = classes.removeprefix("random:")
        if not count.isdigit() or not 1 <= int(count) <= len(folders):
            raise InputError(f"--classes {classes}: expected random:1 to random:{len(folders)}, as many as {base} has")
        picked = np.random.default_rng(seed).choice(len(folders), int(count), replace=False)
        return [folders[i] for i in sorted(picked)]
    names = classes.split(",") if isinstance(classes, str) else list(classes)
    unknown = [name for name in names if name not in folders]
    if unknown:
        raise InputError(f"--classes {unknown[0]}: {base} has no such folder; its folders are {_some(folders)}")
    return sorted(set(names))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", … ({len(names)} in all)" if len(names) > 4 else "")


def _class_ids(root: Path, folders: list[str], model_outputs: int, class_map: Path | None) -> dict[str, int]:
    default_map = root / "classes.json"
    if class_map is None and default_map.is_file():
        class_map = default_map
    if class_map is not None:
        known: Mapping[str, int] = _read_class_map(class_map)
        source = str(class_map)
    elif model_outputs == _IMAGENET_CLASSES and any(_WNID.fullmatch(folder) for folder in folders):
        known = {wnid: index for index, wnid in enumerate(_imagenet_info().label_names())}
        source = "the ImageNet-1k synset list"
    else:
        raise InputError(
            f"{root}: no telling which model output folder {folders[0]} is (the model has {model_outputs}); "
            "write classes.json {folder: index} there or give --class-map"
        )
    for folder in folders:
        if folder not in known:
            raise InputError(f"{root}: class folder {folder} is not in {source}; rename it, or map it with --class-map")
        if not 0 <= known[folder] < model_outputs:
            raise InputError(f"{source}: {folder} is {known[folder]}, the model has outputs 0..{model_outputs - 1}")
    ids = {folder: known[folder] for folder in folders}
    if len(set(ids.values())) < len(ids):
        raise InputError(f"{source}: two folders have the same class id; give each its own")
    return ids


def _read_class_map(path: Path) -> dict[str, int]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a readable class map") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); write {{folder: index}}") from error
    if not isinstance(data, dict) or not all(type(value) is int for value in data.values()):
        raise InputError(f"{path}: expected a JSON object {{folder: index}} of whole numbers")
    return data


def _files(folder: Path, root: Path) -> tuple[str, ...]:
    """Every file but hidden ones: what is no picture is quarantined when it is read, not dropped here unsaid."""
    names = sorted(e.name for e in os.scandir(folder) if not e.name.startswith(".") and not e.is_dir())
    if not names:
        raise InputError(f"{folder}: holds no pictures; fill it or remove the folder")
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise InputError(f"{folder}: file name {name!r} is not UTF-8; rename the file")
    return tuple((folder / name).relative_to(root).as_posix() for name in names)
