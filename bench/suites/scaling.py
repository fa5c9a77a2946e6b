"""Files to store for several numbers of occluders and pictures: `gfo-bench scaling`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ...export.errors import InputError
from ...export.options import whole_number
from ..rows import BenchRow, Facts
from .base import DATA, MEASUREMENT, Measured
from .pairs import PairsOptions

if TYPE_CHECKING:
    from ..throughput import OpenRun, PairsRow
    from ..workload import Workload

Points = Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Scaling(PairsOptions):
    """Time files to store for several numbers of occluders and pictures in turns. A table, then one line of JSON."""

    points: Annotated[
        str,
        typer.Option(help="KxN: occluders x pictures, several separated by commas.", rich_help_panel=MEASUREMENT),
    ] = "10x100,100x10"
    occluders: Annotated[
        str | None,
        typer.Option(
            help="zero:K, or a bank of gfo-train: FILE, FILE:K; random signs if not given.", rich_help_panel=DATA
        ),
    ] = None

    def check(self) -> None:
        """See `Suite.check`."""
        super().check()
        if self.occluders is not None and self.occluders.isdecimal():
            raise InputError(
                f"--occluders {self.occluders}: --points says how many; leave it out, or give zero:K or a bank"
            )

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Measure every point with every engine."""
        from ...engine.progress import TerminalProgress
        from ..throughput import engine_rows

        config, points = self.config(), self.chosen_points()
        with self.workload(points) as work:
            stages = ["end-to-end"] * len(points)
            rows = engine_rows(work, config, stages, lambda run: point_rows(run, points), TerminalProgress())
            return Measured(rows, {"flops_per_picture": work.flops}, self.seed)

    @contextlib.contextmanager
    def workload(self, points: Points) -> Iterator[Workload]:
        """Yield what is run; synthetic pictures exist for the duration of a `with` block."""
        from ..pictures import picture_folder, picture_paths
        from ..workload import Workload, load_occluders

        most = max(k for k, _ in points)
        bank = load_occluders(self.occluders or str(most), self.classifier, self.seed)
        if most > len(bank):
            raise InputError(f"--points: {most} occluders are more than the bank's {len(bank)}; use fewer")
        with picture_folder(self.images) as folder:
            paths, data = picture_paths(folder), self.data(folder)
            yield Workload(self.ready(folder, paths, bank), bank, folder, paths, data, pairs=self.batch_size)

    def chosen_points(self) -> Points:
        """Return `10x100,1000x10` as [(10, 100), (1000, 10)]."""
        points = []
        for text in self.points.split(","):
            k, _, n = map(whole_number, text.partition("x"))
            if not (k and n):
                raise InputError(f"--points {text}: expected occluders x pictures, as 10x100")
            points.append((k, n))
        return list(dict.fromkeys(points))


def point_rows(run: OpenRun, points: Points) -> list[PairsRow]:
    """Measure files to store for each (K, N) in turns; the bank is loaded in each call, and ratios are to the first."""
    from ...engine.machine import worker_count
    from ..measure import measure, ratio, timer, with_rates
    from ..throughput import best_passes, end_to_end

    passes, _ = best_passes(run)

    def call(occluders: int, pictures: int) -> None:
        part = replace(run.work, occluders=run.work.occluders[:occluders])
        run.engine.load_bank(part.occluders)
        end_to_end(run.engine, part, pictures, passes, worker_count())

    calls = {f"{k} x {n}": partial(call, k, n) for k, n in points}
    times = measure(calls, seconds=run.seconds, timer=timer(run.engine.torch_device.type))
    rates = {name: n * (1 + k) / times[name] for name, (k, n) in zip(calls, points, strict=True)}
    first, *_ = rates
    rows = []
    for name, (k, n) in zip(calls, points, strict=True):
        row = run.row("end-to-end", occluders=k, pictures=n, sizes=str(passes))
        rows.append(with_rates(row, rates[name], None if name == first else ratio(rates[name], first, rates[first])))
    return rows
