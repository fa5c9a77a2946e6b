"""Evaluates pairs as they are drawn, until a drawing has enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...kernels.score import Score
from ..data.source import PictureSource
from ..engines.base import Engine
from ..evaluation.all_pairs import run_assignment
from ..evaluation.passes import Passes
from ..evaluation.store import RunStore
from ..progress import Progress, no_progress
from .drawing import Drawing, Pairs
from .drawn import DrawnPairs, OnlyLines, pictures_of
from .store import PairStore
from .strata import StratumName

_BAR: Final = 100.0  # per cent


def draw(
    engine: Engine,
    source: PictureSource,
    store: RunStore,
    drawing: Drawing[Any],
    kept: PairStore,
    passes: Passes,
    progress: Progress,
) -> int:
    """Draw pairs until the drawing has enough.

    Parameters
    ----------
    engine
        Open, with its bank.
    store
        The pictures that the places in the drawing's population are of.
    kept
        Answers of an earlier call, and those of this one.

    Returns
    -------
    int
        How many pairs were evaluated, and not read back.
    """
    evaluated, reached = 0, 0.0
    with progress.task("drawn pairs", _BAR) as bar:
        while looks := drawing.next_look():
            answers: dict[StratumName, NDArray[np.int32]] = {}
            for name, (picture, row) in looks.items():
                found = kept.answers(name, drawing.drawn(name), drawing.population.pictures[picture], row)
                if found is not None:
                    answers[name] = found
            missing: dict[StratumName, Pairs] = {name: pairs for name, pairs in looks.items() if name not in answers}
            if missing:
                answers |= _evaluated(engine, source, store, drawing, kept, missing, passes, progress)
                evaluated += sum(len(answers[name]) for name in missing)
            for name, (picture, row) in looks.items():
                labels = store.labels[drawing.population.pictures[picture]]
                drawing.add(name, picture, row, (answers[name] == labels).astype(float))
            now = max(reached, drawing.reached())
            bar.advance(_BAR * (now - reached), str(drawing))
            reached = now
            progress.event("look", **{name: vars(estimate) for name, estimate in drawing.estimates.items()})
    return evaluated


def _evaluated(
    engine: Engine,
    source: PictureSource,
    store: RunStore,
    drawing: Drawing[Any],
    kept: PairStore,
    looks: Mapping[StratumName, Pairs],
    passes: Passes,
    progress: Progress,
) -> dict[StratumName, NDArray[np.int32]]:
    """Evaluate the next pairs of some cells together, and keep their answers; return the predictions."""
    images = {name: drawing.population.pictures[picture] for name, (picture, _) in looks.items()}
    rows = {name: row for name, (_, row) in looks.items()}
    work = DrawnPairs(store, np.concatenate(list(images.values())), np.concatenate(list(rows.values())))
    pictures = pictures_of(source, store, work)
    run_assignment(engine, work, pictures, passes, no_progress, progress=OnlyLines(progress))
    answers: dict[StratumName, NDArray[np.int32]] = {}
    start = 0
    for name in looks:
        stop = start + len(rows[name])
        scores = Score(*(values[start:stop] for values in work.scores))
        kept.write(name, drawing.drawn(name), images[name], rows[name], scores)
        answers[name] = scores.prediction.numpy().astype(np.int32)
        start = stop
    return answers
