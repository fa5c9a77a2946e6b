"""All pairs beside what they could cost at least, and beside the loop that people write: `gfo-bench`.

An engine is compared with float32 PyTorch first; one that differs has no speed. See `bench.stages` for the stages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ...export.errors import InputError
from ...export.options import whole_number
from ..rows import BenchRow, Facts, PairsFacts
from .base import DATA, MEASUREMENT, OUTPUT, Measured, TimedSuite, refuse_folder, to_be_written
from .options import EngineOptions, ImageOptions, ModelOptions, names

if TYPE_CHECKING:
    from torch import Tensor

    from ...export.classifier import FrozenClassifier
    from ..throughput import PairsConfig
    from ..workload import Workload


# Pictures that set the ranges of an int8 network.
_CALIBRATED = 32


@dataclass(frozen=True, kw_only=True)
class PairsOptions(TimedSuite, ModelOptions, ImageOptions, EngineOptions):
    """What the suites of pairs have in common."""

    facts: ClassVar[Mapping[str, type[Facts]]] = dict.fromkeys(("bare", "pairs", "end-to-end", "baseline"), PairsFacts)

    def config(self) -> PairsConfig:
        """Return the engines that the options name, each at every precision."""
        from ..throughput import PairsConfig

        return PairsConfig(self.choices(), self.seconds)

    def ready(self, folder: Path, paths: Sequence[str], bank: Tensor) -> FrozenClassifier:
        """Return the classifier, for int8 calibrated on what it will be given: speed does not depend on ranges."""
        from ...export.classifier import INT8

        if INT8 not in self.precisions:
            return self.classifier
        from ...engine.machine import worker_count
        from ...export.calibration import Calibration
        from ...export.quantise import quantise
        from ..pictures import open_pictures

        source = open_pictures("pillow", folder, self.classifier.preprocessing, worker_count())
        chosen = list(paths[:_CALIBRATED])
        block = next(iter(source.blocks(chosen, len(chosen))))
        return quantise(self.classifier, Calibration.draw(block.images, bank, str(folder), self.seed))


@dataclass(frozen=True, kw_only=True)
class Pairs(PairsOptions):
    """Time bare network, pairs in memory and files to store in turns. A table, then one line of JSON."""

    occluders: Annotated[
        str,
        typer.Option(
            help="How many (random signs), zero:K, or a bank of gfo-train: FILE, FILE:K.", rich_help_panel=DATA
        ),
    ] = "16"
    pictures: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pictures that a call of end-to-end reads, and at most of pairs; as many as fit the time.",
            rich_help_panel=DATA,
        ),
    ] = None
    stages: Annotated[
        str, typer.Option(help="Some of bare, pairs, end-to-end, baseline.", rich_help_panel=MEASUREMENT)
    ] = "bare,pairs,end-to-end"
    baseline: Annotated[
        bool, typer.Option("--baseline", help="The plain PyTorch loop, too.", rich_help_panel=MEASUREMENT)
    ] = False
    workers: Annotated[
        str | None,
        typer.Option(
            help="Threads that decode in end-to-end, several separated by commas; one a core if not given.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = None
    plot: Annotated[
        Path | None,
        typer.Option(
            help="PNG of throughput against the number of occluders and against the batch.", rich_help_panel=OUTPUT
        ),
    ] = None

    def check(self) -> None:
        """See `Suite.check`."""
        super().check()
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise InputError(f"--plot {self.plot}: is written as PNG; name a .png file")
        refuse_folder("--plot", self.plot)

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Measure the stages of every engine."""
        from ...engine.progress import TerminalProgress
        from ..stages import throughput_rows

        config, stages = self.config(), self.chosen_stages()
        with self.workload() as work:
            rows = throughput_rows(work, config, stages, TerminalProgress())
            return Measured(rows, {"flops_per_picture": work.flops}, self.seed)

    def run(self) -> int:
        """See `Suite.run`; the plot comes last."""
        self.check()
        with to_be_written(self.plot) as partial:
            code = super().run()
            if partial is not None:
                from ...engine.progress import TerminalProgress
                from ..plot import plot_throughput

                plot_throughput(self.classifier, self.bank(), self.config(), partial, TerminalProgress())
        return code

    def notes(self, measured: Measured[BenchRow[Facts]]) -> Iterator[str]:
        """Yield what the multipliers could do at most, a line for each precision, from its first bare network."""
        flops, seen = measured.facts["flops_per_picture"], set[str]()
        for row in measured.rows:
            share = row.facts.ceiling_share if isinstance(row.facts, PairsFacts) else None
            if row.p50 and share and row.precision and row.precision not in seen:
                seen.add(row.precision)
                most = row.p50 / share
                yield (
                    f"a large {row.precision} convolution runs at {most * flops / 1e9:,.0f} GFLOP/s in PyTorch: "
                    f"{most:,.0f} pictures/s of {flops / 1e9:.3g} GFLOP each"
                )

    def bank(self) -> Tensor:
        """Return the occluders, float32 [K, S, S, 3]."""
        from ..workload import load_occluders

        return load_occluders(self.occluders, self.classifier, self.seed)

    @contextlib.contextmanager
    def workload(self) -> Iterator[Workload]:
        """Yield what is run; synthetic pictures exist for the duration of a `with` block."""
        from ..pictures import picture_folder, picture_paths
        from ..workload import Workload

        workers, bank = self.chosen_workers(), self.bank()
        with picture_folder(self.images) as folder:
            paths = picture_paths(folder)
            yield Workload(
                self.ready(folder, paths, bank),
                bank,
                folder,
                paths,
                self.data(folder),
                pictures=self.pictures,
                pairs=self.batch_size,
                workers=workers,
            )

    def chosen_stages(self) -> list[str]:
        """Return the stages that the options name."""
        from ..stages import STAGES

        stages = names("--stages", f"{self.stages},baseline" if self.baseline else self.stages, STAGES)
        if self.workers is not None and "end-to-end" not in stages:
            raise InputError(f"--workers {self.workers}: decode in end-to-end; leave it out, or add that to --stages")
        return stages

    def chosen_workers(self) -> list[int]:
        """Return the numbers of decoding threads that the options name."""
        numbers = {}
        for text in self.workers.split(",") if self.workers is not None else []:
            number = whole_number(text)
            if not number:
                raise InputError(f"--workers {text}: expected numbers of threads from 1, separated by commas")
            numbers[number] = None
        return list(numbers)
