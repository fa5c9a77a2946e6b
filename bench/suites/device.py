"""What to run first on a new device, such as a GPU that nobody has tried: `gfo-bench device`.

kernel-check   every operation beside its formula, at awkward sizes: `gfo-bench kernels --check`
memory-check   the same under NVIDIA's compute-sanitizer, where that is on the PATH
self-test      every engine at every precision beside float64: `gfo-doctor --selftest`
pairs          the stages of each engine at each precision, with the plain loop: `gfo-bench`
kernel         each operation and its formula: `gfo-bench kernels`
train          a training step: `gfo-bench train`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ...engine import terminal
from ...engine.engines import ENGINES
from ..rows import BenchRow, Facts, KernelFacts, SelfTestFacts
from ..table import print_environment, print_rows
from .base import MEASUREMENT, Measured, Suite, print_lines
from .kernels import Kernels
from .options import Engines, Precisions
from .pairs import Pairs, PairsOptions
from .train import Train

if TYPE_CHECKING:
    from ..device import Section


@dataclass(frozen=True, kw_only=True)
class DeviceSuite(PairsOptions):
    """Check everything on a device, and then time it. Tables, a verdict, and one line of JSON to keep.

    Every section is a command of its own, which is said as it begins: run it again to look closer.
    """

    facts: ClassVar[Mapping[str, type[Facts]]] = {"kernel-check": KernelFacts, "self-test": SelfTestFacts}

    engine: Engines = "all"
    precision: Precisions = "bf16"
    seconds: Annotated[
        float,
        typer.Option(
            help="Time for each set that takes turns, as an engine at a precision; an operation has a tenth of it.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = 5.0

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Run the sections."""
        from ...engine.devices import resolve_device
        from ...engine.progress import TerminalProgress
        from ..device import run_sections
        from ..pictures import picture_folder, picture_paths

        kind = resolve_device(self.device).type
        with picture_folder(self.images) as folder:  # what is wrong with the input is known before anything runs
            picture_paths(folder)
        _ = self.classifier
        found = run_sections(list(self.sections(kind)), kind, TerminalProgress())
        return Measured(found.rows, found.facts, self.seed)

    def sections(self, kind: str) -> Iterator[Section]:
        """Yield the sections on a device, `cpu` or `cuda`: what is right comes before what is fast."""
        from ..device import Section

        where = kind if self.device == "auto" else self.device
        checks = ["kernels", "--check", "--device", where]
        yield Section("kernel-check", "gfo-bench", checks)
        if kind == "cuda":
            yield Section("memory-check", "gfo-bench", checks, checked=True)
        choices = [one for one in self.choices() if self.engine != "all" or kind in ENGINES[one.name].devices]
        for name in dict.fromkeys(choice.name for choice in choices):
            only = [] if name == "auto" else ["--engine", name]
            yield Section("self-test", "gfo-doctor", ["--selftest", "--device", where, *only])
        for choice in choices:
            own = ["--engine", choice.name, "--precision", str(choice.precision), "--device", where, "--baseline"]
            yield Section("pairs", "gfo-bench", [*own, *self._words(Pairs, ("engine", "precision", "device"))])
        seconds = ["--seconds", f"{self.seconds / 10:g}"]
        yield Section("kernel", "gfo-bench", ["kernels", "--device", where, *seconds])
        yield Section("train", "gfo-bench", ["train", *self._words(Train, ("device",)), "--device", where])

    def _words(self, suite: type[Suite[Any]], left_out: Sequence[str]) -> list[str]:
        """Return the options that a suite has as well, as words; not those that nobody gave."""
        shared = {one.name: one.default for one in fields(suite)}
        words: list[str] = []
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in ("json_file", *left_out) or one.name not in shared or value == shared[one.name]:
                continue
            for part in value if isinstance(value, list) else [value]:
                words += [f"--{one.name.replace('_', '-')}", str(part)]
        return words

    def show(self, measured: Measured[BenchRow[Facts]], environment: Mapping[str, Any]) -> None:
        """Print the machine, what was checked, what was timed, and what it comes to."""
        from ..device import CHECKS, verdict

        shown = terminal.console()
        print_environment(environment, shown)
        titles = {**dict.fromkeys(CHECKS, "Is it right?"), "kernel": Kernels.title}
        tables: dict[str, list[BenchRow[Facts]]] = {}
        for row in measured.rows:  # those of pairs and those of training have few columns in common
            title = titles.get(row.stage, f"{'Training' if row.stage.startswith('train') else 'Pairs'}. {self.title}")
            tables.setdefault(title, []).append(row)
        for title, rows in tables.items():
            print_rows(rows, title, shown)
        print_lines(verdict(measured.rows), shown)
