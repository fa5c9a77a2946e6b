"""Options that several suites share, as classes that a suite inherits from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ...engine.commands import options
from ...engine.engines import ENGINES
from ...export.errors import InputError
from ...export.options import key_values
from .base import DATA, ENGINE, MODEL

if TYPE_CHECKING:
    from ...engine.engines.choice import EngineChoice
    from ...export.classifier import FrozenClassifier


Precisions = Annotated[
    str,
    typer.Option(help="fp32, bf16, fp16, for engines int8, or several separated by commas.", rich_help_panel=ENGINE),
]
Engines = Annotated[
    str,
    typer.Option(
        help=f"auto (as gfo-eval chooses), all, or some of {', '.join(ENGINES.names)}, separated by commas.",
        rich_help_panel=ENGINE,
    ),
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions(options.ModelOptions):
    """Options that name a network; speed does not ask for trained weights."""

    panel: ClassVar[str] = MODEL

    model: options.Model = "torchvision/resnet50"
    weights: options.Weights = "random"
    seed: options.Seed = 0

    @cached_property
    def classifier(self) -> FrozenClassifier:
        """That network, loaded."""
        from ...export.classifier import load_classifier

        return load_classifier(self.spec(self.seed))


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options that name pictures."""

    panel: ClassVar[str] = DATA

    images: Annotated[str, typer.Option(help="A folder of pictures, or synthetic.")] = "synthetic"

    def data(self, folder: Path) -> str:
        """Return the name of the pictures for the rows."""
        return self.images if self.images == "synthetic" else str(folder)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """The option that says where."""

    panel: ClassVar[str] = ENGINE

    device: options.Device = "auto"


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(DeviceOptions):
    """Options that say at what precisions, and where."""

    precision: Precisions = "fp32"

    @property
    def precisions(self) -> list[str]:
        """The precisions that the options name."""
        from ...export.classifier import PRECISIONS

        return names("--precision", self.precision, PRECISIONS)


@dataclass(frozen=True, kw_only=True)
class EngineOptions(PrecisionOptions):
    """Options that choose engines."""

    engine: Engines = "auto"
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs in a pass through the network; measured if not given."),
    ] = None

    engine_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the engine; repeatable."),
    ] = None

    @property
    def precisions(self) -> list[str]:
        """The precisions that the options name; engines have one more than training."""
        from ...export.classifier import GRAPH_PRECISIONS

        return names("--precision", self.precision, GRAPH_PRECISIONS)

    def choices(self) -> list[EngineChoice]:
        """Return every engine at every precision; raise if the only engine is not available."""
        from ...engine.engines.choice import EngineChoice

        given = key_values("--engine-option", self.engine_option or ())
        return [
            EngineChoice(name, precision, self.device, given)
            for name in self._engines()
            for precision in self.precisions
        ]

    def _engines(self) -> list[str]:
        known = ("auto", *ENGINES.names)
        engines = list(ENGINES.names) if self.engine == "all" else names("--engine", self.engine, known)
        if engines != ["auto"] and len(engines) == 1:
            ENGINES[engines[0]].precisions(self.device)
        return engines


def names(option: str, text: str, known: Sequence[str]) -> list[str]:
    """Split names at commas, each once; raise `InputError` for one that is not known."""
    found = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in found:
        if name not in known:
            raise InputError(f"{option} {name}: expected some of {', '.join(known)}, separated by commas")
    return found
