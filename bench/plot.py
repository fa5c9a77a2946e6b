"""Throughput against the number of occluders K and against the batch, as a picture: `gfo-bench --plot`."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from ..engine.engines.base import Engine
from ..engine.engines.choice import open_engine
from ..engine.evaluation.passes import Passes, measured_passes
from ..engine.progress import Progress, no_progress
from ..export.classifier import FrozenClassifier
from ..export.errors import EngineUnavailable, InputError
from .throughput import PairsConfig

Curves: TypeAlias = dict[str, dict[str, list[tuple[int, float]]]]

OCCLUDERS = (1, 3, 10, 30, 100)
BATCHES = {"cpu": (1, 2, 4, 8, 16, 32, 64), "cuda": (1, 4, 16, 64, 256)}


def plot_throughput(
    classifier: FrozenClassifier, bank: Tensor, config: PairsConfig, path: Path, progress: Progress = no_progress
) -> Curves:
    """Measure pairs a second (pictures in memory) for several K and several batches, and draw them.

    Parameters
    ----------
    bank
        float32 [K, S, S, 3], for the batches.
    config
        The engines, a curve each; its seconds are not used.
    path
        The PNG to write.

    Returns
    -------
    dict
        {"engine precision": {"occluders": [(K, pairs/s), …], "batch": [(pairs in a pass, pairs/s), …]}}.
    """
    curves: Curves = {}
    for choice in config.engines:
        try:
            with open_engine(choice, classifier) as engine:
                progress.say(f"curves of {engine.name} at {engine.precision}")
                curves[f"{engine.name} {engine.precision}"] = _curves(engine, bank)
        except (EngineUnavailable, InputError) as error:
            progress.say(f"not drawn: {error}")
    _draw(curves, classifier, path)
    return curves


def _curves(engine: Engine, bank: Tensor) -> dict[str, list[tuple[int, float]]]:
    batches = (engine.fixed_pairs,) if engine.fixed_pairs else BATCHES[engine.torch_device.type]
    engine.load_bank(bank)
    taken = measured_passes(engine, 1 + len(bank), [Passes(batch, False) for batch in batches])
    by_batch = [(split.pairs, 1 / seconds) for split, seconds in taken.items()]
    best = max(by_batch, key=lambda point: point[1])[0]
    by_occluders = []
    for count in OCCLUDERS:
        engine.load_bank(torch.zeros(count, *bank.shape[1:]))
        (seconds,) = measured_passes(engine, 1 + count, [Passes(best, False)]).values()
        by_occluders.append((count, 1 / seconds))
    return {"occluders": by_occluders, "batch": by_batch}


def _draw(curves: Curves, classifier: FrozenClassifier, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    from ..engine.reporting.lettering import Lettering

    weights = ", random weights" if classifier.weights == "random" else ""
    measured = f"{classifier.model}{weights}, {classifier.preprocessing.input_size}²"
    letters = Lettering.of([measured, *curves])
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, title in zip(axes, ("occluders", "batch"), ("occluders K", "pairs in a pass"), strict=True):
        for name, curve in curves.items():
            axis.plot(*zip(*curve[key], strict=True), marker="o", label=letters.drawn(name))
        axis.set(xscale="log", xlabel=title)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(sorted({point[0] for curve in curves.values() for point in curve[key]}))
        axis.grid(alpha=0.3)
    most = max((rate for curve in curves.values() for points in curve.values() for _, rate in points), default=1.0)
    axes[0].set_ylim(0, 1.1 * most)
    axes[0].set_ylabel("pairs/s, pictures in memory")
    if curves:
        for label in axes[1].legend().get_texts():
            label.set(**letters.style)
    figure.suptitle(letters.lines(measured, 9), fontsize=10, **letters.style)
    figure.savefig(path, format="png", dpi=130)
