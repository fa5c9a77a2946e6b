"""What is left to do of some stores over the same pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
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


def stamps(store: RunStore, files: PictureFiles, start: int) -> list[int]:
    """Return the stamps of the pictures of a block; see `PictureFiles.stamp`."""
    return [files.stamp(path) for path in store.paths[start : store.end(start)]]
