"""What a bank says of itself: its header, and whether it fits a model."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Protocol

import torch
from annotated_types import Gt
from torch import Tensor

from ..kernels.ball import NORMS
from .errors import InputError
from .preprocessing import Preprocessing
from .records import STRICT

USES: Final = ("fitted", "held_out", "preserved")
"""What training uses pictures for: lists of picture keys of a bank."""


def no_keys() -> Tensor:
    """Return an empty list of picture keys."""
    return torch.zeros(0, dtype=torch.int64)


class Model(Protocol):
    """What a bank is made for: a frozen classifier, or an artefact of one."""

    @property
    def model(self) -> str:
        """Model as `--model` names it."""
        ...

    @property
    def weights_hash(self) -> str:
        """`sha256:…` over the state dict; see `hash_state`."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """Resize, crop and normalisation."""
        ...

    @property
    def num_classes(self) -> int:
        """C, the number of outputs."""
        ...


@dataclass(frozen=True)
class BankHeader:
    """What a bank was made for, and how.

    Attributes
    ----------
    model, weights, weights_hash, preprocessing
        As those of `FrozenClassifier`.
    epsilon
        Radius of the ball that every occluder lies in, pixel units.
    norm
        The norm of that ball, `linf` or `l2`.
    class_ids
        The model's output index of each row; no class appears twice.
    folders
        The data folder of each row.
    objective
        What the occluders were trained for, and how; JSON types.
    seed
        Seed of everything that was drawn.
    gfo_version, schema
        Version of gfo and of this record.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    model: str
    weights: str
    weights_hash: str
    preprocessing: Preprocessing
    epsilon: Annotated[float, Gt(0)]
    norm: str
    class_ids: tuple[int, ...]
    folders: tuple[str, ...]
    objective: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    gfo_version: str = field(default_factory=lambda: version("gfo"))
    schema: Literal[1] = 1

    def __post_init__(self) -> None:
        """Raise `ValueError` where fields do not go together."""
        ids, folders = self.class_ids, self.folders
        if len(ids) != len(folders) or not ids:
            raise ValueError(f"{len(folders)} folders for {len(ids)} class ids")
        if len(set(ids)) != len(ids) or len(set(folders)) != len(folders):
            raise ValueError("class_ids or folders: an entry appears twice")
        if self.norm not in NORMS:
            raise ValueError(f"norm {self.norm!r}: expected one of {', '.join(NORMS)}")
        preserve = self.objective.get("preserve", {})
        classes = preserve.get("classes", []) if isinstance(preserve, dict) else None
        if not isinstance(classes, list | tuple) or any(type(class_id) is not int for class_id in classes):
            raise ValueError("objective.preserve.classes is not a list of class ids")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, keys sorted."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """Return one line of JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


class Described:
    """A bank that is described by its header, wherever its occluders are."""

    header: BankHeader
    fitted: Tensor
    held_out: Tensor
    preserved: Tensor

    @property
    def used(self) -> dict[str, Tensor]:
        """The lists of picture keys by what training used the pictures for, as `USES`."""
        return {use: getattr(self, use) for use in USES}

    @property
    def stored_keys(self) -> dict[str, Tensor]:
        """The lists that files hold: an empty `preserved` is left out, which older versions would refuse."""
        return {use: keys for use, keys in self.used.items() if use != "preserved" or len(keys)}

    @property
    def preserved_classes(self) -> tuple[int, ...]:
        """Classes of which training preserved pictures; empty where it preserved none."""
        return tuple(self.header.objective.get("preserve", {}).get("classes", ()))

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

    def check_fits(self, subject: Model, path: Path | str) -> None:
        """Raise `InputError`, which names `path`, unless the bank is for this model, weights and preprocessing."""
        ours, theirs = self.header, subject
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
        foreign = [class_id for class_id in ours.class_ids if not 0 <= class_id < theirs.num_classes]
        if foreign:
            raise InputError(
                f"{path}: bank has class id {foreign[0]}, the model has outputs 0..{theirs.num_classes - 1}; "
                "train a bank for this model"
            )


@dataclass(frozen=True)
class EmbeddedBank(Described):
    """The bank inside an artefact without its occluders, which only the engine sees; see `OccluderBank`."""

    header: BankHeader
    hash: str
    fitted: Tensor = field(default_factory=no_keys)
    held_out: Tensor = field(default_factory=no_keys)
    preserved: Tensor = field(default_factory=no_keys)


def _differences(mine: str | dict[str, Any], wanted: str | dict[str, Any]) -> str:
    if isinstance(mine, dict) and isinstance(wanted, dict):
        pairs = [f"{key} {mine[key]}, not {wanted[key]}" for key in mine if mine[key] != wanted[key]]
        return "; ".join(pairs)
    return f"{str(mine)[:40]}, not {str(wanted)[:40]}"
