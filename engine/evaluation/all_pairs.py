"""The all-pairs loop: a source yields pictures in parts, each meets every occluder, and stores take the verdicts.

Several stores hold the answers of one bank at several strengths: a picture is then read once, and evaluated clean once.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ...export.errors import InputError
from ...kernels.score import Score
from ..data.files import PictureFiles
from ..data.source import Block, PictureSource
from ..devices import finite_fix, fitting_memory
from ..engines.base import Engine
from ..progress import Progress, no_progress
from .blocks import Blocks, Writer
from .passes import Passes
from .store import READ_TOGETHER, RunStore
from .summary import Quarantined

# On a device that runs ahead: passes that a part should hold, and the most bytes of its pictures. Up to three parts are
# in memory at a time, one that is being read and two on the device.
_PASSES_IN_A_PART, _PART_BYTES = 16, 100_000_000
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


def to_do(store: RunStore, own: Sequence[int] | None = None, files: PictureFiles | None = None) -> ToDo:
    """Look through blocks of a run, all or those that start in `own`, and through their pictures.

    Another worker's blocks are left to it: it may see other times of the same files.
    """
    own = store.starts() if own is None else own
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
    work = Work(stores, todo or [to_do(store) for store in stores])
    first = stores[0]
    if work.done:
        progress.say(f"resuming: {work.done} of {work.every} {work.unit} are done")
    set_aside = work.set_aside()
    refuse_quarantined(first, set_aside.values(), max_quarantined)
    # Taken before anything of a block is read, which happens while the block before it is scored.
    stamps = {start: _stamps(first, files, start) for start in work.pending} if files is not None else {}
    started, pairs = time.perf_counter(), 0
    with (
        progress.task("all pairs", work.pairs, work.pairs - work.pairs_left) as bar,
        Writer(work.write, stamps, work.file) as writer,
    ):

        def scored(count: int) -> None:
            nonlocal pairs
            pairs += count
            bar.advance(count, f"{pairs / (time.perf_counter() - started):.0f} pairs/s")

        def finish() -> None:
            blocks, part, verdicts = ahead.popleft()
            found = verdicts()
            bar.advance(len(part.quarantined) * len(blocks.occluders))
            for block in blocks.take(part, found):
                writer.write(block, first.end(block.start) - block.start)
                reasons = ((first.paths[block.start + i], why) for i, why in block.quarantined.items())
                set_aside.update({path: Quarantined(path, why) for path, why in reasons})
                refuse_quarantined(first, set_aside.values(), max_quarantined)

        # It holds the pictures of a part for as long as the device may read them.
        ahead: deque[tuple[Blocks, Block, Callable[[], Score]]] = deque()
        most = 1 if engine.runs_ahead else 0
        try:
            for which, starts in groupby(work.pending, work.pending.__getitem__):
                blocks = Blocks(first, list(starts), work.occluders(which))
                ranges = blocks.parts(part_size(engine, passes, first.block, len(blocks.occluders)))
                with closing(source.blocks(first.paths, ranges)) as parts:  # type: ignore[type-var]
                    for part in parts:
                        labels = blocks.labels(part)
                        verdicts = queue_part(engine, part, labels, blocks.occluders, passes, scored)
                        ahead.append((blocks, part, verdicts))
                        while len(ahead) > most:  # a part is fetched when the next one is on its way
                            finish()
        except BaseException:
            with contextlib.suppress(Exception):  # what is on its way is not lost; of two errors the first counts
                while ahead:
                    finish()
            raise
        while ahead:
            finish()
    return time.perf_counter() - started, pairs


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


class Work:
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

    def file(self, start: int) -> tuple[int, Sequence[int]] | None:
        """Return what blocks that are written together have in common: their shard, and the stores that lack them."""
        which = self.pending.get(start)
        return None if which is None else (start // self._stores[0].shard, which)

    def write(self, start: int, scores: Score, quarantined: Mapping[int, str], stamps: Sequence[int] | None) -> None:
        """Write blocks of one `file` into each store that lacks them: scores of [n] pictures × `occluders`."""
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


def queue_part(
    engine: Engine,
    part: Block,
    labels: Tensor,
    occluders: Tensor,
    passes: Passes,
    scored: Callable[[int], object] = lambda count: None,
) -> Callable[[], Score]:
    """Queue every readable picture of a part under R occluders (indices as of `Engine.infer`), pass by pass.

    Parameters
    ----------
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
    rows = len(occluders)
    pieces = list(passes.pieces(part.readable, rows))
    lists = [(piece // rows, occluders[piece % rows]) for piece in pieces]
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
