"""The description of an exported folder: `manifest.json`, with the hash of every file beside it.

Nothing of a folder is given to a native library before the manifest's hashes have been found to match.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, NotRequired

from annotated_types import Ge
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 on

from .errors import InputError
from .formats import FORMATS
from .formats.base import Limits
from .int8 import Int8Facts
from .preprocessing import Preprocessing
from .records import STRICT, load_record, save_record

NAME = "manifest.json"
FIT = "fit.safetensors"
EMBEDDED: Final = "embedded"
INPUT: Final = "input"
PASSED: Final = "passed"
FAILED: Final = "failed"
NOT_RUN: Final = "not run"

_CHUNK = 1 << 20


class FileFacts(TypedDict):
    """What identifies a file.

    Attributes
    ----------
    sha256
        SHA-256 of the contents, as hexadecimal digits.
    bytes
        Size.
    """

    sha256: str
    bytes: int


class Parity(TypedDict):
    """Verdict of the comparison with PyTorch; see `engine.parity`.

    Attributes
    ----------
    status
        Whether the artefact may be used: every engine that ran passed, one failed, or none was run.
    reason
        The reason for a status other than `passed`.
    pictures
        The pictures that were compared.
    engines
        Verdict of each engine.
    """

    status: Literal["passed", "failed", "not run"]
    reason: str
    pictures: NotRequired[str]
    engines: NotRequired[dict[str, str]]


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    Attributes
    ----------
    format
        A name of `FORMATS`.
    precision
        The network's, `fp32`, `bf16`, `fp16` or `int8`.
    model, weights, weights_hash, preprocessing, num_classes
        As those of `FrozenClassifier`.
    bank
        `embedded`, or `input`: then any bank of the same model is given with each call.
    bank_hash, bank_header
        Hash and header of the embedded bank; None where it is an input.
    files
        Hash and size of every file, by the names that the format has.
    built_with
        Versions of the libraries that took part.
    limits
        Limits of a file that is compiled for certain GPUs; other formats take any size.
    layers
        Number of layer outputs of each type in a TensorRT network, as its parser reports them.
    int8
        How an int8 network was made; None at other precisions.
    parity
        Verdict of the comparison with PyTorch.
    gfo_version, schema
        Version of gfo and of this record.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    format: str
    precision: str
    model: str
    weights: str
    weights_hash: str
    preprocessing: Preprocessing
    num_classes: Annotated[int, Ge(2)]
    bank: Literal["embedded", "input"]
    bank_hash: str | None
    bank_header: dict[str, Any] | None
    files: dict[str, FileFacts]
    built_with: dict[str, str]
    limits: Limits | None = None
    layers: dict[str, int] | None = None
    int8: Int8Facts | None = None
    parity: Parity = field(default_factory=lambda: Parity(status=NOT_RUN, reason="not checked yet"))
    gfo_version: str = field(default_factory=lambda: version("gfo"))
    schema: Literal[1] = 1

    def __post_init__(self) -> None:
        """Raise `ValueError` where fields do not go together."""
        if self.format not in FORMATS.names:
            raise ValueError(f"format {self.format!r}: expected one of {', '.join(FORMATS.names)}")
        layout, embedded = FORMATS[self.format], self.bank == EMBEDDED
        if (self.bank_hash is not None) != embedded:
            raise ValueError(f"bank_hash {self.bank_hash!r}: bank is {self.bank!r}")
        if (self.limits is not None) != layout.for_gpus:
            raise ValueError(f"limits: format is {self.format!r}")
        if (self.int8 is not None) != (self.precision == "int8"):
            raise ValueError(f"int8: precision is {self.precision!r}")
        needed = {layout.first, *layout.beside, *((FIT,) if embedded else ())}
        wrong = (needed - set(self.files)) | (set(self.files) - needed - {*layout.optional})
        if wrong:
            raise ValueError(f"files: {min(wrong)!r} is missing, or none of format {self.format}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**dataclasses.asdict(self), "preprocessing": self.preprocessing.to_dict()}

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, whole or not at all."""
        save_record(folder / NAME, self.to_dict())

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
        manifest = load_record(cls, path, "export again", "not a manifest of gfo-export")
        for name, facts in manifest.files.items():
            _check_file(folder, name, facts)
        return manifest


def _check_file(folder: Path, name: str, facts: FileFacts) -> None:
    path = folder / name
    if path.resolve().parent != folder.resolve():  # the names are fixed, but links lead anywhere
        raise InputError(f"{path}: is a link out of its folder; copy the file itself there")
    if not path.is_file():
        raise InputError(f"{path}: missing; copy the whole folder or export again")
    size = path.stat().st_size
    if size != facts["bytes"] or file_hash(path) != facts["sha256"]:
        raise InputError(f"{path}: was changed or cut off since it was exported ({size} bytes); export again")


def file_hash(path: Path) -> str:
    """Return SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def file_facts(folder: Path, names: list[str]) -> dict[str, FileFacts]:
    """Return hash and size of files of a folder, as the manifest records them."""
    return {name: {"sha256": file_hash(folder / name), "bytes": (folder / name).stat().st_size} for name in names}
