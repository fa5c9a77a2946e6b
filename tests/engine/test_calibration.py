"""Which pictures calibrate: training pictures, a seeded draw, and none that judge the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gfo.engine.calibration import CalibrationConfig
from gfo.engine.data.draw import draw_pictures
from gfo.engine.data.spec import DataSpec
from gfo.export.bank import OccluderBank
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError


def test_pictures_are_a_seeded_draw_of_training_pictures_evenly_over_classes(
    tiny_data: Path, tiny_classifier: FrozenClassifier, make_bank: Callable[..., OccluderBank]
) -> None:
    config = CalibrationConfig(DataSpec(tiny_data, "val"), 6, seed=1)
    calibration, drawn = config.read(tiny_classifier, make_bank())
    assert {file.parent.parent for file in drawn.files} == {tiny_data.resolve() / "train"}
    assert sorted(drawn.labels.tolist()) == [0, 0, 3, 3, 4, 4]
    assert (calibration.facts.pictures, calibration.facts.occluded) == (6, 3)
    assert calibration.facts.data == str(tiny_data / "train")
    again, _ = config.read(tiny_classifier, make_bank())
    assert torch.equal(again.images, calibration.images)


def test_pictures_that_calibrated_are_not_drawn_again(tiny_data: Path, tiny_classifier: FrozenClassifier) -> None:
    data, own = DataSpec(tiny_data, "train"), ("ant", "bee", "cat")
    first = draw_pictures(data, tiny_classifier, own, 6, 0)
    rest = draw_pictures(data, tiny_classifier, own, 18, 0, first.files)
    assert not first.files & rest.files
    assert len(first.files | rest.files) == 18
    with pytest.raises(InputError, match="all its pictures served the calibration"):
        draw_pictures(data, tiny_classifier, own, 6, 0, first.files | rest.files)


def test_validation_pictures_and_too_few_are_refused(own_data: Path) -> None:
    with pytest.raises(InputError, match=r"--calibration .*val: holds no train folder; ranges come from training"):
        CalibrationConfig(DataSpec(own_data / "val"))
    with pytest.raises(InputError, match="--calibration-pictures 1: expected at least 2"):
        CalibrationConfig(DataSpec(own_data), 1)
    (own_data / "train").rename(own_data / "moved")
    (own_data / "train").symlink_to(own_data / "val")
    with pytest.raises(InputError, match="its train and val are one folder"):
        CalibrationConfig(DataSpec(own_data))
