"""Throughput against K and against the batch, as a picture: `gfo-bench --plot`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from ..engine.engines import open_engine
from ..engine.engines.base import Engine
from ..engine.evaluation.passes import Split, measured_splits
from ..engine.progress import Progress, no_progress
from ..export.errors import EngineUnavailable, InputError
from .workload import Work

OCCLUDERS = (1, 3, 10, 30, 100)
BATCHES = {"cpu": (1, 2, 4, 8, 16, 32, 64), "cuda": (1, 4, 16, 64, 256)}


def plot_throughput(
    work: Work,
    engines: Sequence[str],
    precisions: Sequence[str],
    path: Path,
    *,
    device: str = "auto",
    progress: Progress = no_progress,
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Measure pairs a second (pictures in memory) for several K and several batches, and draw them.

    Returns
    -------
    dict
        {"engine precision": {"occluders": [(K, pairs/s), …], "batch": [(pairs in a pass, pairs/s), …]}}.
    """
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name in engines:
        for precision in precisions:
            with ExitStack() as stack:
                try:
                    engine = stack.enter_context(open_engine(name, work.classifier, precision, device)[0])
                except (EngineUnavailable, InputError) as error:
                    progress.say(f"not drawn: {error}")
                    continue
                progress.say(f"curves of {engine.name} at {precision}")
                curves[f"{engine.name} {precision}"] = _curves(work, engine)
    _draw(curves, work, path)
    return curves


def _curves(work: Work, engine: Engine) -> dict[str, list[tuple[int, float]]]:
    size = work.classifier.preprocessing.input_size
    batches = (engine.fixed_pairs,) if engine.fixed_pairs else BATCHES[engine.torch_device.type]
    engine.load_bank(work.occluders)
    taken = measured_splits(engine, work.rows, [Split(batch, False) for batch in batches])
    by_batch = [(split.pairs, 1 / seconds) for split, seconds in taken.items()]
    best = max(by_batch, key=lambda point: point[1])[0]
    by_occluders = []
    for count in OCCLUDERS:
        engine.load_bank(torch.zeros(count, size, size, 3))
        (seconds,) = measured_splits(engine, 1 + count, [Split(best, False)]).values()
        by_occluders.append((count, 1 / seconds))
    return {"occluders": by_occluders, "batch": by_batch}


def _draw(curves: dict[str, dict[str, list[tuple[int, float]]]], work: Work, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, title in zip(axes, ("occluders", "batch"), ("occluders K", "pairs in a pass"), strict=True):
        for name, curve in curves.items():
            axis.plot(*zip(*curve[key], strict=True), marker="o", label=name)
        axis.set(xscale="log", xlabel=title)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(sorted({point[0] for curve in curves.values() for point in curve[key]}))
        axis.grid(alpha=0.3)
    most = max((rate for curve in curves.values() for points in curve.values() for _, rate in points), default=1.0)
    axes[0].set_ylim(0, 1.1 * most)
    axes[0].set_ylabel("pairs/s, pictures in memory")
    axes[1].legend()
    weights = ", random weights" if work.classifier.weights == "random" else ""
    figure.suptitle(f"{work.classifier.model}{weights}, {work.classifier.preprocessing.input_size}²", fontsize=10)
    figure.savefig(path, format="png", dpi=130)
