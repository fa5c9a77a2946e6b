"""What the suites of pairs share: every engine at every precision, checked before anything of it is timed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from ..engine.data.source import Block
from ..engine.engines.base import Engine
from ..engine.engines.choice import EngineChoice, open_engine
from ..engine.evaluation.all_pairs import all_pairs
from ..engine.evaluation.passes import Passes, default_passes, described_rates, measured_passes, passes_to_try
from ..engine.evaluation.store import CLEAN, READ_TOGETHER, RunStore
from ..engine.evaluation.summary import Run
from ..engine.machine import worker_count
from ..engine.progress import Progress
from ..export.errors import EngineUnavailable, InputError
from ..export.files import ScratchFolder
from .gate import BLIND, check_engine
from .pictures import open_pictures
from .rows import BenchRow, PairsFacts
from .workload import Workload

PairsRow: TypeAlias = BenchRow[PairsFacts]


@dataclass(frozen=True)
class PairsConfig:
    """Which engines are measured, and for how long.

    Attributes
    ----------
    engines
        Each at a precision. Of several, one that is not available is a row that says so.
    seconds
        > 0, for each engine; slow networks take longer.
    """

    engines: Sequence[EngineChoice] = (EngineChoice(),)
    seconds: float = 20.0


@dataclass(frozen=True)
class OpenRun:
    """An open engine with the workload's bank, found to be right, and what is measured with it."""

    work: Workload
    engine: Engine
    block: Block
    """The first pictures, in memory."""
    seconds: float
    progress: Progress

    def row(self, stage: str, facts: PairsFacts | None = None, **found: Any) -> PairsRow:
        """Return a row of this engine, without rates."""
        engine = self.engine
        return blank_row(
            self.work, stage, engine.name, engine.precision, facts=facts, device=engine.torch_device.type, **found
        )


def blank_row(
    work: Workload, stage: str, engine: str, precision: str, facts: PairsFacts | None = None, **found: Any
) -> PairsRow:
    """Return a row of a workload, without rates."""
    return BenchRow(
        stage=stage,
        engine=engine,
        precision=precision,
        model=work.classifier.model,
        weights=work.classifier.weights,
        unit="pairs/s",
        data=work.data,
        facts=facts or PairsFacts(),
        **found,
    )


def engine_rows(
    work: Workload,
    config: PairsConfig,
    stages: Sequence[str],
    measured: Callable[[OpenRun], list[PairsRow]],
    progress: Progress,
    stack: contextlib.ExitStack | None = None,
) -> list[PairsRow]:
    """Measure every engine that is chosen.

    Parameters
    ----------
    stages
        The stages of an engine's rows, for one whose answers are wrong.
    measured
        What measures an engine whose answers are right.
    stack
        Keeps all engines open until it is closed; without one, each is closed before the next one is opened.

    Raises
    ------
    InputError, EngineUnavailable
        The only engine cannot be opened, or a picture cannot be read.
    """
    rows: list[PairsRow] = []
    block = _first_block(work)
    for choice in config.engines:
        precision = choice.precision or "fp32"
        progress.say(f"engine {choice.name} at {precision}")
        try:
            with contextlib.ExitStack() as own:
                engine = (stack or own).enter_context(open_engine(replace(choice, pairs=work.pairs), work.classifier))
                rows += _checked(OpenRun(work, engine, block, config.seconds, progress), stages, measured)
        except (EngineUnavailable, InputError, RuntimeError) as error:
            # What the others measured is not lost; a RuntimeError is a library's, as of an operation that it lacks.
            if len(config.engines) == 1:
                raise
            reason = str(error).splitlines()[0]
            rows.append(blank_row(work, stages[0], choice.name, precision, available=False, reason=reason))
    return rows


def _checked(run: OpenRun, stages: Sequence[str], measured: Callable[[OpenRun], list[PairsRow]]) -> list[PairsRow]:
    """Return the rows of an engine if its answers are right, else rows that say what is wrong."""
    run.progress.say(f"{run.engine.name} on {run.engine.device}: {run.engine.reason}; {run.engine.how}")
    run.engine.load_bank(run.work.occluders)
    wrong, telling = check_engine(run.engine, run.work, run.block.images)
    if wrong:
        return [run.row(stage, available=False, passed=False, reason=wrong) for stage in stages]
    run.progress.say("logits match PyTorch; selecting batch sizes")
    rows = measured(run)
    if telling:
        return rows
    # The plain loop is not what was checked, and what could not run has its own reason.
    return [replace(row, reason=BLIND) if row.available and row.stage != "baseline" else row for row in rows]


def _first_block(work: Workload) -> Block:
    """Read the first pictures into memory."""
    source = open_pictures("pillow", work.folder, work.classifier.preprocessing, worker_count())
    count = min(READ_TOGETHER, work.pictures or READ_TOGETHER)
    block = next(iter(source.blocks(work.files(count), count)))
    if block.quarantined:
        first = min(block.quarantined)
        path = work.files(first + 1)[-1]
        raise InputError(f"--images {work.folder}: {path}: {block.quarantined[first]}; remove it")
    return block


# ---- from files to a store


def best_passes(run: OpenRun) -> tuple[Passes, float]:
    """Measure how pairs are best cut into passes, whatever is remembered; and pairs a second."""
    work = run.work
    candidates = [default_passes(run.engine, work.pairs)] if work.pairs else passes_to_try(run.engine)
    taken = measured_passes(run.engine, work.rows, candidates)
    best = min(taken, key=taken.__getitem__)
    run.progress.say(f"pairs: {best}, of {described_rates(taken)}")
    return best, 1 / taken[best]


def end_to_end(engine: Engine, work: Workload, pictures: int, passes: Passes, workers: int) -> None:
    """Evaluate picture files under all occluders into a store on disk, as gfo-eval does.

    Raises
    ------
    InputError
        Some of the files are no pictures.
    """
    source = open_pictures("auto", work.folder, work.classifier.preprocessing, workers, engine.torch_device)
    rows, paths = [CLEAN, *range(len(work.occluders))], work.files(pictures)
    with ScratchFolder() as folder:
        zeros, run = [0] * pictures, run_of(engine, rows[1:], source.name, work.folder)
        store = RunStore.create(Path(folder), run, paths=paths, labels=zeros, fit=zeros, occluders=rows)
        _, pairs = all_pairs(engine, [store], source, passes)
    if pairs != pictures * len(rows):
        unread = pictures - pairs // len(rows)
        raise InputError(f"--images {work.folder}: {unread} of {pictures} files are no pictures; remove them")


def run_of(engine: Engine, classes: Sequence[int], loader: str, data_root: Path | str) -> Run:
    """Describe a benchmark's run for its store, which is removed at its end."""
    classifier = engine.subject
    return Run(
        gfo_version=version("gfo"),
        model=classifier.model,
        num_classes=classifier.num_classes,
        weights=classifier.weights,
        weights_hash=classifier.weights_hash,
        bank="(benchmark)",
        bank_hash="(benchmark)",
        epsilon=0.0,
        norm="linf",
        split="val",
        engine=engine.name,
        engine_variant=engine.variant,
        device=engine.device,
        precision=engine.precision,
        impl=engine.impl,
        loader=loader,
        seed=0,
        data_root=str(data_root),
        preprocessing=classifier.preprocessing,
        class_ids=tuple(classes),
        class_names={},
        folders={},
        pictures="all",
        per_class=None,
    )
