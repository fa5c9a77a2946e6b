"""The all-pairs loop: a source yields pictures in parts, each meets every occluder, and stores take the verdicts.

Several stores hold the answers of one bank at several strengths: a picture is then read once, and evaluated clean once.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ...export.errors import InputError
from ...kernels.score import Score
from ..data.files import PictureFiles
from ..data.source import Block, PictureSource
from ..devices import DoesNotFit, finite_fix, fitting_memory
from ..engines.base import Engine
from ..progress import Bar, Progress, no_progress
from .blocks import Blocks, ScoredBlock, Writer
from .passes import Passes
from .store import READ_TOGETHER, RunStore
from .summary import Quarantined
from .todo import Assignment, ToDo, Work, stamps, to_do

# On a device that runs ahead: passes that a part should hold, and the most bytes of its pictures. Up to three parts are
# in memory at a time, one that is being read and two on the device.
_PASSES_IN_A_PART, _PART_BYTES = 16, 100_000_000
T = TypeVar("T")


def all_pairs(
    engine: Engine,
    stores: Sequence[RunStore],
    source: PictureSource,
    passes: Passes,
    *,
    todo: Sequence[ToDo] | None = None,
    max_quarantined: float = 1.0,
    files: PictureFiles | None = None,
    progress: Progress = no_progress,
) -> tuple[float, int]:
    """Evaluate the blocks of some stores that are not done.

    Parameters
    ----------
    engine
        Open; its bank holds the rows of each store but the clean one, store by store.
    stores
        They are over the same pictures and have equally many rows.
    passes
        How the pairs are cut into passes through the network.
    todo
        Which blocks of each store; None for all that are not done.
    max_quarantined
        Share of a store's pictures that may be quarantined, 0 … 1.
    files
        The pictures; they are stamped, so that `to_do` sees which have changed since.

    Returns
    -------
    tuple
        Seconds and pairs of this call.

    Raises
    ------
    InputError
        The network returned NaN or infinity, a pass does not fit into memory, or too many pictures are quarantined.
        Finished blocks are kept.
    """
    work = Work(stores, todo or [to_do(store) for store in stores], max_quarantined)
    # Taken before anything of a block is read, which happens while the block before it is scored.
    taken = {start: stamps(stores[0], files, start) for start in work.pending} if files is not None else {}
    with progress.task("all pairs", work.pairs, work.pairs - work.pairs_left) as bar:
        return run_assignment(engine, work, source, passes, bar, progress=progress, taken=taken)


def run_assignment(
    engine: Engine,
    work: Assignment,
    source: PictureSource,
    passes: Passes,
    bar: Bar,
    *,
    progress: Progress = no_progress,
    taken: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> tuple[float, int]:
    """Evaluate what is pending of an assignment; returns and errors as of `all_pairs`.

    `bar` counts pairs, and `taken` has the stamps of the pictures of each block.
    """
    with Writer(work.write, taken, work.file) as writer:
        loop = _Loop(engine, passes, work, progress, bar, writer)
        loop.run(source)
    return time.perf_counter() - loop.started, loop.pairs


@dataclass
class _Loop:
    """The loop of `run_assignment` and its state: parts that are on their way, pairs and quarantined pictures.

    `ahead` holds the pictures of a part for as long as the device may read them.
    """

    engine: Engine
    passes: Passes
    work: Assignment
    progress: Progress
    bar: Bar
    writer: Writer
    pairs: int = 0
    started: float = field(default_factory=time.perf_counter)
    ahead: deque[_Queued] = field(default_factory=deque)
    quarantined: dict[str, Quarantined] = field(default_factory=dict)

    def run(self, source: PictureSource) -> None:
        """Evaluate what is pending."""
        work = self.work
        self.quarantined = dict(work.set_aside())
        work.refuse(self.quarantined.values())
        try:
            for which, starts in groupby(work.pending, work.pending.__getitem__):
                blocks = Blocks(work, list(starts), work.occluders(which))
                size = part_size(self.engine, self.passes, work.block, blocks.rows)
                read = source.blocks(work.paths, blocks.parts(size))
                with closing(read) as parts:  # type: ignore[type-var]
                    for part in parts:
                        self._queue(blocks, part)
        except BaseException:
            with contextlib.suppress(Exception):  # what is on its way is not lost; of two errors the first counts
                self._finish(0)
            raise
        self._finish(0)

    def _queue(self, blocks: Blocks, part: Block) -> None:
        labels, occluders = blocks.labels(part), blocks.occluders(part)

        def queue() -> Callable[[], Score]:
            return queue_part(self.engine, part, labels, occluders, self.passes, self._scored)

        verdicts = self._fitting(queue, queue)
        self.ahead.append(_Queued(blocks, part, queue, verdicts, self.passes))
        self._finish(1 if self.engine.runs_ahead else 0)  # a part is fetched when the next one is on its way

    def _finish(self, most: int) -> None:
        """Write what is done, until at most so many parts are on their way."""
        while len(self.ahead) > most:
            blocks, part, queue, verdicts, passes = self.ahead.popleft()
            found = self._fitting(verdicts, lambda queue=queue: queue()(), passes)
            self.bar.advance(len(part.quarantined) * blocks.rows)
            for block in blocks.take(part, found):
                self.writer.write(block, self.work.end(block.start) - block.start)
                self._note(block)
                self.work.refuse(self.quarantined.values())

    def _fitting(self, call: Callable[[], T], again: Callable[[], T], tried: Passes | None = None) -> T:
        """Call; where the passes that are `tried` do not fit into the memory, call `again` with smaller ones."""
        tried, before = tried or self.passes, self.pairs
        while True:
            try:
                return call()
            except DoesNotFit as error:
                self._scored(before - self.pairs)
                if tried == self.passes:  # otherwise another part has found so
                    self._shrink(error)
                call, tried = again, self.passes

    def _shrink(self, error: DoesNotFit) -> None:
        """Make passes half as long from now on; raise the error where they cannot be shorter."""
        if self.passes.pairs == 1 or self.engine.fixed_pairs:
            raise error
        self.passes = replace(self.passes, pairs=self.passes.pairs // 2)
        self.progress.say(f"{error}; going on with {self.passes}")

    def _scored(self, count: int) -> None:
        self.pairs += count
        self.bar.advance(count, f"{self.pairs / (time.perf_counter() - self.started):.0f} pairs/s")

    def _note(self, block: ScoredBlock) -> None:
        for place, why in block.quarantined.items():
            path = self.work.paths[block.start + place]
            self.quarantined[path] = Quarantined(path, why)
            self.progress.event("quarantine", path=path, reason=why)
        self.progress.event("block", start=block.start, pictures=self.work.end(block.start) - block.start)


class _Queued(NamedTuple):
    """A part that is queued in some passes: what queues it, and what waits for its verdicts."""

    blocks: Blocks
    part: Block
    queue: Callable[[], Callable[[], Score]]
    verdicts: Callable[[], Score]
    passes: Passes


def part_size(engine: Engine, passes: Passes, block: int, rows: int) -> int:
    """Return how many pictures to evaluate together: a part of a block, or several blocks.

    Parts are small, so that the first comes soon. A device that runs ahead gets whole blocks, and enough of them that
    the last pass of a part, which is shorter, counts little; `_PART_BYTES` bounds them.
    """
    if not engine.runs_ahead:
        return block if block % READ_TOGETHER else READ_TOGETHER
    wanted = math.ceil(_PASSES_IN_A_PART * passes.pairs / (block * rows))
    fitting = _PART_BYTES // (3 * engine.subject.preprocessing.input_size**2 * block)
    return block * max(1, min(wanted, fitting))


def queue_part(
    engine: Engine,
    part: Block,
    labels: Tensor,
    occluders: Tensor,
    passes: Passes,
    scored: Callable[[int], object] = lambda count: None,
) -> Callable[[], Score]:
    """Queue every readable picture of a part under R occluders, pass by pass.

    Parameters
    ----------
    occluders
        Indices as of `Engine.infer`, int64 [B, R], of each picture.
    labels
        int64 [B], of the part's pictures, on the CPU.
    scored
        Is told how many pairs are done: after each pass, or where the engine runs ahead when all have been waited for.

    Returns
    -------
    Callable
        Waits for the verdicts of all readable pictures, picture by picture, and returns them. Raises `InputError` if
        the network returned NaN or infinity; on an engine that does not run ahead the pass has then raised it.
    """
    rows = occluders.shape[1]
    pieces = list(passes.pieces(part.readable, rows))
    lists = [(piece // rows, occluders.flatten()[piece]) for piece in pieces]
    if not pieces:
        return lambda: Score(*(torch.empty(0, dtype=kind) for kind in (torch.int64, torch.int64, torch.float32)))
    verdicts: list[Score] = []
    with fitting_memory(passes.pairs, engine.device):
        images = engine.place(part.images)
        for pairs in engine.listed(lists, labels):
            verdicts.append(engine.queue(images, pairs))
            if not engine.runs_ahead:
                _refuse_broken(engine, verdicts[-1])
                scored(len(pairs.labels))
        fetched = engine.fetch(verdicts)

    def wait() -> Score:
        with fitting_memory(passes.pairs, engine.device):
            found = fetched()
        if engine.runs_ahead:
            _refuse_broken(engine, found)
            scored(len(found.rank))
        order = torch.cat(pieces).argsort()
        return Score(*(values[order] for values in found))

    return wait


def _refuse_broken(engine: Engine, verdict: Score) -> None:
    if bool((verdict.prediction < 0).any()):
        fix = finite_fix(engine.precision)
        raise InputError(
            f"--precision {engine.precision}: the network returned NaN or infinity on {engine.name}; {fix}"
        )
