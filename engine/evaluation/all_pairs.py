"""The all-pairs loop: a source yields pictures in parts, each meets every occluder, and a store takes the verdicts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
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


def noise_row(epsilon: float, norm: str, size: int, seed: int) -> Tensor:
    """Return the noise control: seeded random signs on the ε sphere, float32 [S, S, 3] in pixel units."""
    signs = torch.randint(0, 2, (size, size, 3), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1
    return signs * (epsilon if norm == "linf" else epsilon / signs.norm())


def all_pairs(
    engine: Engine,
    store: RunStore,
    source: PictureSource,
    passes: Passes,
    *,
    shard: tuple[int, int] | None = None,
    most_quarantined: int | None = None,
    files: PictureFiles | None = None,
    progress: Progress = no_progress,
) -> tuple[float, int]:
    """Evaluate the blocks of a store that are not done, or those of a shard.

    Parameters
    ----------
    engine
        Open; its bank holds the store's rows but the clean one.
    passes
        How the pairs are cut into passes through the network.
    shard
        (i, n): every n-th block from the i-th.
    most_quarantined
        How many pictures of the store may be quarantined; None for any number.
    files
        The pictures; they are stamped, so that `forget_changed` sees which have changed since.

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
    rows, own, pending = len(store.occluders), _starts(store, shard), pending_starts(store, shard)
    done, every = (
        [min(store.block, len(store) - start) for start in starts] for starts in (set(own) - set(pending), own)
    )
    if done:
        progress.say(f"resuming: {sum(done)} of {sum(every)} pictures are done")
    started, pairs = time.perf_counter(), 0
    with progress.task("all pairs", sum(every) * rows, sum(done) * rows) as bar:
        # Taken before anything of a block is read, which happens while the block before it is scored.
        stamps = _stamps(store, files, pending)
        for start, parts in _parts(store, source, pending):
            scores = _blank_scores(min(store.block, len(store) - start) * rows)
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
            if quarantined and most_quarantined is not None:
                _refuse_more(store, most_quarantined)
    return time.perf_counter() - started, pairs


def _stamps(store: RunStore, files: PictureFiles | None, starts: Sequence[int]) -> dict[int, list[int]]:
    if files is None:
        return {}
    return {start: [files.stamp(path) for path in store.paths[start : start + store.block]] for start in starts}


def forget_changed(store: RunStore, files: PictureFiles, shard: tuple[int, int] | None) -> int:
    """Make the blocks whose pictures have changed since ones that are not done; return how many pictures have changed.

    Of a shard only its own blocks are looked at: another worker may see other times of the same files.
    """
    pending, changed = set(store.pending()), 0
    for start, stamps in _stamps(store, files, [s for s in _starts(store, shard) if s not in pending]).items():
        if found := store.changed(start, stamps):
            store.forget(start)
            changed += found
    return changed


def _refuse_more(store: RunStore, most: int) -> None:
    found = store.quarantined()
    if len(found) > most:
        raise InputError(
            f"{store.run.data_root}: {len(found)} of {len(store)} pictures are no pictures, the first: "
            f"{found[0].path} ({found[0].reason}); fix or remove them, or allow more with --max-quarantined"
        )


def _starts(store: RunStore, shard: tuple[int, int] | None) -> Sequence[int]:
    return shard_starts(len(store), store.block, *(shard or (0, 1)))


def pending_starts(store: RunStore, shard: tuple[int, int] | None) -> list[int]:
    """Return the first pictures of the blocks that are not done, of the whole run or of a shard."""
    own = _starts(store, shard)
    return [start for start in store.pending() if start in own]


def _blank_scores(count: int) -> Score:
    return Score(*(torch.full((count,), fill) for fill in (-1, -1, math.nan)))


def _parts(store: RunStore, source: PictureSource, pending: Sequence[int]) -> Iterator[tuple[int, Iterator[Block]]]:
    """Yield the blocks of the store, each as the parts that are read together: small, so that the first comes soon."""
    together = READ_TOGETHER if store.block % READ_TOGETHER == 0 else store.block
    ends = {start: min(start + store.block, len(store)) for start in pending}
    starts = [part for start in pending for part in range(start, ends[start], together)]
    with closing(source.blocks(store.paths, together, starts)) as parts:  # type: ignore[type-var]
        for start in pending:
            yield start, islice(parts, len(range(start, ends[start], together)))


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
