"""Which pictures are read, and how: `DataSpec`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from ...export.errors import InputError
from . import LOADERS
from .files import PictureFiles, is_text

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class DataSpec:
    """A data folder and how it is read, checked when it is made.

    Attributes
    ----------
    root
        Holds `train/<class>/*` or `val/<class>/*`, or WebDataset files `train/*.tar` or `val/*.tar`; only the split
        that is read must exist.
    split
        `train` or `val`. Training always reads `train`.
    classes
        Folder names (a list, or one string separated by commas), `all` or `random:N`. None means all classes for
        training and the classes of the bank for an evaluation.
    class_map
        JSON `{folder: model output}`; None takes `root/classes.json`, or else WordNet ids.
    loader
        A name in `LOADERS`, or `auto`; see `open_source`.
    decoded_cache
        Whether decoded pictures are kept in the cache folder and read from there.
    workers
        Number of decoding threads; None means one per core.

    Raises
    ------
    InputError
        An unknown split or loader, fewer than one worker, or a root that results cannot name.
    """

    root: Path
    split: Split = "val"
    classes: str | Sequence[str] | None = None
    class_map: Path | None = None
    loader: str = "auto"
    decoded_cache: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError(f"--split {self.split}: expected one of {', '.join(SPLITS)}")
        LOADERS.check(self.loader, "auto")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers {self.workers}: must be at least 1")
        if not is_text(str(self.root.resolve())):
            raise InputError(f"--data {self.root}: its path is not UTF-8, in which results name it; rename the folder")

    def resolved(self) -> DataSpec:
        """Return the same data for processes in other folders, without open files."""
        return replace(self, root=self.root.resolve(), class_map=self.class_map and self.class_map.resolve())

    @property
    def folder(self) -> Path:
        """Folder of the split."""
        return self.root / self.split

    @cached_property
    def files(self) -> PictureFiles:
        """Bytes below `root`, opened once, so that the headers of a tar file are parsed once."""
        return PictureFiles(self.root)
