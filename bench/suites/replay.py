"""Whether the intervals of sampled evaluations hold: `gfo-bench replay`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ...export.errors import InputError
from ..rows import BenchRow, Facts, ReplayFacts
from .base import DATA, MEASUREMENT, Measured, TableSuite


@dataclass(frozen=True, kw_only=True)
class Replay(TableSuite):
    """Replay sampled evaluations on the answers of full RUNs. A table, then one line of JSON.

    Every replay draws pairs in an order of its own until the half-width is reached; `coverage` is the share of replays
    whose interval holds what all pairs give. Rows without a half-width are about the confidence sequence, over all
    looks until every pair is drawn. With `--certified` certificates are replayed, and all pairs in fp32 are the truth.
    """

    title: ClassVar[str] = "Sampled evaluations against all pairs"
    facts: ClassVar[Mapping[str, type[Facts]]] = {
        "replay": ReplayFacts,
        "replay-sequence": ReplayFacts,
        "replay-certificate": ReplayFacts,
    }

    runs: Annotated[str, typer.Option(help="RUNs of all pairs, separated by commas.", rich_help_panel=DATA)] = ""
    certified: Annotated[
        str, typer.Option(help="RUNs in fp32 of the same pairs, in the order of --runs.", rich_help_panel=DATA)
    ] = ""
    until: Annotated[
        str, typer.Option(help="Half-widths of 95%, separated by commas.", rich_help_panel=MEASUREMENT)
    ] = "0.01,0.02"
    replays: Annotated[int, typer.Option(help="Replays of each.", rich_help_panel=MEASUREMENT)] = 1000
    classes: Annotated[
        int | None,
        typer.Option(help="Draw answers like those of a RUN for so many classes of 50 pictures.", rich_help_panel=DATA),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the first order.", rich_help_panel=MEASUREMENT)] = 0

    def check(self) -> None:
        """See `Suite.check`."""
        if not self.runs:
            raise InputError("--runs: name at least one RUN of gfo-eval, as runs/demo/digits-resnet")
        if self.replays < 1:
            raise InputError(f"--replays {self.replays}: must be at least 1")
        if self.classes is not None and self.classes < 2:
            raise InputError(f"--classes {self.classes}: must be at least 2")
        if self.certified and len(self.certified.split(",")) != len(self.runs.split(",")):
            raise InputError(f"--certified {self.certified}: name a RUN in fp32 for each of --runs")
        if self.certified and self.classes is not None:
            raise InputError(f"--classes {self.classes}: draws answers of a single RUN; leave it or --certified out")
        self._marks()
        super().check()

    def _marks(self) -> list[float]:
        try:
            marks = list(map(float, self.until.split(",")))
        except ValueError as error:
            raise InputError(f"--until {self.until}: expected numbers separated by commas, as 0.01,0.02") from error
        if not all(0 < mark < 1 for mark in marks):
            raise InputError(f"--until {self.until}: half-widths are above 0 and below 1")
        return marks

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Replay."""
        from ...engine.progress import TerminalProgress
        from ..replay import certificate_rows, enlarged, read_answers, read_certified, replay_rows

        if self.certified:
            places = zip(self.runs.split(","), self.certified.split(","), strict=True)
            pairs = [read_certified(Path(run), Path(fp32)) for run, fp32 in places]
            return Measured(
                certificate_rows(pairs, self._marks(), self.replays, self.seed, TerminalProgress()), seed=self.seed
            )
        every = [read_answers(Path(run)) for run in self.runs.split(",")]
        if self.classes is not None:
            every = [enlarged(answers, self.classes, 50, self.seed) for answers in every]
        rows = replay_rows(every, self._marks(), self.replays, self.seed, TerminalProgress())
        return Measured(rows, seed=self.seed)
