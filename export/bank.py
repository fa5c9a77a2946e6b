"""The bank: K occluders for one model and one input size, in a safetensors file with a JSON header.

The file holds `occluders`, float32 [K, H, W, 3] in pixel units, `fitted` and `held_out`, int64 keys of the training
pictures that were used (`picture_key`), and, under the metadata key `gfo`, the header below as JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernels.occluder_step import NORMS
from .errors import InputError
from .files import save_tensors
from .preprocessing import Preprocessing


class Model(Protocol):
    """What a bank is held against: a frozen classifier, or an artefact of one."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def weights_hash(self) -> str: ...  # noqa: D102
    @property
    def preprocessing(self) -> Preprocessing: ...  # noqa: D102
    @property
    def num_classes(self) -> int: ...  # noqa: D102


# Rounding of the last projection, relative to ε.
_BALL_SLACK = 1e-4


@dataclass(frozen=True)
class BankHeader:
    """What a bank was made for and how. `class_ids` are the model's output indices, in row order."""

    model: str
    weights: str
    weights_hash: str
    preprocessing: Preprocessing
    epsilon: float
    norm: str
    class_ids: tuple[int, ...]
    folders: tuple[str, ...]
    objective: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    gfo_version: str = field(default_factory=lambda: version("gfo"))
    schema: int = 1

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({**dataclasses.asdict(self), "preprocessing": self.preprocessing.to_dict()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> BankHeader:
        """Inverse of `to_json`; raises `ValueError`, `TypeError`, `KeyError` or `InputError` on anything else."""
        data = json.loads(text)
        if data["schema"] != cls.schema:
            raise ValueError(f"schema {data['schema']}, this version reads {cls.schema}")
        data["preprocessing"] = Preprocessing.from_dict(data["preprocessing"])
        data["class_ids"] = tuple(int(i) for i in data["class_ids"])
        data["folders"] = tuple(str(f) for f in data["folders"])
        ids, folders = data["class_ids"], data["folders"]
        if len(ids) != len(folders) or not ids:
            raise ValueError(f"{len(folders)} folders for {len(ids)} class ids")
        if len(set(ids)) != len(ids) or len(set(folders)) != len(folders):
            raise ValueError("a class id or folder appears twice")
        if data["norm"] not in NORMS:
            raise ValueError(f"norm {data['norm']!r} is none of {', '.join(NORMS)}")
        data["epsilon"] = float(data["epsilon"])
        if not 0 < data["epsilon"] < math.inf:
            raise ValueError(f"epsilon {data['epsilon']}")
        return cls(**data)


class Described:
    """What a bank says of itself by its header, and whether that is about a model."""

    header: BankHeader

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Model output index of each row."""
        return self.header.class_ids

    @property
    def epsilon(self) -> float:
        """Radius of the ball, pixel units."""
        return self.header.epsilon

    @property
    def norm(self) -> str:
        """`linf` or `l2`."""
        return self.header.norm

    def check_fits(self, classifier: Model, path: Path | str) -> None:
        """Raise `InputError` if the bank was made for another model, other weights or another preprocessing."""
        ours, theirs = self.header, classifier
        for what, mine, wanted in (
            ("model", ours.model, theirs.model),
            ("weights", ours.weights_hash, theirs.weights_hash),
            ("preprocessing", ours.preprocessing.to_dict(), theirs.preprocessing.to_dict()),
        ):
            if mine != wanted:
                raise InputError(
                    f"{path}: bank was made for {what} {_differences(mine, wanted)}; train a bank for this model "
                    "or name the one it was made for"
                )
        foreign = [class_id for class_id in self.class_ids if not 0 <= class_id < theirs.num_classes]
        if foreign:
            raise InputError(
                f"{path}: bank has class id {foreign[0]}, the model has outputs 0..{theirs.num_classes - 1}; "
                "train a bank for this model"
            )


@dataclass(frozen=True)
class OccluderBank(Described):
    """K occluders, float32 [K, H, W, 3] in pixel units (0 … 255), with their header."""

    occluders: Tensor
    header: BankHeader
    fitted: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    held_out: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @cached_property
    def hash(self) -> str:
        """`sha256:…` over the header and the occluders."""
        digest = hashlib.sha256(self.header.to_json().encode())
        values: Any = self.occluders.contiguous().numpy()
        digest.update(memoryview(values).cast("B"))
        return f"sha256:{digest.hexdigest()}"

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        tensors = {"occluders": self.occluders, "fitted": self.fitted, "held_out": self.held_out}
        save_tensors(path, tensors, {"gfo": self.header.to_json()})

    @classmethod
    def load(cls, path: Path | str) -> OccluderBank:
        """Read and validate a bank.

        Raises
        ------
        InputError
            Not there, not a bank, NaN or infinite values, values outside the ball, a header that does not match.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such bank; gfo-train writes one")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path}: not a readable safetensors file ({error}); train or copy the bank again"
            ) from error
        if "gfo" not in metadata or "occluders" not in tensors:
            raise InputError(f"{path}: safetensors, but not an occluder bank; gfo-train writes one")
        try:
            header = BankHeader.from_json(metadata["gfo"])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: bank header is not valid ({error}); train the bank again") from error
        bank = cls(header=header, **{k: v for k, v in tensors.items() if k in ("occluders", "fitted", "held_out")})
        bank._validate(path)
        return bank

    @classmethod
    def zeros(cls, count: int, model: Model) -> OccluderBank:
        """`count` ≥ 1 occluders of zeros, for the first classes of the model: for benchmarks and engine builds."""
        if not 1 <= count <= model.num_classes:
            raise InputError(
                f"zero:{count}: expected zero:1 to zero:{model.num_classes}, as many as the model has outputs"
            )
        size, classes = model.preprocessing.input_size, range(count)
        header = BankHeader(
            model=model.model,
            weights="",
            weights_hash=model.weights_hash,
            preprocessing=model.preprocessing,
            epsilon=1.0,
            norm="linf",
            class_ids=tuple(classes),
            folders=tuple(map(str, classes)),
            objective={"zero": True},
        )
        return cls(torch.zeros(count, size, size, 3), header)

    def _validate(self, path: Path) -> None:
        d, header = self.occluders, self.header
        size = header.preprocessing.input_size
        wanted = (len(header.class_ids), size, size, 3)
        if d.dtype != torch.float32 or tuple(d.shape) != wanted or len(header.folders) != wanted[0] or wanted[0] == 0:
            raise InputError(
                f"{path}: occluders are {d.dtype} {list(d.shape)} but the header says float32 {list(wanted)} for "
                f"{len(header.folders)} folders; train the bank again"
            )
        if any(keys.dtype != torch.int64 or keys.dim() != 1 for keys in (self.fitted, self.held_out)):
            raise InputError(f"{path}: fitted and held_out are not int64 lists; train the bank again")
        # Row by row: a copy of a bank of 1,000 occluders would be 600 MB more.
        broken = [row for row, occluder in enumerate(d) if not bool(occluder.isfinite().all())]
        if broken:
            row = broken[0]
            raise InputError(f"{path}: the occluder of {header.folders[row]} holds NaN or infinity; train it again")
        radius = max(float(o.abs().max() if header.norm == "linf" else o.norm()) for o in d)
        if radius > header.epsilon * (1 + _BALL_SLACK):
            raise InputError(
                f"{path}: an occluder reaches {radius:g} but ε is {header.epsilon:g}; train the bank again"
            )


def _differences(mine: str | dict[str, Any], wanted: str | dict[str, Any]) -> str:
    if isinstance(mine, dict) and isinstance(wanted, dict):
        pairs = [f"{key} {mine[key]}, not {wanted[key]}" for key in mine if mine[key] != wanted[key]]
        return "; ".join(pairs)
    return f"{str(mine)[:40]}, not {str(wanted)[:40]}"


def picture_key(path: str) -> int:
    """The first 8 bytes of SHA-256 of a picture's path relative to its data root, as a signed integer.

    A bank remembers the pictures it used by these keys: 10 MB for all of ImageNet, where the paths would be 50.
    """
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little", signed=True)
