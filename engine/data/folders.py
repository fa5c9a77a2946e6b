"""The classes of a data folder, their pictures, and the model output of each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...export.errors import InputError
from ...export.options import whole_number
from .files import TooLarge, contents, is_text
from .spec import DataSpec
from .webdataset import tar_files, tar_pictures

if TYPE_CHECKING:
    from timm.data.imagenet_info import ImageNetInfo

_WNID = re.compile(r"n\d{8}")
_IMAGENET_CLASSES = 1000
_LARGEST_MAP = 16 << 20  # bytes; a map of 21,000 classes has one


@dataclass(frozen=True)
class ClassFolder:
    """One class of a split: the name of its folder, the model output index, and its files relative to the root, sorted.

    In WebDataset tar files a class has no folder: it is named as its folder would be, and its files are
    `<name>.tar/<member>`.
    """

    folder: str
    class_id: int
    paths: tuple[str, ...]


@cache
def _imagenet_info() -> ImageNetInfo:
    from timm.data.imagenet_info import ImageNetInfo

    return ImageNetInfo("imagenet-1k")


def class_name(model_outputs: int, class_id: int) -> str:
    """Return a short human name: the first ImageNet synonym for a model with 1,000 outputs, the index otherwise."""
    if model_outputs != _IMAGENET_CLASSES:
        return str(class_id)
    return _imagenet_info().index_to_description(class_id).split(",")[0]


def name_of(class_id: int, model_outputs: int, folders: Mapping[str, str]) -> str:
    """Return the name of a class, given `folders` {class id: folder}.

    It is the name of its folder; ImageNet's name where the folder is a WordNet id, or where the class has no folder but
    the other folders are WordNet ids.
    """
    folder = folders.get(str(class_id))
    if folder is not None and not _WNID.fullmatch(folder):
        return folder
    if any(_WNID.fullmatch(other) for other in folders.values()):
        return class_name(model_outputs, class_id)
    return str(class_id)


def list_classes(data: DataSpec, classes: str | Sequence[str], model_outputs: int, seed: int) -> list[ClassFolder]:
    """List the classes of a split, in folder order.

    Parameters
    ----------
    data
        The folder, its split and its class map; `data.classes` is not read.
    classes
        `all`, `random:N` (seeded), or folder names (a list, or one string separated by commas).
    model_outputs
        Number of outputs of the model; every class id must be below it.

    Raises
    ------
    InputError
        A folder that is missing or empty, a class that the data or the model does not know, an invalid class map.
    """
    root, base = data.root, data.folder
    if not base.is_dir():
        raise InputError(f"{base}: no such folder; --data must hold {data.split}/<class>/<pictures>")
    folders = sorted(entry.name for entry in os.scandir(base) if entry.is_dir() and not entry.name.startswith("."))
    tars = tar_files(base)
    if folders and tars:
        raise InputError(f"{base}: holds class folders and tar files; keep one of the two there")
    if tars:
        return _tar_classes(data, tars, classes, model_outputs, seed)
    if not folders:
        raise InputError(
            f"{base}: holds no class folders; expected {data.split}/<class>/<pictures> or {data.split}/*.tar"
        )
    chosen = _choose(folders, classes, base, seed)
    for folder in chosen:
        _refuse_name(base / folder)
    ids = _class_ids(root, chosen, model_outputs, _map_of(data))
    return [ClassFolder(folder, ids[folder], _files(base / folder, root)) for folder in chosen]


def _map_of(data: DataSpec) -> Path | None:
    default = data.root / "classes.json"
    return default if data.class_map is None and default.is_file() else data.class_map


def _tar_classes(
    data: DataSpec, tars: Sequence[Path], classes: str | Sequence[str], model_outputs: int, seed: int
) -> list[ClassFolder]:
    """List the classes of tar files, which hold the model output; names come from a class map or from ImageNet."""
    base, pictures = data.folder, tar_pictures(data.files, tars)
    out = next((index for index in sorted(pictures) if index >= model_outputs), None)
    if out is not None:
        raise InputError(
            f"{base}: {pictures[out][0]} is of class {out}, the model has outputs 0..{model_outputs - 1}; use the "
            "model that the tar files were labelled for"
        )
    class_map = _map_of(data)
    if class_map is not None:
        names = [(index, folder) for folder, index in _read_class_map(class_map).items() if index in pictures]
        named = dict(names)
        if len(named) < len(names):
            raise InputError(f"{class_map}: two folders have the same class id; assign one to each")
    else:
        named = dict(enumerate(_imagenet_info().label_names() if model_outputs == _IMAGENET_CLASSES else ()))
    ids = {named.get(index, str(index)): index for index in pictures}
    if len(ids) < len(pictures):
        raise InputError(f"{class_map}: a name in it is the number of another class; name that class, too")
    chosen = _choose(sorted(ids), classes, base, seed)
    return [ClassFolder(folder, ids[folder], tuple(pictures[ids[folder]])) for folder in chosen]


def _choose(folders: list[str], classes: str | Sequence[str], base: Path, seed: int) -> list[str]:
    if classes == "all":
        return folders
    if isinstance(classes, str) and classes.startswith("random:"):
        count = whole_number(classes.removeprefix("random:"))
        if count is None or not 1 <= count <= len(folders):
            raise InputError(
                f"--classes {classes[:40]}: expected random:1 to random:{len(folders)}, as many as {base} has"
            )
        picked = np.random.default_rng(seed).choice(len(folders), count, replace=False)
        return [folders[i] for i in sorted(picked)]
    known = set(folders)
    if isinstance(classes, str):
        names = [name if name in known else name.strip() for name in classes.split(",")]
    else:
        names = list(classes)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"--classes {unknown[0]}: {base} has no such folder; its folders are {_some(folders)}")
    return sorted(set(names))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", … ({len(names)} in all)" if len(names) > 4 else "")


def _class_ids(root: Path, folders: list[str], model_outputs: int, class_map: Path | None) -> dict[str, int]:
    if class_map is not None:
        known: Mapping[str, int] = _read_class_map(class_map)
        source = str(class_map)
    elif model_outputs == _IMAGENET_CLASSES and any(_WNID.fullmatch(folder) for folder in folders):
        known = {wnid: index for index, wnid in enumerate(_imagenet_info().label_names())}
        source = "the ImageNet-1k synset list"
    else:
        raise InputError(
            f"{root}: cannot tell which of the {model_outputs} model outputs folder {folders[0]} is; "
            "write classes.json {folder: index} there or pass --class-map"
        )
    for folder in folders:
        if folder not in known:
            raise InputError(f"{root}: class folder {folder} is not in {source}; rename it, or map it with --class-map")
        if not 0 <= known[folder] < model_outputs:
            raise InputError(f"{source}: {folder} is {known[folder]}, the model has outputs 0..{model_outputs - 1}")
    ids = {folder: known[folder] for folder in folders}
    if len(set(ids.values())) < len(ids):
        raise InputError(f"{source}: two folders have the same class id; assign one to each")
    return ids


def _read_class_map(path: Path) -> dict[str, int]:
    def no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{path}: holds {twice!r} twice; assign one class id to each folder")
        return found

    try:
        data = json.loads(contents(path, _LARGEST_MAP).decode("utf-8-sig"), object_pairs_hook=no_name_twice)
    except InputError:
        raise
    except TooLarge as error:
        raise InputError(f"{path}: not a class map ({error}); write {{folder: index}}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; provide a readable class map") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); write {{folder: index}}") from error
    if not isinstance(data, dict) or not all(type(value) is int for value in data.values()):
        raise InputError(f"{path}: expected a JSON object {{folder: index}} of whole numbers")
    for name in data:
        if not is_text(name):
            raise InputError(f"{path}: name {name!r} is not UTF-8; write it anew")
    return data


def _files(folder: Path, root: Path) -> tuple[str, ...]:
    """List every file at any depth, as torchvision's ImageFolder does, but hidden ones.

    What is not a picture is quarantined when it is read, never silently dropped.
    """
    found: list[str] = []
    seen = {_identity(folder)}
    for where, folders, names in os.walk(folder, followlinks=True, onerror=_unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            _refuse_folder(Path(where) / name, seen)
        found += [(Path(where) / name).relative_to(root).as_posix() for name in names if not name.startswith(".")]
    if not found:
        raise InputError(f"{folder}: holds no pictures; fill it or remove the folder")
    for path in found:
        if not is_text(path):
            raise InputError(f"{folder}: name {Path(path).name!r} is not UTF-8; rename it")
    return tuple(sorted(found))


def _unlisted(error: OSError) -> None:
    """Raise what `os.walk` would pass over: a folder that cannot be listed."""
    raise error


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _refuse_folder(folder: Path, seen: set[tuple[int, int]]) -> None:
    if folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder}: is a link to a folder that contains it; remove the link")
    identity = _identity(folder)
    if identity in seen:
        raise InputError(f"{folder}: is a folder that its class has already, by a link; remove the link")
    seen.add(identity)
    _refuse_name(folder)


def _refuse_name(folder: Path) -> None:
    if not is_text(folder.name):
        raise InputError(f"{folder.parent}: name {folder.name!r} is not UTF-8; rename it")
    if folder.suffix == ".tar":
        raise InputError(f"{folder}: is a folder with the name of a tar file; rename it")


def mapped_elsewhere(data: DataSpec, folders: Sequence[ClassFolder], model_outputs: int) -> str | None:
    """Return a line about WordNet ids that a class map gives another output than ImageNet's list; None without any."""
    class_map = _map_of(data)
    named = [folder for folder in folders if _WNID.fullmatch(folder.folder)]
    if class_map is None or model_outputs != _IMAGENET_CLASSES or not named:
        return None
    usual = {wnid: index for index, wnid in enumerate(_imagenet_info().label_names())}
    odd = [folder for folder in named if usual.get(folder.folder, folder.class_id) != folder.class_id]
    if not odd:
        return None
    first = odd[0]
    return (
        f"{class_map}: gives {len(odd)} of {len(named)} WordNet ids another output than ImageNet's list of 1,000, the "
        f"first: {first.folder} is {first.class_id} there, {usual[first.folder]} in the list"
    )


def beside_the_classes(data: DataSpec) -> str | None:
    """Return a line about the files of a split that are in no class folder, and so not read; None if there are none."""
    if tar_files(data.folder):
        return None
    names = sorted(e.name for e in os.scandir(data.folder) if not e.name.startswith(".") and not e.is_dir())
    if not names:
        return None
    return f"{data.folder}: files beside the class folders are not read ({len(names)}, the first: {names[0]})"
