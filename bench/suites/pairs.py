"""All pairs against what they could cost at least, and against the loop that people write: `gfo-bench`.

    bare         the network alone, on ready tensors, in its best batch and layout
    pairs        pictures in memory (uint8) under every occluder, to verdicts
    end-to-end   picture files to a store on disk: what gfo-eval does once an engine is open
    baseline     a plain PyTorch loop: DataLoader, Pillow, float32, one pass over the files for each occluder

All of them take turns in one process. An engine is compared with float32 PyTorch first; one that differs has no speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...engine.data.loading import open_source
from ...engine.data.source import Block
from ...engine.data.spec import DataSpec
from ...engine.devices import fitting_memory
from ...engine.engines import engine_class, open_engine
from ...engine.engines.base import Engine
from ...engine.engines.trt.engine import TrtEngine
from ...engine.evaluation.all_pairs import all_pairs, score_block
from ...engine.evaluation.passes import Split, default_split, measured_splits, rates_in_words, splits_to_try
from ...engine.evaluation.store import CLEAN, READ_TOGETHER, RunStore
from ...engine.machine import best_seconds, worker_count
from ...engine.parity.gates import judge, parity_pairs
from ...engine.progress import Progress, no_progress
from ...export.errors import EngineUnavailable, InputError
from ..measure import Call, Ratio, Row, ceiling, measure, ratio, timer, with_rates
from ..plain_loop import BATCH, PlainLoop
from ..trtexec import trtexec_row
from ..workload import Work

STAGES = ("bare", "pairs", "end-to-end", "baseline")
_Alternative: TypeAlias = tuple[Call, int, Row]  # what is called, its pairs, and its row without rates
_GATE_PAIRS = 24
# One call of the longest stage takes about this share of the seconds for an engine, and a whole part at least.
_CALL_SHARE = 0.12
# NVIDIA's own benchmark runs beside, for this share of the seconds.
_TRTEXEC_SHARE = 0.2
# Between two alternatives: threads that spin for some time after a call would do so beside the next one's.
_REST = 0.1
_BLIND = "unchecked: with these weights and occluders, wrong occluders would give the same answers; give real ones"
# Seconds a picture within this factor of the fewest are worth a second look.
_NEAR = 1.1
# Files that a call of the plain loop reads.
_PLAIN_PICTURES = 32


def throughput_rows(
    work: Work,
    engines: Sequence[str],
    precisions: Sequence[str],
    *,
    stages: Sequence[str] = STAGES,
    points: Sequence[tuple[int, int]] = (),
    device: str = "auto",
    seconds: float,
    progress: Progress = no_progress,
) -> list[Row]:
    """Pairs a second of every stage of every engine at every precision that it has, and of the plain loop.

    Parameters
    ----------
    engines
        Names; `auto` is the first that comes up. Of several, one that is not there is a row that says so.
    points
        (K, N) pairs: instead of the stages, `end-to-end` with so many of the occluders and so many pictures each.
    seconds
        > 0, for each engine at each precision; slow networks take longer.

    Returns
    -------
    list
        Ratios of `pairs` and `end-to-end` are to `bare` of the same engine (to `pairs` where that is not asked for),
        those of points to the first; `to_plain` is to the plain loop.

    Raises
    ------
    InputError, EngineUnavailable
        The only engine at the only precision cannot be opened, or a picture cannot be read.
    """
    rows: list[Row] = []
    block = _block(work)
    asked = _asked(stages, points)
    for name in engines:
        for precision in precisions:
            progress.say(f"engine {name} at {precision}")
            try:
                opened, why = open_engine(name, work.classifier, precision, device, pairs=work.pairs)
                with opened as engine:
                    progress.say(f"{engine.name} on {engine.device}: {why}; {engine.how}")
                    rows += _engine_rows(work, engine, block, stages, points, seconds, progress)
            except (EngineUnavailable, InputError, RuntimeError) as error:
                # What the others gave is not lost; a RuntimeError is a library's, as of an operation that it lacks.
                if len(engines) == len(precisions) == 1:
                    raise
                reason = str(error).splitlines()[0]
                rows.append(_row(work, asked[0], name, precision, available=False, reason=reason))
    return rows


def _row(work: Work, stage: str, engine: str, precision: str, **found: Any) -> Row:
    return Row(
        stage=stage,
        engine=engine,
        precision=precision,
        model=work.classifier.model,
        weights=work.classifier.weights,
        unit="pairs/s",
        data=work.data,
        **found,
    )


def _engine_rows(
    work: Work,
    engine: Engine,
    block: Block,
    stages: Sequence[str],
    points: Sequence[tuple[int, int]],
    seconds: float,
    progress: Progress,
) -> list[Row]:
    """What is asked for of one engine, if its answers are right."""
    blank = partial(_row, work, engine=engine.name, precision=engine.precision, device=engine.torch_device.type)
    engine.load_bank(work.occluders)
    wrong, telling = _differs(engine, work, block.images)
    if wrong:
        return [blank(stage, available=False, passed=False, reason=wrong) for stage in _asked(stages, points)]
    progress.say("its logits are PyTorch's; choosing batches")
    if points:
        rows = _points(work, engine, points, blank, seconds, progress)
    else:
        chosen = _alternatives(work, engine, block, stages, blank, seconds, progress)
        rows = _stages(work, engine, chosen, blank, seconds)
    if telling:
        return rows
    # The plain loop is not what was checked, and what could not run has its own reason.
    return [replace(row, reason=_BLIND) if row.available and row.stage != "baseline" else row for row in rows]


def _asked(stages: Sequence[str], points: Sequence[tuple[int, int]]) -> list[str]:
    """The stages of an engine's rows."""
    return ["end-to-end"] * len(points) or [stage for stage in stages if stage != "baseline"] or ["baseline"]


def _block(work: Work) -> Block:
    """The first pictures, in memory."""
    source = open_source(DataSpec(work.folder, loader="pillow"), work.classifier.preprocessing)
    count = min(READ_TOGETHER, work.pictures or READ_TOGETHER)
    block = next(iter(source.blocks(work.files(count), count)))
    if block.quarantined:
        first = min(block.quarantined)
        raise InputError(
            f"--images {work.folder}: {work.files(first + 1)[-1]}: {block.quarantined[first]}; take it away"
        )
    return block


def _stages(
    work: Work, engine: Engine, chosen: dict[str, _Alternative], blank: Callable[..., Row], seconds: float
) -> list[Row]:
    """The stages of one engine, and the plain loop, in turns."""
    calls = {name: call for name, (call, _, _) in chosen.items()}
    bound = ceiling(engine.precision, engine.torch_device) if "bare" in chosen else None
    if bound is not None:
        calls["ceiling"] = bound[0]
    times = measure(calls, seconds=seconds, timer=timer(engine.torch_device.type), rest=_REST)
    rates = {name: pairs / times[name] for name, (_, pairs, _) in chosen.items()}
    plain = rates.get("baseline")
    rows = [
        replace(
            with_rates(row, rates[name], _against(row.stage, rates[name], rates)),
            to_plain=None if plain is None or name == "baseline" else ratio(rates[name], "baseline", plain),
        )
        for name, (_, _, row) in chosen.items()
    ]
    if isinstance(engine, TrtEngine) and "bare" in chosen:
        _, pairs, _ = chosen["bare"]
        own = trtexec_row(engine.library, engine.plan_file, pairs, blank("bare"), seconds * _TRTEXEC_SHARE)
        rows += [] if own is None else [own]
    if bound is None:
        return rows
    reached = rates["bare"] * work.flops
    share = float(np.median(reached) / np.median(bound[1] / times["ceiling"]))
    return [
        replace(row, ceiling_share=share) if (row.stage, row.engine) == ("bare", engine.name) else row for row in rows
    ]


def _alternatives(
    work: Work,
    engine: Engine,
    block: Block,
    stages: Sequence[str],
    blank: Callable[..., Row],
    seconds: float,
    progress: Progress,
) -> dict[str, _Alternative]:
    """What takes turns for the stages that are asked for, by name."""
    chosen: dict[str, _Alternative] = {}
    if "bare" in stages:
        bare, pairs, how = _best_bare(engine)
        progress.say(f"bare: {how}")
        chosen["bare"] = (bare, pairs, blank("bare", sizes=how))
    if set(stages) & {"pairs", "end-to-end"}:
        split, rate = _best_split(engine, work, progress)
        pictures = work.pictures or _fitting(rate, work, seconds)
    else:
        split, pictures = None, work.pictures or READ_TOGETHER
    facts: dict[str, Any] = {"occluders": len(work.occluders), "sizes": str(split)}
    if split is not None and "pairs" in stages:
        call = partial(_score_all, engine, block, work.rows, split)
        chosen["pairs"] = (call, len(block.images) * work.rows, blank("pairs", pictures=len(block.images), **facts))
    if split is not None and "end-to-end" in stages:
        for workers in work.workers or (worker_count(),):
            name = f"end-to-end {workers}" if len(work.workers) > 1 else "end-to-end"
            call = partial(_end_to_end, engine, work, pictures, split, workers)
            row = blank("end-to-end", pictures=pictures, workers=workers, **facts)
            chosen[name] = (call, pictures * work.rows, row)
    if "baseline" in stages:
        plain = PlainLoop(work, min(_PLAIN_PICTURES, pictures), engine.torch_device)
        chosen["baseline"] = (plain, len(plain), _plain_row(work, plain, engine.torch_device))
    return chosen


def _plain_row(work: Work, plain: PlainLoop, device: torch.device) -> Row:
    how = f"batch {BATCH}, one pass of {work.rows}"
    facts = {"pictures": len(plain), "occluders": len(work.occluders), "sizes": how}
    return _row(work, "baseline", "torch", "fp32", device=device.type, **facts)


def _against(stage: str, own: NDArray[np.float64], rates: dict[str, NDArray[np.float64]]) -> Ratio | None:
    others = {"pairs": ("bare",), "end-to-end": ("bare", "pairs")}.get(stage, ())
    to = next((name for name in others if name in rates), None)
    return None if to is None else ratio(own, to, rates[to])


def _points(
    work: Work,
    engine: Engine,
    points: Sequence[tuple[int, int]],
    blank: Callable[..., Row],
    seconds: float,
    progress: Progress,
) -> list[Row]:
    """Files to store for several numbers of occluders and pictures, in turns; the bank is loaded in each call."""
    split, _ = _best_split(engine, work, progress)

    def call(occluders: int, pictures: int) -> None:
        part = replace(work, occluders=work.occluders[:occluders])
        engine.load_bank(part.occluders)
        _end_to_end(engine, part, pictures, split, worker_count())

    calls = {f"{k} x {n}": partial(call, k, n) for k, n in points}
    times = measure(calls, seconds=seconds, timer=timer(engine.torch_device.type))
    rates = {name: n * (1 + k) / times[name] for name, (k, n) in zip(calls, points, strict=True)}
    first, *_ = rates
    return [
        with_rates(
            blank("end-to-end", occluders=k, pictures=n, sizes=str(split)),
            rates[name],
            None if name == first else ratio(rates[name], first, rates[first]),
        )
        for name, (k, n) in zip(calls, points, strict=True)
    ]


def _differs(engine: Engine, work: Work, images: Tensor) -> tuple[str, bool]:
    """How its logits differ from PyTorch's beyond what the precision explains, in words; empty where they don't.

    And whether these weights and pictures would tell an engine that takes the wrong occluders from a right one.
    """
    pairs = parity_pairs(None, range(len(work.occluders)), len(images), _GATE_PAIRS, seed=0)

    def logits(of: Engine) -> Tensor:
        return of.infer(of.place(images), pairs.image_index, pairs.occluder_index).cpu()

    with engine_class("torch")(work.classifier, "fp32", "cpu") as reference:
        reference.load_bank(-work.occluders.flip(0))
        wrong = logits(reference)
        reference.load_bank(work.occluders)
        right, own = logits(reference), None
    if engine.precision != "fp32":
        with engine_class("torch")(work.classifier, engine.precision, "cpu") as reference:
            reference.load_bank(work.occluders)
            own = logits(reference)
    verdict, spoilt = (judge(right, of, pairs, engine.precision, None, own) for of in (logits(engine), wrong))
    return "" if verdict.passed else f"differs from PyTorch: {verdict.reason}", not spoilt.passed


def _best_bare(engine: Engine) -> tuple[Call, int, str]:
    """The fastest call of the network alone, its pictures, and what it is, of all batches in both layouts."""
    batches = list(dict.fromkeys(split.pairs for split in splits_to_try(engine)))
    calls = {(batch, layout): call for batch in batches for layout, call in engine.bare(batch).items()}
    for turns in (2, 5):  # those that come near the best then get a longer look
        with fitting_memory(batches[0], engine.device):
            taken = best_seconds(calls, engine.torch_device, turns=turns, errors=(torch.OutOfMemoryError,))
        each = {key: seconds / key[0] for key, seconds in taken.items()}
        calls = {key: calls[key] for key in each if each[key] <= _NEAR * min(each.values())}
    batch, layout = min(calls, key=each.__getitem__)
    return calls[batch, layout], batch, f"batch {batch}, {layout}"


def _best_split(engine: Engine, work: Work, progress: Progress) -> tuple[Split, float]:
    """How pairs are cut into passes, and pairs a second; as `engine.split`, but measured whatever is remembered."""
    splits = [default_split(engine, work.pairs)] if work.pairs else splits_to_try(engine)
    taken = measured_splits(engine, work.rows, splits)
    best = min(taken, key=taken.__getitem__)
    progress.say(f"pairs: {best}, of {rates_in_words(taken)}")
    return best, 1 / taken[best]


def _fitting(rate: float, work: Work, seconds: float) -> int:
    """Pictures that fit a call: whole parts."""
    parts = int(rate * seconds * _CALL_SHARE / work.rows / READ_TOGETHER)
    return max(1, parts) * READ_TOGETHER


# ---- the stages


def _score_all(engine: Engine, block: Block, rows: int, split: Split) -> None:
    labels = torch.zeros(len(block.images), dtype=torch.int64)
    for _ in score_block(engine, block, labels, rows, split):
        pass


def _end_to_end(engine: Engine, work: Work, pictures: int, split: Split, workers: int) -> None:
    source = open_source(DataSpec(work.folder, workers=workers), work.classifier.preprocessing, engine.torch_device)
    rows, paths = [CLEAN, *range(len(work.occluders))], work.files(pictures)
    with tempfile.TemporaryDirectory(prefix="gfo-bench-") as folder:
        facts = {"data_root": str(work.folder)}
        zeros = [0] * pictures
        store = RunStore.create(Path(folder), facts, paths=paths, labels=zeros, fit=zeros, occluders=rows)
        _, pairs = all_pairs(engine, store, source, split)
    if pairs != pictures * len(rows):
        unread = pictures - pairs // len(rows)
        raise InputError(f"--images {work.folder}: {unread} of {pictures} files are no pictures; take them away")
