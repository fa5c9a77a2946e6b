"""How the pairs of a part are cut into passes through the network: how many, and in which order.

The choice is measured and remembered. The answers do not depend on it (beyond the last bits of a float), so a run may
be resumed with other passes.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...export.cache import cache_dir, key
from ...export.classifier import UNNAMED
from ..devices import fitting_memory
from ..engines.base import Engine
from ..machine import best_seconds, remember, remembered, worker_count
from .store import READ_TOGETHER, block_size

# Pairs in a pass without a measurement: the larger number on a GPU, or for small pictures; on a CPU about eight pairs
# of 224², whose activations stay in its caches (up to 2.7 times as fast as 64 of them; see
# docs/explanation/performance.md).
_DEFAULT_PAIRS, _DEFAULT_PIXELS = (8, 64), 8 * 224**2
# Pairs in a pass that a calibration tries, by kind of device.
_PAIRS = {"cpu": (4, 8, 16, 32, 64), "cuda": (64, 128, 256, 512, 1024)}
# A run shorter than this number of passes of each kind is not worth a calibration.
_WORTH = 100


@dataclass(frozen=True)
class Passes:
    """At most `pairs` in a pass: pictures × occluders in tiles as square as possible, or picture after picture.

    A square reads fewer bytes (kernels that take a grid load each picture and occluder once); picture after picture
    makes all passes of a part but the last equally long.
    """

    pairs: int
    square: bool

    def pieces(self, pictures: Tensor, rows: int) -> Iterator[Tensor]:
        """Yield the pairs of each pass of a part, int64 [P]: places picture · rows + row.

        `pictures` are int64 positions in the part; each meets all rows.
        """
        if not len(pictures):
            return
        if not self.square:
            yield from (pictures[:, None] * rows + torch.arange(rows)).flatten().split(self.pairs)
            return
        across = math.ceil(rows / math.ceil(rows / math.isqrt(self.pairs)))
        for down in pictures.split(self.pairs // across):
            for columns in torch.arange(rows).split(across):
                yield (down[:, None] * rows + columns).flatten()

    def __str__(self) -> str:
        return f"{self.pairs} pairs in a pass{', square' if self.square else ''}"


def default_passes(engine: Engine, pairs: int | None = None) -> Passes:
    """Return the passes to use without a measurement: squares only for kernels that take a grid."""
    if pairs is None:
        pairs = engine.fixed_pairs or default_pairs(engine.torch_device.type, engine.subject.preprocessing.input_size)
    return Passes(pairs, engine.takes_grids)


def default_pairs(device: str, size: int) -> int:
    """Return the pairs in a pass on `cpu` or `cuda` for pictures of size², a power of two."""
    least, most = _DEFAULT_PAIRS
    if device != "cpu":
        return most
    fitting = min(most, max(least, _DEFAULT_PIXELS // size**2))
    return 1 << (fitting.bit_length() - 1)


def choose_passes(engine: Engine, rows: int, pictures: int, asked: int | None) -> tuple[Passes, str]:
    """Return the passes for a run over `pictures` × `rows` pairs, and the reason.

    Parameters
    ----------
    engine
        Open, with a bank of `rows` − 1 occluders.
    asked
        Pairs in a pass as the user wants them; nothing is then measured.
    """
    if asked is not None:
        return default_passes(engine, asked), "requested"
    note = _note(engine)
    known = remembered(note, _passes_of)
    if known is not None:
        return known, "measured before"
    candidates = passes_to_try(engine)
    if pictures * rows < _WORTH * sum(passes.pairs for passes in candidates):
        return default_passes(engine), "the run is too short to calibrate"
    taken = measured_passes(engine, rows, candidates)
    best = min(taken, key=taken.__getitem__)
    remember(note, asdict(best))
    return best, described_rates(taken)


def measured_passes(engine: Engine, rows: int, candidates: Sequence[Passes]) -> dict[Passes, float]:
    """Return the seconds per pair of each candidate that fits the memory, on noise (`best_seconds`)."""
    size = engine.subject.preprocessing.input_size
    most = max(passes.pairs for passes in candidates)
    generator = torch.Generator().manual_seed(0)
    # As in a part: with few rows a pass may hold less than it could.
    count = min(most, block_size(rows) if engine.runs_ahead else READ_TOGETHER)
    images = engine.place(torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator))
    labels = torch.zeros(count, dtype=torch.int64)
    first = {passes: next(passes.pieces(torch.arange(count), rows)) for passes in candidates}
    pairs = engine.listed([(piece // rows, piece % rows) for piece in first.values()], labels)
    calls = {passes: partial(engine.queue, images, listed) for passes, listed in zip(first, pairs, strict=True)}
    with fitting_memory(min(passes.pairs for passes in candidates), engine.device):
        best = best_seconds(calls, engine.torch_device, turns=3, errors=(torch.OutOfMemoryError,))
    return {passes: seconds / len(first[passes]) for passes, seconds in best.items()}


def described_rates(taken: Mapping[Passes, float]) -> str:
    """Describe the result of `measured_passes`, as `8 42.1, 64 35.0 pairs/s`."""
    rates = (f"{p.pairs}{' square' if p.square else ''} {1 / seconds:,.1f}" for p, seconds in taken.items())
    return f"{', '.join(rates)} pairs/s"


def passes_to_try(engine: Engine) -> list[Passes]:
    """Return the candidates for the fastest passes.

    Squares are tried only for kernels that gain by them; other engines would see passes of many lengths.
    """
    every = (engine.fixed_pairs,) if engine.fixed_pairs else _PAIRS[engine.torch_device.type]
    return [Passes(pairs, square) for pairs in every for square in ((False, True) if engine.takes_grids else (False,))]


def _note(engine: Engine) -> Path | None:
    """Return where the best passes of this machine, engine and network are kept; None for an unnamed network."""
    if engine.subject.model == UNNAMED:
        return None
    facts = {
        "machine": [platform.node(), platform.machine(), engine.device, worker_count(), torch.get_num_threads()],
        "engine": [engine.name, engine.variant, engine.impl, engine.precision, engine.fixed_pairs],
        "model": [engine.subject.model, engine.subject.preprocessing.input_size, engine.subject.num_classes],
        "versions": [version("gfo"), torch.__version__],
    }
    return cache_dir("passes") / f"{key(facts)}.json"


def _passes_of(facts: Any) -> Passes | None:
    passes = Passes(int(facts["pairs"]), bool(facts["square"]))
    return passes if passes.pairs > 0 else None
