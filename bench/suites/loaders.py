"""How fast pictures are read, and whether they are torchvision's: `gfo-bench --loader`.

Before a loader is timed, its pictures are compared with torchvision's Resize and CenterCrop on Pillow, on the files
that are given and on synthetic ones of awkward sizes. One more than a grey level off on the CPU has no speed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ...engine.data.loading import open_source
from ...engine.data.source import PictureSource
from ...engine.data.spec import DataSpec
from ...engine.machine import worker_count
from ...engine.progress import Progress, no_progress
from ...export.cache import cache_dir
from ...export.errors import EngineUnavailable, InputError
from ...export.preprocessing import Preprocessing
from ..measure import Row, measure, ratio, timer, with_rates

CACHE = "decoded-cache"
LOADERS = ("pillow", "dali", CACHE)
_TOGETHER = 32
_SYNTHETIC = 64
# Grey levels that a loader may be off: on the CPU, and where a GPU's decoder rounds its transforms in its own way.
_ALLOWED = {"cpu": 1, "cuda": 8}

# Sides: tiny, odd, extreme, one pixel off the short side or the crop, larger than 4,000.
_AWKWARD = ((1, 1), (2, 3), (17, 31), (5, 400), (400, 5), (1000, 10), (255, 256), (257, 256), (256, 257), (256, 256))
_AWKWARD += ((223, 224), (225, 224), (224, 225), (333, 501), (4097, 301), (301, 4097), (4003, 4001))


def picture_paths(folder: Path) -> list[str]:
    """Every file below a folder but hidden ones, relative to it, sorted.

    Raises
    ------
    InputError
        There is none.
    """
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    paths = sorted(path.relative_to(folder).as_posix() for path in found)
    if not paths:
        raise InputError(f"--images {folder}: holds no pictures; give a folder of pictures, or synthetic")
    return paths


@contextlib.contextmanager
def synthetic_pictures(count: int = _SYNTHETIC, seed: int = 0) -> Iterator[Path]:
    """A folder of JPEGs of ImageNet's usual 500 x 375 pixels and about 110 kB, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="gfo-bench-") as folder:
        rng = np.random.default_rng(seed)
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
            noisy = np.asarray(coarse.resize((500, 375))) + rng.normal(0, 12, (375, 500, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(Path(folder) / f"{i:04}.jpg", quality=90)
        yield Path(folder)


@contextlib.contextmanager
def awkward_pictures(seed: int = 0) -> Iterator[Path]:
    """A folder of JPEGs of awkward sizes, black and white noise: the hardest for a resize."""
    with tempfile.TemporaryDirectory(prefix="gfo-bench-") as folder:
        rng = np.random.default_rng(seed)
        for width, height in _AWKWARD:
            pixels = rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
            Image.fromarray(pixels).save(Path(folder) / f"{width}x{height}.jpg", quality=95, subsampling=0)
        yield Path(folder)


def torchvision_pictures(
    folder: Path, paths: Sequence[str], preprocessing: Preprocessing
) -> list[NDArray[np.uint8] | None]:
    """What torchvision's own loader and transforms give, uint8 [S, S, 3]; None for what Pillow cannot read."""
    from torchvision.datasets.folder import pil_loader
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    mode = InterpolationMode(preprocessing.interpolation)
    transform = Compose([Resize(preprocessing.resize, mode), CenterCrop(preprocessing.input_size)])
    found: list[NDArray[np.uint8] | None] = []
    for path in paths:
        try:
            found.append(np.asarray(transform(pil_loader(str(folder / path)))))
        except Exception:  # noqa: BLE001 (Pillow raises what it likes; the loader must set the same ones aside)
            found.append(None)
    return found


def differences(
    source: PictureSource, paths: Sequence[str], wanted: Sequence[NDArray[np.uint8] | None]
) -> tuple[int, float]:
    """Largest and mean distance in grey levels; 255 where one is set aside that the other reads."""
    largest, total, count = 0, 0.0, 0
    for block in source.blocks(paths, _TOGETHER):
        for i, image in enumerate(block.images.cpu()):
            reference = wanted[block.start + i]
            if (reference is None) != (i in block.quarantined):
                return 255, 255.0
            if reference is not None:
                apart = np.abs(image.numpy().astype(np.int16) - reference)
                largest, total, count = max(largest, int(apart.max())), total + float(apart.mean()), count + 1
    return largest, total / max(1, count)


def loader_rows(
    folder: Path,
    loaders: Sequence[str],
    preprocessing: Preprocessing,
    *,
    data: str,
    seconds: float,
    device: torch.device | str = "cpu",
    progress: Progress = no_progress,
) -> list[Row]:
    """Pictures a second of each loader, on one core and on all of them, in turns over the same files.

    Parameters
    ----------
    folder
        Every file below it is read.
    loaders
        Of `LOADERS`; Pillow, which the others are held against, is always among them.
    data
        What the pictures are, for the rows.
    seconds
        > 0, for each number of cores.

    Raises
    ------
    InputError
        A loader that there is not, or a folder without pictures.
    """
    unknown = next((name for name in loaders if name not in LOADERS), None)
    if unknown is not None:
        raise InputError(f"--loader {unknown}: expected some of {', '.join(LOADERS)}")
    names, device = list(dict.fromkeys(["pillow", *loaders])), torch.device(device)
    paths = picture_paths(folder)
    blank = Row(stage="loader", engine="", unit="pictures/s", pictures=len(paths), data=data, device=device.type)
    rows: list[Row] = []
    with progress.task("loaders", total=len(names) + 2) as bar, _own_cache():
        checked: dict[str, Row] = {}
        for name in names:
            bar.advance(0, f"{name}: are its pictures torchvision's?")
            checked[name] = _checked(replace(blank, engine=name), folder, paths, preprocessing, device)
            bar.advance(1)
        for cores in sorted({1, worker_count()}):
            bar.advance(0, f"{cores} cores")
            rows += _timed(checked, folder, paths, preprocessing, device, cores, seconds)
            bar.advance(1)
    return rows


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    """Decoded pictures of a benchmark are kept for as long as it runs, on the disk that the cache is on."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    before = os.environ.get("GFO_CACHE")
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=cache_dir()) as folder:
        os.environ["GFO_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["GFO_CACHE"]
            else:
                os.environ["GFO_CACHE"] = before


def _open(name: str, folder: Path, preprocessing: Preprocessing, workers: int, device: torch.device) -> PictureSource:
    cached = name == CACHE
    loader = "pillow" if cached else name
    data = DataSpec(folder, loader=loader, decoded_cache=cached, workers=workers)
    return open_source(data, preprocessing, device)


def _checked(row: Row, folder: Path, paths: Sequence[str], preprocessing: Preprocessing, device: torch.device) -> Row:
    """The row with its distances from torchvision, or why it cannot run here."""
    found = []
    with awkward_pictures() as awkward:
        for where, names in ((folder, paths), (awkward, picture_paths(awkward))):
            try:
                source = _open(row.engine, where, preprocessing, worker_count(), device)
            except EngineUnavailable as error:
                return replace(row, available=False, reason=str(error))
            found.append(differences(source, names, torchvision_pictures(where, names, preprocessing)))
    largest, mean = max(most for most, _ in found), found[0][1]
    allowed = _ALLOWED[device.type if row.engine == "dali" else "cpu"]
    passed = largest <= allowed
    reason = "" if passed else f"differs from torchvision by up to {largest} grey levels, {allowed} is allowed"
    return replace(row, available=passed, passed=passed, reason=reason, max_difference=largest, mean_difference=mean)


def _timed(
    checked: dict[str, Row],
    folder: Path,
    paths: Sequence[str],
    preprocessing: Preprocessing,
    device: torch.device,
    cores: int,
    seconds: float,
) -> list[Row]:
    """A row for each loader on so many cores."""
    size = preprocessing.input_size
    calls = {
        name: _reading(_open(name, folder, preprocessing, cores, device), paths, size, device)
        for name, row in checked.items()
        if row.available
    }
    with _cores(cores):
        times = measure(calls, seconds=seconds, timer=timer(device.type))
    rates = {name: len(paths) / taken for name, taken in times.items()}
    rows = {name: replace(row, cores=cores) for name, row in checked.items()}
    for name in calls:
        against = None if name == "pillow" or "pillow" not in rates else ratio(rates[name], "pillow", rates["pillow"])
        rows[name] = with_rates(rows[name], rates[name], against)
    return list(rows.values())


def _reading(source: PictureSource, paths: Sequence[str], size: int, device: torch.device) -> Callable[[], Any]:
    """Read every picture once, into a buffer: pages of a map that are not touched are not read."""
    buffer = torch.empty(_TOGETHER, size, size, 3, dtype=torch.uint8, device=device)

    def read() -> None:
        for block in source.blocks(paths, _TOGETHER):
            buffer[: len(block.images)].copy_(block.images)

    return read


@contextlib.contextmanager
def _cores(count: int) -> Iterator[None]:
    """Keep this thread, those that it starts and PyTorch's, which run already, to so many cores, where it can be."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(before)[:count])
    torch.set_num_threads(min(count, threads))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)
