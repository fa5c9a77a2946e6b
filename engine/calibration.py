"""The pictures on which an int8 network is calibrated: training pictures, drawn by seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..export.bank import OccluderBank
from ..export.calibration import Calibration
from ..export.classifier import FrozenClassifier
from ..export.errors import InputError
from .data.draw import DrawnPictures, draw_pictures
from .data.spec import DataSpec

PICTURES = 300
"""Where nobody asks for another number."""


@dataclass(frozen=True)
class CalibrationConfig:
    """What an int8 network is calibrated on.

    Attributes
    ----------
    data
        Its training pictures, `root/train`, are read; `split` and `classes` are not.
    pictures
        Number of pictures, every other one under an occluder.
    seed
        Seed of pictures and occluders.

    Raises
    ------
    InputError
        Fewer than two pictures, or a folder without training pictures of its own.
    """

    data: DataSpec
    pictures: int = PICTURES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pictures < 2:
            raise InputError(
                f"--calibration-pictures {self.pictures}: expected at least 2, a clean and an occluded one"
            )
        train, val = self.data.root / "train", self.data.root / "val"
        if not train.is_dir():
            raise InputError(
                f"--calibration {self.data.root}: holds no train folder; ranges come from training pictures, as "
                "validation pictures are for judging the result: name the folder that holds train/<class>/*"
            )
        if val.is_dir() and train.resolve() == val.resolve():
            raise InputError(
                f"--calibration {self.data.root}: its train and val are one folder, {train.resolve()}; name training "
                "pictures that are not for validation"
            )

    def read(self, classifier: FrozenClassifier, bank: OccluderBank) -> tuple[Calibration, DrawnPictures]:
        """Draw and read the pictures, the same number of each class; return what was drawn, too."""
        data = replace(self.data, split="train")
        drawn = draw_pictures(data, classifier, bank.header.folders, self.pictures, self.seed)
        images, folder = drawn.images[: self.pictures], str(data.folder)
        return Calibration.draw(images, bank.occluders, folder, self.seed, bank.hash), drawn
