"""Which pictures an evaluation reads: those of the bank's classes or of others, by the bank's use of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ...export.bank import OccluderBank, picture_key
from ...export.bank_header import EmbeddedBank
from ...export.errors import InputError
from ..data.folders import ClassFolder, list_classes
from ..data.spec import DataSpec
from ..data.webdataset import tar_files
from .config import EvaluationConfig
from .store import FIT_FITTED, FIT_HELD_OUT, FIT_PRESERVED, FIT_UNSEEN

Picture: TypeAlias = tuple[str, int, int]
"""Path relative to the data root, class id, and the bank's use of it, one of the `FIT_…`."""

_WANTED = {
    "fitted": FIT_FITTED,
    "held-out": FIT_HELD_OUT,
    "preserved": FIT_PRESERVED,
    "unseen": FIT_UNSEEN,
}


def bank_folders(
    bank: OccluderBank | EmbeddedBank, where: Path, data: DataSpec, model_outputs: int, seed: int
) -> list[ClassFolder]:
    """List the classes to evaluate: those of `data`, or the bank's own.

    Raises
    ------
    InputError
        The data lacks a class of the bank, or maps it to another output than training did; see `list_classes`.
    """
    own = list(bank.header.folders)
    missing = [folder for folder in own if not (data.folder / folder).is_dir()]
    if data.classes is None and missing and data.folder.is_dir() and not tar_files(data.folder):
        raise InputError(
            f"{where}: its class {missing[0]} has no folder in {data.folder}; evaluate on data with the bank's "
            "classes, or choose others with --classes"
        )
    folders = list_classes(data, own if data.classes is None else data.classes, model_outputs, seed)
    trained_as = dict(zip(own, bank.class_ids, strict=True))
    for folder in folders:
        if trained_as.get(folder.folder, folder.class_id) != folder.class_id:
            raise InputError(
                f"{where}: was trained with {folder.folder} as class {trained_as[folder.folder]}, here it is "
                f"{folder.class_id}; use the same class map"
            )
    return folders


def select_pictures(
    folders: Sequence[ClassFolder], bank: OccluderBank | EmbeddedBank, config: EvaluationConfig
) -> list[Picture]:
    """Return the pictures to evaluate, class by class; raise `InputError` for a class without any.

    A picture that was used for several things counts as fitted before held out, and as held out before preserved.
    """
    uses = ((bank.preserved, FIT_PRESERVED), (bank.held_out, FIT_HELD_OUT), (bank.fitted, FIT_FITTED))
    used = {key: fit for keys, fit in uses for key in keys.tolist()}
    wanted = _WANTED.get(config.pictures)
    chosen: list[Picture] = []
    for folder in folders:
        fits = [used.get(picture_key(path), FIT_UNSEEN) for path in folder.paths]
        kept = [
            (path, folder.class_id, fit)
            for path, fit in zip(folder.paths, fits, strict=True)
            if wanted is None or fit == wanted
        ]
        if not kept:
            raise InputError(f"--pictures {config.pictures}: class folder of {folder.paths[0]} has none; choose others")
        if config.per_class is not None and len(kept) > config.per_class:
            order = np.random.default_rng([config.seed, folder.class_id]).permutation(len(kept))[: config.per_class]
            kept = [kept[i] for i in sorted(order)]
        chosen += kept
    return chosen
