"""The evaluation loop around a device that is not there: passes take a set time, and the host is what is measured.

A pass begins when it is queued or when the one before it ends, whichever is later, as on a GPU's stream. Nothing is
computed: every answer is right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..engine.data.source import Block, PictureSource, as_ranges
from ..engine.engines.base import Engine, Listed
from ..engine.evaluation.all_pairs import all_pairs
from ..engine.evaluation.passes import Passes
from ..engine.evaluation.store import CLEAN, RunStore, block_size
from ..engine.progress import Progress
from ..export.classifier import FrozenClassifier
from ..export.files import ScratchFolder
from ..kernels.score import Score
from .measure import MIN_ROUNDS, ratio, with_rates
from .rows import BenchRow, LoopFacts
from .throughput import run_of

DEVICES: tuple[tuple[int, float], ...] = ((64, 2e-3), (512, 15e-3))
"""Pairs in a pass, and its seconds: small passes of a small network, and large ones of a large network."""
OCCLUDERS = (10, 100)
# Before the end of a wait the clock is read over and over, as CUDA does: sleeping is no more precise than this.
_SPIN_SECONDS = 2e-4


class SimulatedEngine(Engine):
    """An engine whose passes take `seconds` each.

    Attributes
    ----------
    waits
        How often the host waited for the device.
    """

    name: ClassVar[str] = "simulated"
    devices: ClassVar[tuple[str, ...]] = ()
    impl = "reference"
    device = "simulated"

    def __init__(self, subject: FrozenClassifier, seconds: float, *, ahead: bool) -> None:
        super().__init__(subject, "fp32")
        self._seconds, self._ahead = seconds, ahead

    @property
    def runs_ahead(self) -> bool:
        """See `Engine.runs_ahead`."""
        return self._ahead

    @classmethod
    def precisions(cls, device: str = "auto") -> tuple[str, ...]:
        """See `Engine.precisions`."""
        return ("fp32",)

    def open(self) -> None:
        """Begin to count."""
        self.waits = 0
        self._free = time.perf_counter()

    def _load_bank(self, occluders: Tensor) -> None:
        pass

    def _together(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors

    def _infer(self, images: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
        raise NotImplementedError("it has no logits")

    def queue(self, images: Tensor, pairs: Listed) -> Score:
        """See `Engine.queue`; an engine that does not run ahead waits for the pass."""
        self._free = max(time.perf_counter(), self._free) + self._seconds
        if not self.runs_ahead:
            self._wait(self._free)
        count = len(pairs.labels)
        return Score(pairs.labels, torch.zeros(count, dtype=torch.int64), torch.ones(count))

    def fetch(self, scores: Sequence[Score]) -> Callable[[], Score]:
        """See `Engine.fetch`."""
        until, found = self._free, Score(*(torch.cat(part) for part in zip(*scores, strict=True)))

        def wait() -> Score:
            if self.runs_ahead:
                self._wait(until)
            return found

        return wait

    def _wait(self, until: float) -> None:
        self.waits += 1
        time.sleep(max(0.0, until - time.perf_counter() - _SPIN_SECONDS))
        while time.perf_counter() < until:
            pass

    def bare(self, batch: int) -> dict[str, Callable[[], object]]:
        """Return nothing: there is no network."""
        return {}

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class _InMemory(PictureSource):
    """Yields parts of the same pictures, uint8 [n, S, S, 3]."""

    images: Tensor
    name = "memory"
    how = "the same pictures again"

    def blocks(self, paths: Sequence[str], parts: int | Sequence[range]) -> Iterator[Block]:
        """See `PictureSource.blocks`."""
        for part in as_ranges(parts, len(paths)):
            yield Block(part.start, self.images[torch.arange(len(part)) % len(self.images)])


def loop_rows(classifier: FrozenClassifier, seconds: float, progress: Progress) -> list[BenchRow[LoopFacts]]:
    """Measure the loop at each of `DEVICES` and `OCCLUDERS`, waiting for every pass and for every part, in turns.

    Returns
    -------
    list
        Pairs a second, from pictures in memory to a store on disk, and their ratio to what the device could do.
    """
    rows: list[BenchRow[LoopFacts]] = []
    for pairs, taken in DEVICES:
        for occluders in OCCLUDERS:
            progress.say(f"{pairs} pairs in {1e3 * taken:.0f} ms, {occluders} occluders")
            rows += _turns(classifier, Passes(pairs, square=False), taken, occluders, seconds)
    return rows


def _turns(
    classifier: FrozenClassifier, passes: Passes, taken: float, occluders: int, seconds: float
) -> list[BenchRow[LoopFacts]]:
    block = block_size(1 + occluders)
    busy = seconds / (2 * MIN_ROUNDS)  # of the device, in a call
    pictures = max(2, round(busy / taken * passes.pairs / (1 + occluders) / block)) * block
    size = classifier.preprocessing.input_size
    engines = {stage: SimulatedEngine(classifier, taken, ahead=stage == "loop") for stage in ("loop-waiting", "loop")}
    rates: dict[str, list[float]] = {stage: [] for stage in engines}
    start = time.perf_counter()
    while len(rates["loop"]) < MIN_ROUNDS or time.perf_counter() - start < seconds:
        for stage, engine in engines.items():
            with engine:
                engine.load_bank(torch.zeros(occluders, size, size, 3))
                spent, done = _evaluated(engine, pictures, occluders, passes)
                rates[stage].append(done / spent)
    rows = []
    for stage, engine in engines.items():
        row = BenchRow(
            stage=stage,
            engine="simulated",
            pictures=pictures,
            occluders=occluders,
            unit="pairs/s",
            sizes=f"{passes.pairs} pairs in {1e3 * taken:.0f} ms",
            facts=LoopFacts(waits=engine.waits),
        )
        own = np.array(rates[stage])
        rows.append(with_rates(row, own, ratio(own, "device", np.full_like(own, passes.pairs / taken))))
    return rows


def _evaluated(engine: SimulatedEngine, pictures: int, occluders: int, passes: Passes) -> tuple[float, int]:
    """Return the seconds and pairs of an evaluation into a store that is then removed."""
    size, classes = engine.subject.preprocessing.input_size, tuple(range(occluders))
    source = _InMemory(torch.zeros(block_size(1 + occluders), size, size, 3, dtype=torch.uint8))
    paths, zeros = [f"{i}.jpg" for i in range(pictures)], [0] * pictures
    with ScratchFolder() as folder:
        run = run_of(engine, classes, source.name, folder)
        store = RunStore.create(Path(folder), run, paths=paths, labels=zeros, fit=zeros, occluders=[CLEAN, *classes])
        return all_pairs(engine, [store], source, passes)
