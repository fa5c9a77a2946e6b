"""The bare network of several engines and precisions, each against the first: `gfo-bench versus`."""

from __future__ import annotations

from dataclasses import dataclass

from ..rows import BenchRow, Facts
from .base import Measured
from .pairs import PairsOptions

_OCCLUDERS = "4"  # for comparing logits with PyTorch's, before anything is timed


@dataclass(frozen=True, kw_only=True)
class Versus(PairsOptions):
    """Time the bare network of all engines and precisions in turns, each against the first. A table, then JSON.

    All of them are open at the same time, so that a machine that slows down slows all; `gfo-bench` opens one after the
    other, and needs less memory.
    """

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Measure all engines."""
        from ...engine.progress import TerminalProgress
        from ..pictures import picture_folder, picture_paths
        from ..versus import versus_rows
        from ..workload import Workload, load_occluders

        bank = load_occluders(_OCCLUDERS, self.classifier, self.seed)
        with picture_folder(self.images) as folder:
            paths = picture_paths(folder)
            classifier = self.ready(folder, paths, bank)
            work = Workload(classifier, bank, folder, paths, self.data(folder), pairs=self.batch_size)
            rows = versus_rows(work, self.config(), TerminalProgress())
            return Measured(rows, {"flops_per_picture": work.flops}, self.seed)
