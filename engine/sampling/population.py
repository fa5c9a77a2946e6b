"""What the clean answers of a run say of its pictures: the population from which pairs are drawn."""

from __future__ import annotations

from typing import Final

import numpy as np

from ...export.errors import InputError
from ..evaluation.store import RunStore
from .strata import Population

SAMPLE: Final = "sample"
"""Folder in a RUN that holds the answers of a sampled evaluation."""


def population_of(store: RunStore) -> Population:
    """Read the readable pictures of the bank's classes from a store of clean answers.

    Raises
    ------
    InputError
        A block is damaged, or there is no such picture.
    """
    rows = {class_id: row for row, class_id in enumerate(store.run.class_ids)}
    row_of = np.array([rows.get(label, -1) for label in store.labels.tolist()], dtype=np.int64)
    pictures = np.flatnonzero((row_of >= 0) & store.readable())
    if not len(pictures):
        raise InputError(f"{store.run.data_root}: holds no readable picture of the bank's classes; check --data")
    right, margin = np.zeros(len(store), dtype=bool), np.zeros(len(store))
    for start in range(0, len(store), store.shard):  # a full run has a column for each occluder
        part = slice(start, min(start + store.shard, len(store)))
        right[part] = store.predictions(part.start, part.stop)[:, 0] == store.labels[part]
        margin[part] = store.margins(part.start, part.stop)[:, 0]
    return Population(pictures, row_of[pictures], right[pictures], margin[pictures], len(rows))
