"""WebDataset shards as a split: DATA/<split>/*.tar, where `key.jpg` has its class index beside it as `key.cls`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...export.errors import InputError
from .files import PictureFiles, shard_members

# What else a sample may hold beside its picture.
_NO_PICTURES = ("cls", "json", "txt", "pyd", "npy", "npz", "pth", "id", "index")


def shards_of(base: Path) -> list[Path]:
    """The tar shards in a split's folder, by name."""
    return sorted(path for path in base.glob("*.tar") if path.is_file() and not path.name.startswith("."))


def shard_pictures(root: Path, shards: Sequence[Path]) -> dict[int, list[str]]:
    """Pictures by class index, in the order of the shards: `<split>/<shard>.tar/<member>`.

    Raises
    ------
    InputError
        A shard that is cut off, a sample without a picture or with two, or a class index that is missing or no number.
    """
    files, classes = PictureFiles(root), dict[int, list[str]]()
    for shard in shards:
        relative = shard.relative_to(root).as_posix()
        try:
            samples = _samples(list(shard_members(shard)), shard)
        except OSError as error:
            raise InputError(f"{shard}: {error.strerror}; give a shard that can be read") from error
        for key, extensions in samples.items():
            pictures = [extension for extension in extensions if extension.lower() not in _NO_PICTURES]
            if len(pictures) != 1:
                raise InputError(f"{shard}: sample {key} has {len(pictures)} pictures; expected one beside {key}.cls")
            if "cls" not in extensions:
                raise InputError(f"{shard}: sample {key} has no {key}.cls; write its class index there")
            text = files.read(f"{relative}/{key}.cls").decode("utf-8", "replace").strip()
            if not text.isascii() or not text.isdigit():
                raise InputError(f"{shard}: {key}.cls holds {text[:40]!r}; expected a class index")
            classes.setdefault(int(text), []).append(f"{relative}/{key}.{pictures[0]}")
    return classes


def _samples(members: Sequence[str], shard: Path) -> dict[str, list[str]]:
    """Extensions by key; a key is what stands before the first dot of the last part of a name."""
    samples: dict[str, list[str]] = {}
    for member in members:
        folder, slash, name = member.rpartition("/")
        key, dot, extension = name.partition(".")
        if not key or not dot:
            raise InputError(f"{shard}: member {member} has no key or extension; WebDataset names are key.jpg, key.cls")
        samples.setdefault(f"{folder}{slash}{key}", []).append(extension)
    return samples
