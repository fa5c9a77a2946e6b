"""The all-pairs loop: a source yields pictures in parts, each meets every occluder, and stores take the verdicts.

Several stores hold the answers of one bank at several strengths: a picture is then read once, and evaluated clean once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from ...export.errors import InputError
from ...kernels.score import Score
from ..data.files import PictureFiles
from ..data.source import Block, PictureSource, shard_starts
from ..devices import finite_fix, fitting_memory
from ..engines.base import Engine
from ..progress import Progress, no_progress
from .passes import Passes
from .store import READ_TOGETHER, RunStore
from .summary import Quarantined

_SLACK = 1e-6  # of a number of pictures: 0.29 · 100 is 28.999999999999996


@dataclass(frozen=True)
class ToDo:
    """The blocks of a run or of a shard, by their first pictures, and those to evaluate.

    Attributes
    ----------
    changed
        How many pictures of blocks that are done have changed since; these blocks are to be evaluated, too.
    """

    own: Sequence[int]
    pending: Sequence[int]
    changed: int = 0


def to_do(store: RunStore, shard: tuple[int, int] | None = None, files: PictureFiles | None = None) -> ToDo:
    """Look through the blocks of a run, or every n-th from the i-th for a shard (i, n), and through their pictures.

    Another worker's blocks are left to it: it may see other times of the same files.
    """
    own = shard_starts(len(store), store.block, *(shard or (0, 1)))
    pending = set(store.pending(own))
    changed: dict[int, int] = {}
    if files is not None:
        done = (start for start in own if start not in pending)
        changed = {start: store.changed(start, _stamps(store, files, start)) for start in done}
    return ToDo(own, [start for start in own if start in pending or changed.get(start)], sum(changed.values()))


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
    work = _Work(stores, todo or [to_do(store) for store in stores])
    first = stores[0]
    if work.done:
        progress.say(f"resuming: {work.done} of {work.every} {work.unit} are done")
    set_aside = work.set_aside()
    refuse_quarantined(first, set_aside.values(), max_quarantined)
    # Taken before anything of a block is read, which happens while the block before it is scored.
    stamps = {start: _stamps(first, files, start) for start in work.pending} if files is not None else {}
    started, pairs = time.perf_counter(), 0
    with progress.task("all pairs", work.pairs, work.pairs - work.pairs_left) as bar:
        for start, parts in _parts(first, source, list(work.pending)):
            occluders = work.occluders(work.pending[start])
            rows = len(occluders)
            scores = _blank_scores((first.end(start) - start) * rows)
            quarantined: dict[int, str] = {}
            for part in parts:
                offset = part.start - start
                labels = torch.from_numpy(first.labels[part.start : part.start + len(part.images)]).long()
                for piece, verdict in score_block(engine, part, labels, occluders, passes):
                    for target, values in zip(scores, verdict, strict=True):
                        target[piece + offset * rows] = values
                    pairs += len(piece)
                    bar.advance(len(piece), f"{pairs / (time.perf_counter() - started):.0f} pairs/s")
                quarantined |= {offset + position: why for position, why in part.quarantined.items()}
                bar.advance(len(part.quarantined) * rows)
            work.write(start, scores, quarantined, stamps.get(start))
            set_aside |= {
                first.paths[start + i]: Quarantined(first.paths[start + i], why) for i, why in quarantined.items()
            }
            refuse_quarantined(first, set_aside.values(), max_quarantined)
    return time.perf_counter() - started, pairs


class _Work:
    """What is left to do of some stores.

    Attributes
    ----------
    pending
        Blocks that are not done, by their first pictures: the stores that lack them.
    pairs, pairs_left
        All pairs, and those of pending blocks; a picture is clean once, whatever the number of stores.
    """

    def __init__(self, stores: Sequence[RunStore], todo: Sequence[ToDo]) -> None:
        self._stores, self._todo = stores, todo
        self._own = len(stores[0].occluders) - 1
        lacking = [set(one.pending) for one in todo]
        lists = ((start, [i for i, starts in enumerate(lacking) if start in starts]) for start in todo[0].own)
        self.pending = {start: which for start, which in lists if which}
        self.pairs = stores[0].count(todo[0].own) * (1 + self._own * len(stores))
        self.pairs_left = sum(
            stores[0].count([start]) * (1 + self._own * len(which)) for start, which in self.pending.items()
        )

    @property
    def every(self) -> int:
        """Pictures, or pairs of several stores: these may be done to different extents."""
        return self.pairs if len(self._stores) > 1 else self._stores[0].count(self._todo[0].own)

    @property
    def done(self) -> int:
        """Those of `every` that are done."""
        if len(self._stores) > 1:
            return self.pairs - self.pairs_left
        return self.every - self._stores[0].count(self.pending)

    @property
    def unit(self) -> str:
        """What `every` and `done` count."""
        return "pairs" if len(self._stores) > 1 else "pictures"

    def occluders(self, which: Sequence[int]) -> Tensor:
        """Return the engine's occluder indices of some stores, int64: clean, then the rows of each."""
        rows = torch.arange(1, 1 + self._own)
        return torch.cat([torch.zeros(1, dtype=torch.int64), *(self._own * i + rows for i in which)])

    def set_aside(self) -> dict[str, Quarantined]:
        """Return the quarantined pictures of blocks that are done, by path."""
        found: dict[str, Quarantined] = {}
        for store, todo in zip(self._stores, self._todo, strict=True):
            finished = sorted(set(todo.own) - set(todo.pending))
            found |= {entry.path: entry for entry in store.quarantined(finished)}
        return found

    def write(self, start: int, scores: Score, quarantined: Mapping[int, str], stamps: Sequence[int] | None) -> None:
        """Write a block into each store that lacks it: scores of [n] pictures × `occluders`, picture by picture."""
        which = self.pending[start]
        tables = [part.view(-1, 1 + self._own * len(which)) for part in scores]
        for place, i in enumerate(which):
            own = self.occluders([place])
            self._stores[i].write(start, Score(*(table[:, own].flatten() for table in tables)), quarantined, stamps)


def refuse_quarantined(store: RunStore, found: Collection[Quarantined], most: float) -> None:
    """Raise `InputError` if the quarantined pictures found are more than a share of all pictures, 0 … 1."""
    if len(found) > most * len(store) + _SLACK:
        first = next(iter(found))
        raise InputError(
            f"{store.run.data_root}: {len(found)} of {len(store)} files are not pictures, the first: {first.path} "
            f"({first.reason}); fix them, or allow more with --max-quarantined; if you remove any, use another --out"
        )


def _stamps(store: RunStore, files: PictureFiles, start: int) -> list[int]:
    return [files.stamp(path) for path in store.paths[start : store.end(start)]]


def _blank_scores(count: int) -> Score:
    return Score(*(torch.full((count,), fill) for fill in (-1, -1, math.nan)))


def _parts(store: RunStore, source: PictureSource, pending: Sequence[int]) -> Iterator[tuple[int, Iterator[Block]]]:
    """Yield the blocks of the store, each as the parts that are read together: small, so that the first comes soon."""
    together = READ_TOGETHER if store.block % READ_TOGETHER == 0 else store.block
    starts = [part for start in pending for part in range(start, store.end(start), together)]
    with closing(source.blocks(store.paths, together, starts)) as parts:  # type: ignore[type-var]
        for start in pending:
            yield start, islice(parts, len(range(start, store.end(start), together)))


def score_block(
    engine: Engine, block: Block, labels: Tensor, occluders: Tensor, passes: Passes
) -> Iterator[tuple[Tensor, Score]]:
    """Judge every readable picture of a part under R occluders (indices as of `Engine.infer`), pass by pass.

    Yields places in the part, int64 [P] (picture · R + place of the occluder), with their verdicts.
    """
    images, labels, rows = engine.place(block.images), engine.place(labels), len(occluders)
    for piece in passes.pieces(block.readable, rows):
        with fitting_memory(passes.pairs, engine.device):
            verdict = engine.score(images, piece // rows, occluders[piece % rows], labels)
        if bool((verdict.prediction < 0).any()):
            fix = finite_fix(engine.precision)
            raise InputError(
                f"--precision {engine.precision}: the network returned NaN or infinity on {engine.name}; {fix}"
            )
        yield piece, verdict
