"""Blocks on their way through an evaluation: read in parts, put together from verdicts, written by a thread."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self, TypeAlias

import torch
from torch import Tensor

from ...kernels.score import Score
from ..data.source import Block
from .todo import Assignment

_HELD_SECONDS = 30.0  # the most that an end without notice may cost, beside the block in work


class ScoredBlock(NamedTuple):
    """A block whose pictures are all scored: scores picture by picture, reasons by position in the block."""

    start: int
    scores: Score
    quarantined: Mapping[int, str]


class Blocks:
    """Blocks of an assignment, in order, each of whose pictures meets equally many occluders.

    Parameters
    ----------
    occluders
        Indices as of `Engine.infer`, int64 [R], the same for every picture, or [N, R] for each of the assignment.
    """

    def __init__(self, work: Assignment, starts: Sequence[int], occluders: Tensor) -> None:
        self._occluders, self.rows = occluders, occluders.shape[-1]
        self._work, self._left = work, deque(range(start, work.end(start)) for start in starts)
        self._scores = self._blank(0)
        self._quarantined: dict[int, str] = {}

    def parts(self, together: int) -> list[range]:
        """Return what to read together: at most so many pictures of a block, or blocks that lie side by side."""
        found: list[range] = []
        for block in self._left:
            if found and found[-1].stop == block.start and block.stop - found[-1].start <= together:
                found[-1] = range(found[-1].start, block.stop)
            else:
                found += [range(at, min(at + together, block.stop)) for at in range(block.start, block.stop, together)]
        return found

    def labels(self, part: Block) -> Tensor:
        """Return the labels of a part's pictures, int64 [B]."""
        return torch.from_numpy(self._work.labels[part.start : part.start + len(part.images)]).long()

    def occluders(self, part: Block) -> Tensor:
        """Return the occluders that each picture of a part meets, int64 [B, R]."""
        count = len(part.images)
        own = self._occluders
        return own.expand(count, -1) if own.ndim == 1 else own[part.start : part.start + count]

    def take(self, part: Block, scores: Score) -> Iterator[ScoredBlock]:
        """Take the scores of the next part's readable pictures, picture by picture; yield the blocks that are whole."""
        found = self._blank(len(part.images))
        for target, values in zip(found, scores, strict=True):
            target[part.readable] = values.view(-1, self.rows).to(target.dtype)
        self._scores = Score(*(torch.cat(both) for both in zip(self._scores, found, strict=True)))
        self._quarantined |= {part.start + position: why for position, why in part.quarantined.items()}
        while self._left and len(self._left[0]) <= len(self._scores.rank):
            block = self._left.popleft()
            here = {i - block.start: self._quarantined.pop(i) for i in block if i in self._quarantined}
            yield ScoredBlock(block.start, Score(*(values[: len(block)].flatten() for values in self._scores)), here)
            self._scores = Score(*(values[len(block) :] for values in self._scores))

    def _blank(self, pictures: int) -> Score:
        shape = (pictures, self.rows)
        return Score(*(torch.full(shape, fill) for fill in (-1, -1, math.nan)))


Write: TypeAlias = Callable[[int, Score, Mapping[int, str], Sequence[int] | None], None]
"""Writes a `ScoredBlock`, or several side by side, with the stamps of the pictures, None for none."""


class Writer:
    """Writes blocks on a thread of its own, while the next ones are evaluated.

    Those that lie side by side and share a file are written together, when no more of them are to come, and every half
    minute: to write a block is to write the file anew. At its end all are written, or what a write raised is raised.

    Parameters
    ----------
    stamps
        Of the pictures of each block; empty for none.
    file
        Names by the start of a block the file that it is to be written to, None where it is not to be written.
    """

    def __init__(self, write: Write, stamps: Mapping[int, Sequence[int]], file: Callable[[int], object]) -> None:
        self._write, self._stamps, self._file = write, stamps, file
        self._held: list[ScoredBlock] = []
        self._ends, self._since = 0, 0.0
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="gfo-write")
        self._since = time.monotonic()
        return self

    def write(self, block: ScoredBlock, pictures: int) -> None:
        """Take a block of so many pictures; raise what an earlier write raised."""
        file = self._file(block.start)
        if self._held and (self._ends, self._file(self._held[0].start)) != (block.start, file):
            self._flush()
        self._held.append(block)
        self._ends = block.start + pictures
        if self._file(self._ends) != file or time.monotonic() - self._since >= _HELD_SECONDS:
            self._flush()

    def _flush(self) -> None:
        """Begin to write the blocks that are held when the last ones are written."""
        if self._last is not None:
            self._last.result()
        held, self._held, self._since = self._held, [], time.monotonic()
        start = held[0].start
        scores = Score(*(torch.cat(parts) for parts in zip(*(block.scores for block in held), strict=True)))
        reasons = {block.start - start + i: why for block in held for i, why in block.quarantined.items()}
        stamps = [stamp for block in held for stamp in self._stamps.get(block.start, ())]
        self._last = self._pool.submit(self._write, start, scores, reasons, stamps or None)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with contextlib.suppress(Exception):  # it is raised below
            if self._held:
                self._flush()
        self._pool.shutdown()
        failed = None if self._last is None else self._last.exception()
        if failed is not None and failed is not error:
            raise failed
