"""What an exported folder says of itself: `manifest.json`, with the hash of every file beside it.

Nothing of a folder is given to a native library before the manifest's hashes have been found to hold.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import InputError
from .files import atomic_path
from .preprocessing import Preprocessing

Format = Literal["onnx", "openvino", "trt"]
FORMATS: tuple[Format, ...] = get_args(Format)

NAME = "manifest.json"
FIT = "fit.safetensors"
# The file to open first, then those that must be beside it and those that may.
FILES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "onnx": ("model.onnx", (), ("model.onnx.data",)),
    "openvino": ("model.xml", ("model.bin",), ()),
    "trt": ("model.plan", (), ()),
}
EMBEDDED, INPUT = "embedded", "input"
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a TensorRT engine file was built for; other formats take any size.

    Attributes
    ----------
    pairs, pictures, rows
        Smallest, best and largest P, B and K + 1; `rows` is None where the bank is embedded.
    library, library_version
        `tensorrt` or `tensorrt_rtx`: an engine file runs on no other version.
    compute_capabilities
        Of the GPUs that it runs on, as `8.9`.
    """

    pairs: tuple[int, int, int]
    pictures: tuple[int, int, int]
    rows: tuple[int, int, int] | None
    library: str
    library_version: str
    compute_capabilities: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    Attributes
    ----------
    files
        {name: {"sha256": …, "bytes": …}} of all there are, by the names that the format has.
    bank
        `embedded`, or `input`: then any bank of the same model is given with each call.
    bank_hash, bank_header
        Of the embedded bank; None where it is an input.
    layers
        How many layers of a TensorRT network give which type, as its parser says.
    parity
        `status` passed, failed or not run, and why or how well; see `engine.parity`.
    """

    format: str
    precision: str
    model: str
    weights: str
    weights_hash: str
    preprocessing: Preprocessing
    num_classes: int
    bank: str
    bank_hash: str | None
    bank_header: dict[str, Any] | None
    files: dict[str, dict[str, Any]]
    built_with: dict[str, str]
    limits: Limits | None = None
    layers: dict[str, int] | None = None
    parity: dict[str, Any] = field(default_factory=lambda: {"status": NOT_RUN, "reason": "not checked yet"})
    gfo_version: str = field(default_factory=lambda: version("gfo"))
    schema: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**dataclasses.asdict(self), "preprocessing": self.preprocessing.to_dict()}

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, whole or not at all."""
        with atomic_path(folder / NAME) as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check the manifest, and the hash of every file that it names.

        Raises
        ------
        InputError
            No manifest, one of another kind, a file that is missing, changed or outside of the folder.
        """
        path = folder / NAME
        if not path.is_file():
            raise InputError(f"{path}: no such file; --artefact takes a folder that gfo-export wrote")
        try:
            manifest = cls._from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: not a manifest of gfo-export ({error!r}); export again") from error
        for name, facts in manifest.files.items():
            _check_file(folder, name, facts)
        return manifest

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        if data["schema"] != cls.schema:
            raise ValueError(f"schema {data['schema']}, this version reads {cls.schema}")
        limits = data["limits"]
        if limits is not None:
            values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in limits.items()}
            limits = Limits(**values)
        preprocessing = Preprocessing.from_dict(data["preprocessing"])
        manifest = cls(**{**data, "limits": limits, "preprocessing": preprocessing})
        manifest._check()
        return manifest

    def _check(self) -> None:
        """Raise `ValueError` where a value is not what it should be; from a file it may be anything."""
        _expect(self.format in FORMATS, "format", self.format)
        _expect(self.bank in (EMBEDDED, INPUT), "bank", self.bank)
        for name in ("precision", "model", "weights", "weights_hash", "gfo_version"):
            _expect(isinstance(getattr(self, name), str), name, getattr(self, name))
        _expect(type(self.num_classes) is int and self.num_classes >= 2, "num_classes", self.num_classes)
        _expect(isinstance(self.bank_hash, str) == (self.bank == EMBEDDED), "bank_hash", self.bank_hash)
        _expect((self.limits is not None) == (self.format == "trt"), "limits", self.limits)
        parity: Any = self.parity
        known = isinstance(parity, dict) and parity.get("status") in (PASSED, FAILED, NOT_RUN)
        _expect(known and isinstance(parity.get("reason"), str), "parity", parity)
        files: Any = self.files
        first, beside, perhaps = FILES[self.format]
        needed = {first, *beside, *((FIT,) if self.bank == EMBEDDED else ())}
        _expect(isinstance(files, dict) and needed <= set(files) <= needed | {*perhaps}, "files", files)
        for facts in files.values():
            described = isinstance(facts, dict) and set(facts) == {"sha256", "bytes"}
            _expect(described and isinstance(facts["sha256"], str) and type(facts["bytes"]) is int, "files", facts)


def _expect(fits: bool, name: str, value: object) -> None:
    if not fits:
        raise ValueError(f"{name} {str(value)[:80]}")


def _check_file(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    path = folder / name
    if path.resolve().parent != folder.resolve():  # the names are ours, but links lead anywhere
        raise InputError(f"{path}: is a link out of its folder; copy the file itself there")
    if not path.is_file():
        raise InputError(f"{path}: missing; copy the whole folder or export again")
    size = path.stat().st_size
    if size != facts["bytes"] or file_hash(path) != facts["sha256"]:
        raise InputError(f"{path}: was changed or cut off since it was exported ({size} bytes); export again")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def file_facts(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """What the manifest records of the files."""
    return {name: {"sha256": file_hash(folder / name), "bytes": (folder / name).stat().st_size} for name in names}
