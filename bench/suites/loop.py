"""What the evaluation loop costs around a fast device, without one: `gfo-bench loop`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..rows import BenchRow, Facts, LoopFacts
from .base import Measured, TimedSuite


@dataclass(frozen=True, kw_only=True)
class Loop(TimedSuite):
    """Time the evaluation loop around a simulated device, whose passes take 2 ms for 64 pairs, or 15 ms for 512.

    Pictures are in memory and verdicts go into a store. The loop that waits for every pass stands beside the one that
    waits once a part. A table, then one line of JSON.
    """

    title: ClassVar[str] = "Loop around a simulated device; ratios are to what the device could do"
    facts: ClassVar[Mapping[str, type[Facts]]] = dict.fromkeys(("loop", "loop-waiting"), LoopFacts)

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Measure each kind of pass at each number of occluders."""
        from ...engine.progress import TerminalProgress
        from ...export.classifier import load_classifier
        from ...export.models.spec import ModelSpec
        from ..simulated import loop_rows

        classifier = load_classifier(ModelSpec("torchvision/resnet18", "random"))
        return Measured(loop_rows(classifier, self.seconds, TerminalProgress()))
