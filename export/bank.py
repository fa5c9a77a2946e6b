"""The bank: K occluders for one model and one input size, in a safetensors file with a JSON header.

The file holds `occluders`, float32 [K, H, W, 3] in pixel units, `fitted`, `held_out` and `preserved`, int64 keys of the
training pictures that were used (`picture_key`), a checksum (`save_tensors`), and, under the metadata key `gfo`, a
`BankHeader` as JSON.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .bank_header import USES, BankHeader, Described, Model, no_keys
from .errors import InputError
from .files import load_tensors, save_tensors
from .options import zeros_asked
from .overlay import check_images, overlaid, rows_of
from .records import read_record

METADATA_KEY = "gfo"
"""Under which the metadata of the file has the header."""
_TENSORS = ("occluders", *USES)

# Rounding of the last projection, relative to ε.
_BALL_SLACK = 1e-4


@dataclass(frozen=True)
class OccluderBank(Described):
    """K occluders with their header.

    Attributes
    ----------
    occluders
        float32 [K, H, W, 3] in pixel units, −255 … 255.
    header
        What they were made for, row by row.
    fitted, held_out, preserved
        int64 keys of the training pictures that occluders were fitted to, that were kept aside, and whose answers were
        to be preserved; see `picture_key`.
    """

    occluders: Tensor
    header: BankHeader
    fitted: Tensor = field(default_factory=no_keys)
    held_out: Tensor = field(default_factory=no_keys)
    preserved: Tensor = field(default_factory=no_keys)

    @cached_property
    def hash(self) -> str:
        """`sha256:…` over the header and the occluders."""
        return _hash(self.header.to_json(), self.occluders)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all. Raises `OSError`, which names it."""
        tensors = {"occluders": self.occluders, **self.stored_keys}
        save_tensors(path, tensors, {METADATA_KEY: self.header.to_json()}, {"occluders": self.hash})

    @classmethod
    def of(cls, source: OccluderBank | Path | str, subject: Model) -> OccluderBank:
        """Return a bank that fits a model: the one given, one read from a file, or zeros.

        Parameters
        ----------
        source
            A bank, its file, or `zero:K` for K occluders of zeros.
        subject
            The model that it is for.

        Raises
        ------
        InputError
            No such bank, or one of another model; see `load`, `zeros` and `check_fits`.
        """
        if isinstance(source, OccluderBank):
            source.check_fits(subject, "--occluders")
            return source
        count = zeros_asked(source)
        if count is not None:
            return cls.zeros(count, subject)
        bank = cls.load(source)
        bank.check_fits(subject, source)
        return bank

    @classmethod
    def load(cls, path: Path | str) -> OccluderBank:
        """Read and validate a bank.

        Raises
        ------
        InputError
            Not there, not a bank, NaN or infinite values, values outside the ball, a header that does not match.
        """
        path = Path(path)
        metadata, tensors, computed = _read(path)
        if METADATA_KEY not in metadata or "occluders" not in tensors or not set(tensors) <= set(_TENSORS):
            raise InputError(f"{path}: safetensors, but not an occluder bank; create one with gfo-train")
        header = read_record(
            BankHeader, metadata[METADATA_KEY], path, "train the bank again", "bank header is not valid"
        )
        bank = cls(header=header, **tensors)
        if computed is not None and header.to_json() == metadata[METADATA_KEY]:
            vars(bank)["hash"] = computed
        bank._validate(path)
        return bank

    @classmethod
    def zeros(cls, count: int, subject: Model) -> OccluderBank:
        """Return `count` ≥ 1 occluders of zeros for the first classes of a model, for benchmarks and engine builds."""
        if not 1 <= count <= subject.num_classes:
            raise InputError(f"zero:{count}: expected zero:1 to zero:{subject.num_classes}, one for each model output")
        size, classes = subject.preprocessing.input_size, range(count)
        header = BankHeader(
            model=subject.model,
            weights="",
            weights_hash=subject.weights_hash,
            preprocessing=subject.preprocessing,
            epsilon=1.0,
            norm="linf",
            class_ids=tuple(classes),
            folders=tuple(map(str, classes)),
            objective={"zero": True},
        )
        return cls(torch.zeros(count, size, size, 3), header)

    def apply(self, images: Tensor, class_id: int | Tensor) -> Tensor:
        """Add the occluder of a class to pictures, and clamp them: a transform for any model or attack library.

            bank = OccluderBank.load("bank.safetensors")
            logits = model(normalise(bank.apply(images, 207)))   # one class for all pictures
            logits = model(normalise(bank.apply(images, labels)))  # each picture's own: matched

        With `functools.partial(bank.apply, class_id=207)` it is a transform of one argument, as torchvision's are.

        Parameters
        ----------
        images
            [B, 3, S, S], or one picture [3, S, S], RGB, resized and cropped as `header.preprocessing` says and not yet
            normalised: uint8, or float16, bfloat16, float32 or float64 in 0 … 1. On any device.
        class_id
            The model's output index of the class, or an int64 tensor [B] with one for each picture.

        Returns
        -------
        Tensor
            New pictures of the same shape, dtype and device: clamp(images + d / 255, 0, 1), which is differentiable
            with respect to `images`, with the bounds counting as inside, as in training; or clamp(images + d, 0, 255),
            rounded to the nearest integer. Evaluation does not round.

        Raises
        ------
        InputError
            The bank has no such class, or the images are of another size, type or range. Looking at the range waits
            for a GPU.
        """
        check_images(images, self.header.preprocessing.input_size)
        rows = rows_of(class_id, self.class_ids, images)
        return overlaid(images, self.occluders[rows])

    def _validate(self, path: Path) -> None:
        """Raise `InputError` unless the tensors are what the header says."""
        d, header = self.occluders, self.header
        size = header.preprocessing.input_size
        wanted = (len(header.class_ids), size, size, 3)
        if d.dtype != torch.float32 or tuple(d.shape) != wanted:
            raise InputError(
                f"{path}: occluders are {d.dtype} {list(d.shape)} but the header says float32 {list(wanted)} for "
                f"{len(header.folders)} folders; train the bank again"
            )
        check_keys(path, self.used)
        # Row by row: a copy of a bank of 1,000 occluders would be 600 MB more. NaN is the smallest, and the largest.
        radii = [max(-float(low), float(high)) for low, high in map(torch.aminmax, d)]
        broken = [row for row, radius in enumerate(radii) if not math.isfinite(radius)]
        if broken:
            row = broken[0]
            raise InputError(f"{path}: the occluder of {header.folders[row]} holds NaN or infinity; train it again")
        radius = max(radii if header.norm == "linf" else [float(occluder.norm()) for occluder in d])
        if radius > header.epsilon * (1 + _BALL_SLACK):
            raise InputError(
                f"{path}: an occluder reaches {radius:g} but ε is {header.epsilon:g}; train the bank again"
            )


def _hash(header: str, occluders: Tensor) -> str:
    digest = hashlib.sha256(header.encode())
    content: Any = occluders.contiguous().reshape(-1).view(torch.uint8).numpy()
    digest.update(content)
    return f"sha256:{digest.hexdigest()}"


def _read(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor], str | None]:
    """Return metadata and tensors of a safetensors file, and the bank's hash, if its checksum was compared with it."""
    hashes: dict[str, str] = {}

    def computed(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Mapping[str, str]:
        occluders = tensors.get("occluders")
        if METADATA_KEY in metadata and occluders is not None and occluders.dtype == torch.float32:
            hashes["occluders"] = _hash(metadata[METADATA_KEY], occluders)
        return hashes

    if not path.is_file():
        raise InputError(f"{path}: bank not found; create one with gfo-train")
    try:
        return *load_tensors(path, hashes=computed), hashes.get("occluders")
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); train or copy the bank again") from error


def check_keys(path: Path, used: Mapping[str, Tensor]) -> None:
    """Raise `InputError`, which names `path`, unless lists of picture keys are int64 [N]."""
    wrong = [name for name, keys in used.items() if keys.dtype != torch.int64 or keys.dim() != 1]
    if wrong:
        raise InputError(f"{path}: {wrong[0]} is not an int64 list; train the bank again")


def picture_key(path: str) -> int:
    """Return the first 8 bytes of SHA-256 of a picture's path relative to its data root, as a signed integer.

    A bank remembers the pictures it used by these keys: 10 MB for all of ImageNet, where the paths would take 50 MB.
    """
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little", signed=True)
