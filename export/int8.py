"""What an int8 network is: its graph, and what the manifest says of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge

from .records import STRICT

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class CalibrationFacts:
    """What a calibration was, for the manifest.

    Attributes
    ----------
    data
        The folder that the pictures are from.
    pictures, occluded
        Number of pictures, and how many of them were under an occluder.
    seed
        Seed of the draw of pictures and occluders.
    pictures_hash
        SHA-256 over the decoded pictures, the occluders, and which of them each picture is under.
    bank_hash
        Hash of the bank that the occluders are of; empty where they are of none.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    data: str
    pictures: Annotated[int, Ge(1)]
    occluded: Annotated[int, Ge(0)]
    seed: int
    pictures_hash: str
    bank_hash: str


@dataclass(frozen=True)
class Int8Facts:
    """How an int8 network was made, for the manifest.

    Attributes
    ----------
    calibration
        The pictures on which ranges were measured.
    layers
        Number of operations that multiply in int8, by their ONNX type.
    kept
        Layers with weights that stay in float32, and why.
    float32
        Number of other operations that compute in float32, by their ONNX type.
    errors
        RMS error of the logits on calibration pictures, without each class's mean, as a share of what they have
        of it: with all layers in int8, with the first in float32, with the last in float32, and as written.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    calibration: CalibrationFacts
    layers: dict[str, int]
    kept: dict[str, str]
    float32: dict[str, int]
    errors: dict[str, float]

    def lines(self) -> list[str]:
        """Return what a person should know of it, for the terminal."""
        layers = ", ".join(f"{count} {kind}" for kind, count in self.layers.items())
        others = ", ".join(f"{count} {kind}" for kind, count in self.float32.items())
        errors = ", ".join(f"{name} {error:.1%}" for name, error in self.errors.items())
        lines = [f"in int8: {layers}; in float32: {others or 'nothing else'}", f"error of the logits: {errors}"]
        return [*lines, *(f"{name} stays in float32: {why}" for name, why in self.kept.items())]


@dataclass(frozen=True)
class Int8Network:
    """A network as a graph with explicit conversions (`QuantizeLinear`, `DequantizeLinear`), which every engine reads.

    Attributes
    ----------
    graph
        As `bare_network` returns it: `pictures`, normalised float32 [P, 3, S, S] → `logits`, float32 [P, C].
    facts
        How it was made.
    built_with
        Versions of the libraries that made it.
    key
        Hash of everything that decides the graph beyond the classifier: calibration, libraries, `QUANTISE_VERSION`.
    """

    graph: onnx.ModelProto
    facts: Int8Facts
    built_with: Mapping[str, str]
    key: str
