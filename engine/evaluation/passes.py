"""How a part's pairs are cut into passes through the network: how many, and in which order. Measured, and remembered.

The answers do not depend on it (beyond the last bits of a float), so a run may be resumed with another split.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from ...export.cache import cache_dir
from ...export.classifier import UNNAMED, FrozenClassifier
from ...export.files import atomic_path
from ..devices import fitting_memory
from ..engines.base import Engine
from ..machine import best_seconds, worker_count
from .store import READ_TOGETHER

# Without a measurement: so many on a GPU, or of small pictures; on a CPU about eight of 224², whose activations stay in
# its caches (up to 2.7 times as fast as 64 of them; docs/performance.md).
_DEFAULT_PAIRS, _DEFAULT_PIXELS = (8, 64), 8 * 224**2
# What is tried: pairs in a pass on a CPU, on a GPU.
_PAIRS = {"cpu": (4, 8, 16, 32, 64), "cuda": (32, 64, 128, 256)}
# A run that is shorter than this many passes of each is not worth a calibration.
_WORTH = 100


@dataclass(frozen=True)
class Split:
    """At most `pairs` in a pass: pictures × occluders in tiles as square as can be, or one picture after another.

    A square reads fewer bytes (kernels that take a grid load each picture and occluder once); one picture after another
    makes all passes of a part but the last equally long.
    """

    pairs: int
    square: bool

    def pieces(self, pictures: Tensor, rows: int) -> Iterator[Tensor]:
        """Places picture · rows + row of a part's pictures (int64 positions) under all rows, pass by pass, int64."""
        if not self.square:
            yield from (pictures[:, None] * rows + torch.arange(rows)).flatten().split(self.pairs)
            return
        across = math.ceil(rows / math.ceil(rows / math.isqrt(self.pairs)))
        for down in pictures.split(self.pairs // across):
            for columns in torch.arange(rows).split(across):
                yield (down[:, None] * rows + columns).flatten()

    def __str__(self) -> str:
        return f"{self.pairs} pairs in a pass{', square' if self.square else ''}"


def default_split(engine: Engine, pairs: int | None = None) -> Split:
    """What is right without a measurement: squares for kernels that take a grid, else one picture after another."""
    if pairs is None:
        pairs = engine.fixed_pairs or default_pairs(engine.torch_device.type, engine.subject.preprocessing.input_size)
    return Split(pairs, engine.takes_grids)


def default_pairs(device: str, size: int) -> int:
    """Pairs in a pass on `cpu` or `cuda`, a power of two, for pictures of size²."""
    least, most = _DEFAULT_PAIRS
    if device != "cpu":
        return most
    fitting = min(most, max(least, _DEFAULT_PIXELS // size**2))
    return 1 << (fitting.bit_length() - 1)


def choose_split(engine: Engine, rows: int, pictures: int, asked: int | None) -> tuple[Split, str]:
    """The split for a run over so many pictures and rows, and why in words.

    Parameters
    ----------
    engine
        Open, with its bank of `rows` − 1.
    asked
        Pairs that a person wants in a pass; then nothing is measured.
    """
    if asked is not None:
        return default_split(engine, asked), "asked for"
    path = _remembered_at(engine)
    known = None if path is None else _remembered(path)
    if known is not None:
        return known, "measured before"
    every = splits_to_try(engine)
    if pictures * rows < _WORTH * sum(split.pairs for split in every):
        return default_split(engine), "too few pairs for a measurement to be worth it"
    taken = measured_splits(engine, rows, every)
    best = min(taken, key=taken.__getitem__)
    if path is not None:
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(asdict(best)))
    return best, rates_in_words(taken)


def measured_splits(engine: Engine, rows: int, splits: list[Split]) -> dict[Split, float]:
    """Seconds a pair of one pass of each that fits the memory, on noise (`best_seconds`)."""
    size = engine.subject.preprocessing.input_size
    most = max(split.pairs for split in splits)
    generator = torch.Generator().manual_seed(0)
    count = min(most, READ_TOGETHER)  # as in a part: with few rows a pass may hold less than it could
    images = engine.place(torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator))
    labels = engine.place(torch.zeros(count, dtype=torch.int64))
    passes = {split: next(split.pieces(torch.arange(count), rows)) for split in splits}

    def scored(piece: Tensor) -> Callable[[], object]:
        return lambda: engine.score(images, piece // rows, piece % rows, labels)

    calls = {split: scored(piece) for split, piece in passes.items()}
    with fitting_memory(min(split.pairs for split in splits), engine.device):
        best = best_seconds(calls, engine.torch_device, turns=3, errors=(torch.OutOfMemoryError,))
    return {split: seconds / len(passes[split]) for split, seconds in best.items()}


def rates_in_words(taken: dict[Split, float]) -> str:
    """What `measured_splits` found: `8 42.1, 64 35.0 pairs/s`."""
    return ", ".join(f"{_short(split)} {1 / seconds:,.1f}" for split, seconds in taken.items()) + " pairs/s"


def splits_to_try(engine: Engine) -> list[Split]:
    """Those that may be fastest: squares only for kernels that gain by them, others would see passes of all lengths."""
    every = (engine.fixed_pairs,) if engine.fixed_pairs else _PAIRS[engine.torch_device.type]
    return [Split(pairs, square) for pairs in every for square in ((False, True) if engine.takes_grids else (False,))]


def _short(split: Split) -> str:
    return f"{split.pairs}{' square' if split.square else ''}"


def _remembered_at(engine: Engine) -> Path | None:
    """Where the best split of this machine, engine and network is noted; None for a network that has no name."""
    if isinstance(engine.subject, FrozenClassifier) and engine.subject.model == UNNAMED:
        return None
    facts = {
        "machine": [platform.node(), platform.machine(), engine.device, worker_count(), torch.get_num_threads()],
        "engine": [engine.name, engine.variant, engine.impl, engine.precision, engine.fixed_pairs],
        "model": [engine.subject.model, engine.subject.preprocessing.input_size, engine.subject.num_classes],
        "versions": [version("gfo"), torch.__version__],
    }
    return cache_dir() / "splits" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"


def _remembered(path: Path) -> Split | None:
    try:
        facts = json.loads(path.read_text())
        split = Split(int(facts["pairs"]), bool(facts["square"]))
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: measured again
        return None
    return split if split.pairs > 0 else None
