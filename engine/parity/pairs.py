"""Pairs for a comparison of two engines: clean, matched and unmatched ones, drawn in a seeded order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...export.errors import InputError

CLEAN, MATCHED, UNMATCHED = 0, 1, 2
KINDS = ("clean", "matched", "unmatched")

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ParityPairs:
    """P different pairs, each of one kind."""

    image_index: Tensor
    """int64 [P], index of the picture."""
    occluder_index: Tensor
    """int64 [P], 0 = clean, j = row j − 1 of the bank."""
    kind: Tensor
    """int8 [P]: `CLEAN`, `MATCHED` or `UNMATCHED`."""

    def __len__(self) -> int:
        return len(self.kind)


def parity_pairs(labels: Tensor | None, class_ids: Sequence[int], pictures: int, pairs: int, seed: int) -> ParityPairs:
    """Draw pairs in a seeded order, a third of each kind as far as there are enough.

    A matched pair is under the row of the picture's own class, an unmatched one under another row. A kind that runs out
    (pictures without a row of their class, a bank of one row) leaves its share to the others: unmatched pairs continue
    with further rows. No pair occurs twice, so there are fewer than `pairs` once all are used. The kinds share their
    pictures as far as they can.

    Parameters
    ----------
    labels
        int64 [pictures], class ids. With None no pair is matched, and any row is unmatched.
    class_ids
        Class ids of the K ≥ 1 rows, all different.
    pictures
        Number of pictures, ≥ 1.
    pairs
        Number of pairs to draw, ≥ 3.

    Raises
    ------
    InputError
        There is no picture, or fewer than three pairs are asked for: nothing would be compared.
    ValueError
        The number of labels is not the number of pictures.
    """
    if pictures < 1 or pairs < len(KINDS):
        raise InputError(
            f"{pairs} pairs of {pictures} pictures: expected at least {len(KINDS)} pairs of at least 1 picture"
        )
    if labels is not None and labels.shape != (pictures,):
        raise ValueError(f"labels {tuple(labels.shape)}: expected one for each of {pictures} pictures")
    rng = np.random.default_rng(seed)
    order = rng.permutation(pictures)
    rows = {class_id: row for row, class_id in enumerate(class_ids)}
    own = np.array([rows.get(i, -1) for i in ([-1] * pictures if labels is None else labels.tolist())])
    with_row = order[own[order] >= 0]
    counts = _shares(pairs, [pictures, len(with_row), int((len(class_ids) - (own >= 0)).sum())])
    clean, matched = order[: counts[CLEAN]], with_row[: counts[MATCHED]]
    image, row = _unmatched(order, own, len(class_ids), counts[UNMATCHED], rng)
    images = np.concatenate([clean, matched, image])
    occluders = np.concatenate([np.zeros_like(clean), own[matched] + 1, row + 1])
    shuffled = rng.permutation(len(images))
    kind = np.repeat(np.array([CLEAN, MATCHED, UNMATCHED], dtype=np.int8), counts)
    return ParityPairs(*(torch.from_numpy(part[shuffled]) for part in (images, occluders, kind)))


def _shares(pairs: int, available: Sequence[int]) -> list[int]:
    """Divide the pairs evenly over the kinds, and give to the others what one lacks; the scarcest is served first."""
    counts = [0] * len(available)
    for served, kind in enumerate(sorted(range(len(available)), key=lambda kind: available[kind])):
        counts[kind] = min(available[kind], -(-pairs // (len(available) - served)))
        pairs -= counts[kind]
    return counts


def _unmatched(order: Ints, own: Ints, rows: int, count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Draw unmatched pairs: every picture with one row, then every picture with another, and so on; [count] each.

    Each picture walks once around one seeded circle of rows, from a seeded start, past its own row.
    """
    circle = rng.permutation(rows)
    others = rows - (own >= 0)
    before_first = np.where(own >= 0, np.argsort(circle)[own] + 1, 0)
    start = rng.integers(0, np.maximum(others, 1))
    images, chosen, found, step = [order[:0]], [order[:0]], 0, 0
    while found < count:
        walking = order[others[order] > step][: count - found]
        images.append(walking)
        chosen.append(circle[(before_first[walking] + (start[walking] + step) % others[walking]) % rows])
        found, step = found + len(walking), step + 1
    return np.concatenate(images), np.concatenate(chosen)
