"""What the store of a large run takes: time, files, bytes, memory: `gfo-bench store`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ...export.errors import InputError
from ..rows import BenchRow, Facts, StoreFacts
from .base import DATA, Measured, TableSuite


@dataclass(frozen=True, kw_only=True)
class Store(TableSuite):
    """Fill a store with drawn answers, then read and summarise it, each once. A table, then one line of JSON.

    What a run of a million pictures takes can be computed from that of a tenth; --create-at also creates the store of
    another number of pictures.
    """

    title: ClassVar[str] = "Steps of a store's life, each once"
    facts: ClassVar[Mapping[str, type[Facts]]] = dict.fromkeys(
        ("store-create", "store-write", "store-pending", "store-read", "store-summary"), StoreFacts
    )

    pictures: Annotated[int, typer.Option(help="Number of pictures.", rich_help_panel=DATA)] = 10_000
    occluders: Annotated[int, typer.Option(help="Number of occluders and classes.", rich_help_panel=DATA)] = 100
    create_at: Annotated[
        int | None,
        typer.Option(help="Number of pictures of a further store that is only created.", rich_help_panel=DATA),
    ] = None
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder on the disk to measure; a temporary one if not given.", rich_help_panel=DATA),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the answers.", rich_help_panel=DATA)] = 0

    def check(self) -> None:
        """See `Suite.check`."""
        for option, value in (("--pictures", self.pictures), ("--create-at", self.create_at)):
            if value is not None and value < 1:
                raise InputError(f"{option} {value}: must be at least 1")
        if self.occluders < 2:
            raise InputError(f"--occluders {self.occluders}: must be at least 2")
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(f"--folder {self.folder}: no such folder; create it")
        super().check()

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Measure each step."""
        from ...engine.progress import TerminalProgress
        from ..answers import store_rows

        sizes, further = (self.pictures, self.occluders), self.create_at
        return Measured(store_rows(*sizes, further, self.folder, self.seed, TerminalProgress()), seed=self.seed)
