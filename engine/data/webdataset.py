"""WebDataset tar files as a split: DATA/<split>/*.tar, where `key.jpg` has its class index beside it in `key.cls`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...export.errors import InputError
from ...export.options import whole_number
from .files import PictureFiles

_LARGEST_CLS = 1000  # bytes
# Extensions that a sample may hold beside its picture.
_NO_PICTURES = ("cls", "json", "txt", "pyd", "npy", "npz", "pth", "id", "index")


def tar_files(folder: Path) -> list[Path]:
    """Return the tar files in the folder of a split, by name."""
    return sorted(path for path in folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))


def tar_pictures(files: PictureFiles, tars: Sequence[Path]) -> dict[int, list[str]]:
    """Return pictures by class index, in the order of the tar files: `<split>/<name>.tar/<member>`.

    Raises
    ------
    InputError
        A tar file that is truncated, a sample without a picture or with two, or a class index that is missing or not a
        number.
    """
    classes: dict[int, list[str]] = {}
    for tar in tars:
        relative = tar.relative_to(files.root).as_posix()
        try:
            samples = _samples(files.members(relative), tar)
        except OSError as error:
            raise InputError(f"{tar}: {error.strerror}; provide a readable tar file") from error
        for key, extensions in samples.items():
            pictures = [extension for extension in extensions if extension.lower() not in _NO_PICTURES]
            if len(pictures) != 1:
                raise InputError(f"{tar}: sample {key} has {len(pictures)} pictures; expected one beside {key}.cls")
            if "cls" not in extensions:
                raise InputError(f"{tar}: sample {key} has no {key}.cls; write its class index there")
            index = _class_index(files, relative, f"{key}.cls")
            classes.setdefault(index, []).append(f"{relative}/{key}.{pictures[0]}")
    return classes


def _class_index(files: PictureFiles, tar: str, member: str) -> int:
    size = files.members(tar)[member].size
    text = files.read(f"{tar}/{member}").decode("utf-8", "replace").strip() if size < _LARGEST_CLS else "…"
    index = whole_number(text)
    if index is None:
        raise InputError(f"{files.root / tar}: {member} holds {text[:40]!r} ({size} bytes); expected a class index")
    return index


def _samples(members: Iterable[str], tar: Path) -> dict[str, list[str]]:
    """Return extensions by key; a key ends before the first dot of the last part of a name."""
    samples: dict[str, list[str]] = {}
    for member in members:
        folder, slash, name = member.rpartition("/")
        key, dot, extension = name.partition(".")
        if not key or not dot:
            raise InputError(f"{tar}: member {member} has no key or extension; WebDataset names are key.jpg, key.cls")
        samples.setdefault(f"{folder}{slash}{key}", []).append(extension)
    return samples
