"""How fast pictures are read, and whether they are torchvision's: `gfo-bench loaders`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from ...engine.data import LOADERS
from ..rows import DECODED_CACHE, BenchRow, Facts, LoaderFacts
from .base import DATA, Measured, TimedSuite
from .options import DeviceOptions, ImageOptions, ModelOptions, names

_NAMES = (*LOADERS.names, DECODED_CACHE)


@dataclass(frozen=True, kw_only=True)
class Loaders(TimedSuite, ModelOptions, ImageOptions, DeviceOptions):
    """Time loaders whose pictures are torchvision's, on one core and on all. A table, then one line of JSON."""

    facts: ClassVar[Mapping[str, type[Facts]]] = {"loader": LoaderFacts}

    loader: Annotated[
        str, typer.Option(help=f"Some of {', '.join(_NAMES)}, separated by commas.", rich_help_panel=DATA)
    ] = ",".join(_NAMES)

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Measure every loader beside Pillow."""
        loaders = names("--loader", self.loader, _NAMES)

        from ...engine.devices import resolve_device
        from ...engine.progress import TerminalProgress
        from ..loading import Reading, loader_rows
        from ..pictures import picture_folder

        preprocessing = self.classifier.preprocessing
        with picture_folder(self.images) as folder:
            reading = Reading(folder, preprocessing, self.data(folder), resolve_device(self.device))
            return Measured(loader_rows(reading, loaders, self.seconds, TerminalProgress()), seed=self.seed)
