"""Figure S1 as in the source: magnified occluders, clean pictures that the model gets right, the same ones occluded.

Only what reads a bank or draws with it imports PyTorch, which takes more memory than the rest of a report: a report is
also made of a RUN whose bank is elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...export.errors import EngineUnavailable, InputError
from ...export.options import zeros_asked
from ..data.files import PictureFiles
from ..evaluation.store import RunStore
from ..evaluation.summary import Summary
from .lettering import Lettering
from .rows import short_hash
from .runs import RunFolder

if TYPE_CHECKING:
    import torch

_RIGHT, _WRONG = "#1b6e3c", "#b3261e"
_MOST_TILES: Final = 12  # pictures side by side; further classes are drawn below


@dataclass(frozen=True)
class Picture:
    """A picture before and after occlusion, uint8 [S, S, 3], and the model's answer to each by name."""

    clean: NDArray[np.uint8]
    occluded: NDArray[np.uint8]
    clean_name: str
    occluded_name: str
    occluded_right: bool


@dataclass(frozen=True)
class Block:
    """One class of Figure S1: its occluder, uint8 [S, S, 3], magnified by a factor, and its pictures."""

    name: str
    occluder: NDArray[np.uint8]
    factor: float
    pictures: tuple[Picture, ...]

    @property
    def names(self) -> Iterator[str]:
        """Every name that is shown."""
        yield self.name
        for picture in self.pictures:
            yield from (picture.clean_name, picture.occluded_name)


@dataclass(frozen=True)
class _Material:
    """What a RUN has read and answered: its store, and its picture files, opened once."""

    run: RunFolder
    store: RunStore
    files: PictureFiles


class Moved(Exception):
    """Raised where the bank or a picture is no longer what the RUN read; the text says which."""


def figure_blocks(run: RunFolder, classes: int, pictures: int) -> list[Block]:
    """Choose what Figure S1 shows: at most `classes` classes with at most `pictures` pictures, right when clean.

    The classes are evenly spaced over those of the bank that have such pictures, and the pictures are the first ones:
    chosen by place, never by how well the occluder does. Predictions are read back, no network runs.

    Raises
    ------
    Moved
        The bank or a picture has changed, or no clean picture is right.
    InputError
        The predictions are missing or damaged.
    """
    if run.summary.sample is not None:
        raise Moved(f"{run.directory} has answers to a sample of the pairs; evaluate without --until and --claim")
    right = {entry.class_id for entry in run.summary.classes if entry.clean}
    eligible = [row for row, class_id in enumerate(run.summary.class_ids) if class_id in right]
    if not eligible:
        raise Moved(f"the model gets no clean picture of {run.directory} right")
    places = np.linspace(0, len(eligible) - 1, min(classes, len(eligible))).round().astype(int)
    rows = [eligible[place] for place in places]
    occluders = _occluders(run, rows)
    material = _Material(run, RunStore.open(run.directory), PictureFiles(Path(run.summary.data_root)))
    return [_block(material, row, occluders[row] * run.summary.strength, pictures) for row in rows]


def _occluders(run: RunFolder, rows: Sequence[int]) -> Mapping[int, torch.Tensor]:
    """Return some rows of the RUN's bank, from its file or from inside its artefact."""
    summary = run.summary
    where = Path(summary.bank)
    if summary.artefact is not None and not where.exists():
        raise Moved(f"{where} is not there any more")
    if zeros_asked(where) is None and not where.exists():
        raise Moved(f"the occluders cannot be read ({where}: bank not found; create one with gfo-train)")
    try:
        found, occluders = _read(where, summary, rows)
    except (InputError, EngineUnavailable, OSError) as error:
        raise Moved(f"the occluders cannot be read ({error})") from error
    if found != summary.bank_hash:
        raise Moved(
            f"{where} is another bank by now: expected {short_hash(summary.bank_hash)}, got {short_hash(found)}"
        )
    return occluders


def _read(where: Path, summary: Summary, rows: Sequence[int]) -> tuple[str, Mapping[int, torch.Tensor]]:
    """Return the bank's hash, and some of its occluders by their rows."""
    if where.is_file():
        from ...export.bank_rows import read_rows

        return read_rows(where, rows)
    from ...export.artefact import Artefact
    from ...export.bank import OccluderBank

    bank = Artefact.load(where).read_bank() if where.is_dir() else OccluderBank.of(where, summary)
    return bank.hash, {row: bank.occluders[row].clone() for row in rows if row < len(bank.occluders)}


def _block(material: _Material, row: int, occluder: torch.Tensor, pictures: int) -> Block:
    run = material.run
    class_id = run.summary.class_ids[row]
    found: list[Picture] = []
    for place, answers in islice(_right(material.store, class_id, row), pictures):
        clean, names = _load(material, place), [run.summary.name_of(answer) for answer in answers]
        found.append(Picture(clean, occluded(clean, occluder), *names, occluded_right=answers[1] == class_id))
    peak = float(occluder.abs().max())
    return Block(run.name(class_id), magnified(occluder), 127.5 / peak if peak else 1.0, tuple(found))


def _right(store: RunStore, class_id: int, row: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield the place of each picture of a class that is right when clean, and its answers, clean and occluded."""
    rows = np.flatnonzero(store.labels == class_id)  # pictures of one class lie together
    for start in range(int(rows[0]), int(rows[-1]) + 1, store.block):
        predictions = store.predictions(start, min(start + store.block, int(rows[-1]) + 1))
        # Column 0 is clean, row j of the bank column j + 1.
        for i, (clean, under) in enumerate(predictions[:, [0, row + 1]].tolist()):
            if clean == class_id and under >= 0:
                yield start + i, (clean, under)


def _load(material: _Material, index: int) -> NDArray[np.uint8]:
    """Read a picture as the RUN did, unless it has changed since."""
    from ..data.pillow import decode

    files, path = material.files, material.store.paths[index]
    if material.store.changed(index, [files.stamp(path)]):
        raise Moved(f"{files.root / path} has changed since it was evaluated; run the same gfo-eval again")
    try:
        content = files.read(path)
    except OSError as error:
        raise Moved(f"{files.root / path} cannot be read any more ({type(error).__name__})") from error
    picture = decode(files, path, content, material.run.summary.preprocessing)
    if isinstance(picture, str):
        raise Moved(f"{files.root / path} is no picture any more ({picture})")
    return picture


def magnified(occluder: torch.Tensor) -> NDArray[np.uint8]:
    """Stretch an occluder [S, S, 3] to the natural image range: d / max|d| from −1 … 1 to 0 … 255, zero is grey."""
    import torch

    peak = occluder.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return ((occluder / peak + 1) * 127.5).round().to(torch.uint8).numpy()


def occluded(picture: NDArray[np.uint8], occluder: torch.Tensor) -> NDArray[np.uint8]:
    """Compute clamp(x + d, 0, 255), rounded for display: uint8 [S, S, 3]."""
    import torch

    from ...kernels.occlude import Normalisation, occlude
    from ...kernels.pairs import Pairs

    first = torch.zeros(1, dtype=torch.int64)
    images = torch.from_numpy(picture.copy())[None]
    out = occlude(Pairs(images, occluder[None], first, first + 1), Normalisation((1, 1, 1), (0, 0, 0)))
    return out[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def figure_s1(blocks: Sequence[Block], pictures: int) -> Figure:
    """Draw the blocks side by side, each with its occluder above a row of clean and a row of occluded pictures."""
    across = min(len(blocks), max(1, _MOST_TILES // pictures))
    down = -(-len(blocks) // across)
    figure = Figure(figsize=(1.22 * pictures * across + 0.4, 4.55 * down))
    panels = np.ravel(figure.subfigures(down, across, wspace=0.04, hspace=0.04, squeeze=False))
    letters = Lettering.of(name for block in blocks for name in block.names)
    for panel, block in zip(panels, blocks, strict=False):
        grid = panel.add_gridspec(3, pictures, left=0.02, right=0.98, top=0.9, bottom=0.01, wspace=0.06, hspace=0.2)
        panel.suptitle(letters.short(block.name, 30), fontsize=12, y=0.985, **letters.style)
        _tile(panel.add_subplot(grid[0, :]), block.occluder, f"occluder × {block.factor:.3g}", "#444444", letters)
        for column, picture in enumerate(block.pictures):
            colour = _RIGHT if picture.occluded_right else _WRONG
            _tile(panel.add_subplot(grid[1, column]), picture.clean, picture.clean_name, _RIGHT, letters)
            _tile(panel.add_subplot(grid[2, column]), picture.occluded, picture.occluded_name, colour, letters)
    return figure


def _tile(axis: Axes, picture: NDArray[np.uint8], title: str, colour: str, letters: Lettering) -> None:
    axis.imshow(picture)
    axis.set_axis_off()
    axis.set_title(letters.short(title, 18), fontsize=8, color=colour, pad=2.5, **letters.style)
