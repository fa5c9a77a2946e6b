"""What to run first on a new device, such as a GPU that nobody has tried: `gfo-bench device`.

kernel-check   every operation beside its formula, at awkward sizes, with the largest distance
memory-check   the same under NVIDIA's compute-sanitizer, where that is on the PATH
self-test      every engine at every precision beside float64
network        on a GPU: the bare network in PyTorch, eager, compiled, and each captured as a CUDA graph
pairs          the stages of `gfo-bench pairs`, with the plain loop
kernel         the rows of `gfo-bench kernels`, beside a large copy
train          the rows of `gfo-bench train`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import typer

from ...engine import terminal
from ..rows import BenchRow, Facts, KernelFacts, PairsFacts, SelfTestFacts
from ..table import print_environment, print_rows
from .base import ENGINE, Measured, print_lines
from .pairs import PairsOptions

_OCCLUDERS = "16"
_CHECKS = ("kernel-check", "memory-check", "self-test")


@dataclass(frozen=True, kw_only=True)
class DeviceSuite(PairsOptions):
    """Check everything on a device, and then time it. Two tables, a verdict, and one line of JSON to keep."""

    title: ClassVar[str] = "Is it fast? Median rates; ratios are of medians, with a 95% interval over rounds"
    facts: ClassVar[Mapping[str, type[Facts]]] = {
        "kernel-check": KernelFacts,
        "self-test": SelfTestFacts,
        "network": PairsFacts,
    }

    engine: Annotated[
        str,
        typer.Option(help="all, auto, or some of the engines, separated by commas.", rich_help_panel=ENGINE),
    ] = "all"
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, fp16, or several separated by commas.", rich_help_panel=ENGINE)
    ] = "bf16"
    seconds: Annotated[float, typer.Option(help="Time for each set that takes turns.")] = 5.0

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Check and measure everything."""
        from ...engine.devices import resolve_device
        from ...engine.machine import keep_freed_memory
        from ...engine.progress import TerminalProgress
        from ..device import DeviceConfig, device_rows
        from ..pictures import picture_folder, picture_paths
        from ..workload import Workload, load_occluders

        place, classifier = resolve_device(self.device), self.classifier
        keep_freed_memory()
        bank = load_occluders(_OCCLUDERS, classifier, self.seed)
        config = DeviceConfig(place, self.config(), self.precisions)
        with picture_folder(self.images) as folder:
            paths, data = picture_paths(folder), self.data(folder)
            work = Workload(classifier, bank, folder, paths, data, pairs=self.batch_size)
            rows = device_rows(work, config, TerminalProgress())
            return Measured(rows, {"flops_per_picture": work.flops}, self.seed)

    def show(self, measured: Measured[BenchRow[Facts]], environment: Mapping[str, Any]) -> None:
        """Print the machine, what was checked, what was timed, and what it comes to."""
        from ..device import verdict

        shown = terminal.console()
        print_environment(environment, shown)
        for title, wanted in (("Is it right?", True), (self.title, False)):
            print_rows([row for row in measured.rows if (row.stage in _CHECKS) is wanted], title, shown)
        print_lines(verdict(measured.rows), shown)
