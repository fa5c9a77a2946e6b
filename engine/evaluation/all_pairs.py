"""The all-pairs loop: a source yields pictures in parts, each meets every occluder, and a store takes the verdicts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from ...export.errors import InputError
from ...kernels.score import Score
from ..data.files import PictureFiles
from ..data.source import Block, PictureSource, shard_starts
from ..devices import fitting_memory
from ..engines.base import Engine
from ..progress import Progress, no_progress
from .passes import Passes
from .store import READ_TOGETHER, RunStore
from .summary import Quarantined

_SLACK = 1e-6  # of a number of pictures: 0.29 · 100 is 28.999999999999996


def noise_row(epsilon: float, norm: str, size: int, seed: int) -> Tensor:
    """Return the noise control: seeded random signs on the ε sphere, float32 [S, S, 3] in pixel units."""
    signs = torch.randint(0, 2, (size, size, 3), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1
    return signs * (epsilon if norm == "linf" else epsilon / signs.norm())


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
    store: RunStore,
    source: PictureSource,
    passes: Passes,
    *,
    todo: ToDo | None = None,
    max_quarantined: float = 1.0,
    files: PictureFiles | None = None,
    progress: Progress = no_progress,
) -> tuple[float, int]:
    """Evaluate the blocks of a store that are not done.

    Parameters
    ----------
    engine
        Open; its bank holds the store's rows but the clean one.
    passes
        How the pairs are cut into passes through the network.
    todo
        Which blocks; None for all of the store that are not done.
    max_quarantined
        Share of the store's pictures that may be quarantined, 0 … 1.
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
    todo = todo or to_do(store)
    rows = len(store.occluders)
    finished = sorted(set(todo.own) - set(todo.pending))
    done, every = store.count(finished), store.count(todo.own)
    if done:
        progress.say(f"resuming: {done} of {every} pictures are done")
    set_aside = store.quarantined(finished)
    refuse_quarantined(store, set_aside, max_quarantined)
    # Taken before anything of a block is read, which happens while the block before it is scored.
    stamps = {start: _stamps(store, files, start) for start in todo.pending} if files is not None else {}
    started, pairs = time.perf_counter(), 0
    with progress.task("all pairs", every * rows, done * rows) as bar:
        for start, parts in _parts(store, source, todo.pending):
            scores = _blank_scores((store.end(start) - start) * rows)
            quarantined: dict[int, str] = {}
            for part in parts:
                offset = part.start - start
                labels = torch.from_numpy(store.labels[part.start : part.start + len(part.images)]).long()
                for piece, verdict in score_block(engine, part, labels, rows, passes):
                    for target, values in zip(scores, verdict, strict=True):
                        target[piece + offset * rows] = values
                    pairs += len(piece)
                    bar.advance(len(piece), f"{pairs / (time.perf_counter() - started):.0f} pairs/s")
                quarantined |= {offset + position: why for position, why in part.quarantined.items()}
                bar.advance(len(part.quarantined) * rows)
            store.write(start, scores, quarantined, stamps.get(start))
            set_aside += [Quarantined(store.paths[start + i], why) for i, why in quarantined.items()]
            refuse_quarantined(store, set_aside, max_quarantined)
    return time.perf_counter() - started, pairs


def refuse_quarantined(store: RunStore, found: Sequence[Quarantined], most: float) -> None:
    """Raise `InputError` if the quarantined pictures found are more than a share of all pictures, 0 … 1."""
    if len(found) > most * len(store) + _SLACK:
        raise InputError(
            f"{store.run.data_root}: {len(found)} of {len(store)} files are not pictures, the first: {found[0].path} "
            f"({found[0].reason}); fix them, or allow more with --max-quarantined; if you remove any, use another --out"
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
    engine: Engine, block: Block, labels: Tensor, rows: int, passes: Passes
) -> Iterator[tuple[Tensor, Score]]:
    """Judge every readable picture of a part under every row, pass by pass.

    Yields places in the part, int64 [P] (picture · rows + row), with their verdicts.
    """
    images, labels = engine.place(block.images), engine.place(labels)
    for piece in passes.pieces(block.readable, rows):
        with fitting_memory(passes.pairs, engine.device):
            verdict = engine.score(images, piece // rows, piece % rows, labels)
        if bool((verdict.prediction < 0).any()):
            fix = "check the weights" if engine.precision == "fp32" else "use bf16 or fp32"
            raise InputError(
                f"--precision {engine.precision}: the network returned NaN or infinity on {engine.name}; {fix}"
            )
        yield piece, verdict
