"""What is left to do of some stores over the same pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...export.errors import InputError
from ...kernels.score import Score
from ..data.files import PictureFiles
from .store import RunStore
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


def to_do(store: RunStore, own: Sequence[int] | None = None, files: PictureFiles | None = None) -> ToDo:
    """Look through blocks of a run, all or those that start in `own`, and through their pictures.

    Another worker's blocks are left to it: it may see other times of the same files.
    """
    own = store.starts() if own is None else own
    pending = set(store.pending(own))
    changed: dict[int, int] = {}
    if files is not None:
        done = (start for start in own if start not in pending)
        changed = {start: store.changed(start, stamps(store, files, start)) for start in done}
    return ToDo(own, [start for start in own if start in pending or changed.get(start)], sum(changed.values()))


class Assignment(Protocol):
    """Pairs to evaluate: pictures in blocks, the occluders that they meet, and where the verdicts go."""

    @property
    def paths(self) -> Sequence[str]:
        """Paths of all pictures relative to the data root, in order."""
        ...

    @property
    def labels(self) -> NDArray[np.int32]:
        """Their class ids, [N]."""
        ...

    @property
    def block(self) -> int:
        """Pictures in a block; the last one may have fewer."""
        ...

    @property
    def pending(self) -> Mapping[int, Any]:
        """Blocks to evaluate, by their first pictures, and what their pictures meet."""
        ...

    def end(self, start: int) -> int:
        """Return where the block that starts here ends."""
        ...

    def occluders(self, which: Any) -> Tensor:
        """Return the engine's occluder indices of an entry of `pending`, int64 [R], or [N, R] for each picture."""
        ...

    def set_aside(self) -> Mapping[str, Quarantined]:
        """Return the quarantined pictures of blocks that are done, by path."""
        ...

    def refuse(self, found: Collection[Quarantined]) -> None:
        """Raise `InputError` if these quarantined pictures are too many."""
        ...

    def file(self, start: int) -> object:
        """Name what blocks that are written together have in common, None where a block is not to be written."""
        ...

    def write(self, start: int, scores: Score, quarantined: Mapping[int, str], stamps: Sequence[int] | None) -> None:
        """Write blocks that lie side by side and have one `file`: scores of [n] pictures × R."""
        ...


class Work:
    """What is left to do of some stores: an `Assignment`.

    A picture is clean once, whatever the number of stores. An entry of `pending` lists the stores that lack the block.

    Parameters
    ----------
    max_quarantined
        Share of a store's pictures that may be quarantined, 0 … 1.
    """

    def __init__(self, stores: Sequence[RunStore], todo: Sequence[ToDo], max_quarantined: float = 1.0) -> None:
        self._stores, self._todo, self._max_quarantined = stores, todo, max_quarantined
        self.paths: Sequence[str] = stores[0].paths
        self.labels: NDArray[np.int32] = stores[0].labels
        self.block: int = stores[0].block
        self._own = len(stores[0].occluders) - 1
        lacking = [set(one.pending) for one in todo]
        lists = ((start, [i for i, starts in enumerate(lacking) if start in starts]) for start in todo[0].own)
        self.pending = {start: which for start, which in lists if which}
        self.pairs = stores[0].count(todo[0].own) * (1 + self._own * len(stores))
        self.pairs_left = sum(
            stores[0].count([start]) * (1 + self._own * len(which)) for start, which in self.pending.items()
        )

    def end(self, start: int) -> int:
        """See `Assignment.end`."""
        return self._stores[0].end(start)

    def refuse(self, found: Collection[Quarantined]) -> None:
        """See `Assignment.refuse`."""
        refuse_quarantined(self._stores[0], found, self._max_quarantined)

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
        """Return the engine's occluder indices of some stores, int64 [R]: clean, then the rows of each."""
        rows = torch.arange(1, 1 + self._own)
        return torch.cat([torch.zeros(1, dtype=torch.int64), *(self._own * i + rows for i in which)])

    def set_aside(self) -> dict[str, Quarantined]:
        """See `Assignment.set_aside`."""
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


def stamps(store: RunStore, files: PictureFiles, start: int) -> list[int]:
    """Return the stamps of the pictures of a block; see `PictureFiles.stamp`."""
    return [files.stamp(path) for path in store.paths[start : store.end(start)]]
