"""How fast pictures are read, and whether they are torchvision's.

Before a loader is timed, its pictures are compared with torchvision's Resize and CenterCrop on Pillow, on the given
files and on synthetic ones of awkward sizes. One that is more than a grey level off on the CPU has no speed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ..engine.data.source import PictureSource
from ..engine.machine import worker_count
from ..engine.progress import Progress, no_progress
from ..export.cache import cache_dir
from ..export.errors import EngineUnavailable
from ..export.files import ScratchFolder
from ..export.preprocessing import Preprocessing
from .measure import measure, ratio, timer, with_rates
from .pictures import awkward_pictures, open_pictures, picture_paths
from .rows import BenchRow, LoaderFacts

LoaderRow: TypeAlias = BenchRow[LoaderFacts]

_TOGETHER = 32
# Grey levels that pictures may be off: from a CPU, and from a GPU, whose decoder rounds its transforms in its own way.
_ALLOWED = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True)
class Reading:
    """What is read, and where it is used.

    Attributes
    ----------
    folder
        Every file below it is read.
    data
        Name of the pictures, for the rows.
    """

    folder: Path
    preprocessing: Preprocessing
    data: str
    device: torch.device

    @cached_property
    def paths(self) -> list[str]:
        """Paths of the pictures, relative to the folder."""
        return picture_paths(self.folder)

    def opened(self, loader: str, workers: int) -> PictureSource:
        """Open the loader of that name."""
        return open_pictures(loader, self.folder, self.preprocessing, workers, self.device)


def torchvision_pictures(reading: Reading) -> list[NDArray[np.uint8] | None]:
    """Return what torchvision's own loader and transforms make of the pictures.

    Returns
    -------
    list
        uint8 [S, S, 3] for each path; None for what Pillow cannot read.
    """
    from torchvision.datasets.folder import pil_loader
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    preprocessing = reading.preprocessing
    mode = InterpolationMode(preprocessing.interpolation)
    transform = Compose([Resize(preprocessing.resize, mode), CenterCrop(preprocessing.input_size)])
    found: list[NDArray[np.uint8] | None] = []
    for path in reading.paths:
        try:
            found.append(np.asarray(transform(pil_loader(str(reading.folder / path)))))
        except Exception:  # noqa: BLE001 (Pillow raises any kind; the loader must set the same ones aside)
            found.append(None)
    return found


class Difference(NamedTuple):
    """The largest and the mean distance of pictures in grey levels, and the kind of device that they came from."""

    largest: int
    mean: float
    device: str


def difference(source: PictureSource, paths: Sequence[str], wanted: Sequence[NDArray[np.uint8] | None]) -> Difference:
    """Compare pictures with the wanted ones; the difference is 255 where only one of the two reads a picture."""
    largest, total, count, device = 0, 0.0, 0, "cpu"
    for block in source.blocks(paths, _TOGETHER):
        device = block.images.device.type
        for i, image in enumerate(block.images.cpu()):
            reference = wanted[block.start + i]
            if (reference is None) != (i in block.quarantined):
                return Difference(255, 255.0, device)
            if reference is not None:
                apart = np.abs(image.numpy().astype(np.int16) - reference)
                largest, total, count = max(largest, int(apart.max())), total + float(apart.mean()), count + 1
    return Difference(largest, total / max(1, count), device)


def loader_rows(
    reading: Reading, loaders: Sequence[str], seconds: float, progress: Progress = no_progress
) -> list[LoaderRow]:
    """Measure pictures a second of each loader, on one core and on all of them, in turns over the same files.

    Parameters
    ----------
    loaders
        Names; Pillow, which the others are compared with, is always among them.
    seconds
        > 0, for each number of cores.

    Raises
    ------
    InputError
        The folder holds no pictures.
    """
    names = list(dict.fromkeys(["pillow", *loaders]))
    rows: list[LoaderRow] = []
    with progress.task("loaders", total=len(names) + 2) as bar, _own_cache():
        checked: dict[str, LoaderRow] = {}
        for name in names:
            bar.advance(0, f"{name}: are its pictures torchvision's?")
            checked[name] = _checked(name, reading)
            bar.advance(1)
        for cores in sorted({1, worker_count()}):
            bar.advance(0, f"{cores} cores")
            rows += _timed(checked, reading, cores, seconds)
            bar.advance(1)
    return rows


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    """Keep a benchmark's decoded pictures for as long as it runs, on the disk that the cache is on."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    before = os.environ.get("GFO_CACHE")
    with ScratchFolder(cache_dir()) as folder:
        os.environ["GFO_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["GFO_CACHE"]
            else:
                os.environ["GFO_CACHE"] = before


def _checked(name: str, reading: Reading) -> LoaderRow:
    """Return the row of a loader with its distances from torchvision, or why it cannot run here."""
    row: LoaderRow = BenchRow(
        stage="loader",
        engine=name,
        unit="pictures/s",
        pictures=len(reading.paths),
        data=reading.data,
        device=reading.device.type,
        facts=LoaderFacts(),
    )
    found: list[Difference] = []
    with awkward_pictures() as awkward:
        for one in (reading, replace(reading, folder=awkward)):
            try:
                source = one.opened(name, worker_count())
            except EngineUnavailable as error:
                return replace(row, available=False, reason=str(error))
            found.append(difference(source, one.paths, torchvision_pictures(one)))
    largest, mean = max(one.largest for one in found), found[0].mean
    allowed = _ALLOWED[found[0].device]
    passed = largest <= allowed
    reason = "" if passed else f"differs from torchvision by up to {largest} grey levels, {allowed} is allowed"
    facts = LoaderFacts(max_difference=largest, mean_difference=mean)
    return replace(row, available=passed, passed=passed, reason=reason, facts=facts)


def _timed(checked: dict[str, LoaderRow], reading: Reading, cores: int, seconds: float) -> list[LoaderRow]:
    """Return a row for each loader on `cores` cores."""
    calls = {name: _read_all(reading.opened(name, cores), reading) for name, row in checked.items() if row.available}
    with _limited_to(cores):
        times = measure(calls, seconds=seconds, timer=timer(reading.device.type))
    rates = {name: len(reading.paths) / taken for name, taken in times.items()}
    rows = {name: replace(row, facts=replace(row.facts, cores=cores)) for name, row in checked.items()}
    for name in calls:
        against = None if name == "pillow" or "pillow" not in rates else ratio(rates[name], "pillow", rates["pillow"])
        rows[name] = with_rates(rows[name], rates[name], against)
    return list(rows.values())


def _read_all(source: PictureSource, reading: Reading) -> Callable[[], None]:
    """Return a call that reads every picture once, into a buffer: pages of a map that are not touched are not read."""
    size = reading.preprocessing.input_size
    buffer = torch.empty(_TOGETHER, size, size, 3, dtype=torch.uint8, device=reading.device)

    def read() -> None:
        for block in source.blocks(reading.paths, _TOGETHER):
            buffer[: len(block.images)].copy_(block.images)

    return read


@contextlib.contextmanager
def _limited_to(cores: int) -> Iterator[None]:
    """Keep this thread, those that it starts and PyTorch's, which run already, to `cores` cores, where possible."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(before)[:cores])
    torch.set_num_threads(min(cores, threads))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)
