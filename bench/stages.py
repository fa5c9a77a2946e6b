"""The stages of an engine, in turns: how far all pairs are from what they cost at least.

    bare         the network alone, on ready tensors, in its best batch and layout
    pairs        pictures in memory (uint8) under every occluder, to verdicts
    end-to-end   picture files to a store on disk: what gfo-eval does once an engine is open
    baseline     a plain PyTorch loop: DataLoader, Pillow, one pass over the files for each occluder, in PyTorch's
                 default float32; on a GPU that is TF32, and another row has float32 throughout

All of them take turns in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..engine.data.source import Block
from ..engine.devices import fitting_memory
from ..engine.engines.base import Engine
from ..engine.evaluation.all_pairs import part_size, queue_part
from ..engine.evaluation.passes import Passes, passes_to_try
from ..engine.evaluation.store import READ_TOGETHER, block_size
from ..engine.machine import best_seconds, worker_count
from ..engine.progress import Progress, no_progress
from .ceilings import convolution, share
from .measure import Call, Rates, measure, ratio, timer, with_rates
from .pictures import open_pictures
from .plain_loop import BATCH, PlainLoop, plain_precisions
from .rows import PairsFacts, Ratio
from .throughput import OpenRun, PairsConfig, PairsRow, best_passes, blank_row, end_to_end, engine_rows
from .trtexec import own_row
from .workload import Workload

STAGES = ("bare", "pairs", "end-to-end", "baseline")
# One call of the longest stage takes about this share of the seconds for an engine, and a whole part at least.
_CALL_SHARE = 0.12
# The engine's own benchmark runs beside, for this share of the seconds.
_OWN_SHARE = 0.2
# Between two alternatives: threads that spin for some time after a call would do so beside the next one's.
REST = 0.1
# Seconds a picture within this factor of the fewest are worth a second look.
_NEAR = 1.1
# Files that a call of the plain loop reads.
_PLAIN_PICTURES = 32


@dataclass(frozen=True)
class Alternative:
    """What takes its turn: a call, its pairs, and its row without rates."""

    call: Call
    pairs: int
    row: PairsRow


def throughput_rows(
    work: Workload, config: PairsConfig, stages: Sequence[str] = STAGES, progress: Progress = no_progress
) -> list[PairsRow]:
    """Measure pairs a second of every stage of every engine at every precision, and of the plain loop.

    Returns
    -------
    list
        Ratios of `pairs` and `end-to-end` are to `bare` of the same engine (to `pairs` where `bare` is not among the
        stages); `to_plain` is to the plain loop.

    Raises
    ------
    InputError, EngineUnavailable
        The only engine at the only precision cannot be opened, or a picture cannot be read.
    """
    own = [stage for stage in stages if stage != "baseline"] or ["baseline"]
    return engine_rows(work, config, own, lambda run: _stage_rows(run, stages), progress)


def _stage_rows(run: OpenRun, stages: Sequence[str]) -> list[PairsRow]:
    """Measure the stages of one engine, and the plain loop, in turns."""
    chosen = _alternatives(run, stages)
    calls = {name: one.call for name, one in chosen.items()}
    bound = convolution(run.engine.precision, run.engine.torch_device) if "bare" in chosen else None
    if bound is not None:
        calls["ceiling"] = bound[0]
    times = measure(calls, seconds=run.seconds, timer=timer(run.engine.torch_device.type), rest=REST)
    rates = {name: one.pairs / times[name] for name, one in chosen.items()}
    rows = [_measured(name, one.row, rates) for name, one in chosen.items()]
    if bound is not None:
        found = share(rates["bare"], run.work.flops, times["ceiling"], bound[1])
        rows = [
            replace(row, facts=replace(row.facts, ceiling_share=found)) if row.stage == "bare" else row for row in rows
        ]
    own = run.engine.own_benchmark() if "bare" in chosen else None
    beside = None if own is None else own_row(own, run.row("bare"), run.seconds * _OWN_SHARE)
    return rows if beside is None else [*rows, beside]


def _measured(name: str, row: PairsRow, rates: dict[str, Rates]) -> PairsRow:
    row = with_rates(row, rates[name], _against(row.stage, rates[name], rates))
    if "baseline" not in rates or row.stage == "baseline":
        return row
    return replace(row, facts=replace(row.facts, to_plain=ratio(rates[name], "baseline", rates["baseline"])))


def _against(stage: str, own: Rates, rates: dict[str, Rates]) -> Ratio | None:
    others = {"pairs": ("bare",), "end-to-end": ("bare", "pairs")}.get(stage, ())
    to = next((name for name in others if name in rates), None)
    return None if to is None else ratio(own, to, rates[to])


# ---- what takes turns


def _alternatives(run: OpenRun, stages: Sequence[str]) -> dict[str, Alternative]:
    """Return what takes turns for the stages, by name."""
    work, chosen = run.work, dict[str, Alternative]()
    if "bare" in stages:
        chosen["bare"] = best_alternative(run)
    if set(stages) & {"pairs", "end-to-end"}:
        passes, rate = best_passes(run)
        if "pairs" in stages:
            chosen["pairs"] = _pairs(run, passes)
        if "end-to-end" in stages:
            chosen |= _end_to_end(run, passes, work.pictures or _fitting(run, passes, rate))
    if "baseline" in stages:
        chosen |= _baselines(run, min(_PLAIN_PICTURES, work.pictures or READ_TOGETHER))
    return chosen


def best_alternative(run: OpenRun) -> Alternative:
    """Return the network alone, in its best batch and layout."""
    call, pairs, how = _best_bare(run.engine)
    run.progress.say(f"bare: {how}")
    return Alternative(call, pairs, run.row("bare", sizes=how))


def _best_bare(engine: Engine) -> tuple[Call, int, str]:
    """Return the fastest call of the network alone, its pictures and its name, of all batches in both layouts."""
    batches = list(dict.fromkeys(passes.pairs for passes in passes_to_try(engine)))
    calls: dict[tuple[int, str], Call] = {}
    for batch in batches:
        try:
            calls |= {(batch, layout): call for layout, call in engine.bare(batch).items()}
        except torch.OutOfMemoryError:  # nor will larger ones fit
            if not calls:
                raise
            break
    for turns in (2, 5):  # those that come near the best then get a longer look
        with fitting_memory(batches[0], engine.device):
            taken = best_seconds(calls, engine.torch_device, turns=turns, errors=(torch.OutOfMemoryError,))
        each = {key: seconds / key[0] for key, seconds in taken.items()}
        calls = {key: calls[key] for key in each if each[key] <= _NEAR * min(each.values())}
    batch, layout = min(calls, key=each.__getitem__)
    return calls[batch, layout], batch, f"batch {batch}, {layout}"


def _pairs(run: OpenRun, passes: Passes) -> Alternative:
    work, block, parts = run.work, run.block, 1
    if run.engine.runs_ahead:  # as an evaluation has them: large, and one queued behind the other
        places = torch.arange(_part(run, passes)) % len(block.images)
        block, parts = Block(0, block.images[places]), 2
    pictures = parts * len(block.images)
    row = run.row("pairs", pictures=pictures, occluders=len(work.occluders), sizes=str(passes))
    return Alternative(partial(_score_all, run.engine, [block] * parts, work.rows, passes), pictures * work.rows, row)


def _part(run: OpenRun, passes: Passes) -> int:
    """Return how many pictures an evaluation reads together."""
    return part_size(run.engine, passes, block_size(run.work.rows), run.work.rows)


def _end_to_end(run: OpenRun, passes: Passes, pictures: int) -> dict[str, Alternative]:
    """Return an alternative for each number of decoding threads."""
    work, found = run.work, dict[str, Alternative]()
    for workers in work.workers or (worker_count(),):
        name = f"end-to-end {workers}" if len(work.workers) > 1 else "end-to-end"
        call = partial(end_to_end, run.engine, work, pictures, passes, workers)
        facts, sizes = PairsFacts(workers=workers), str(passes)
        row = run.row("end-to-end", facts, pictures=pictures, occluders=len(work.occluders), sizes=sizes)
        found[name] = Alternative(call, pictures * work.rows, row)
    return found


def _baselines(run: OpenRun, pictures: int) -> dict[str, Alternative]:
    """Return an alternative for each meaning of float32; what others are compared with is PyTorch's default."""
    work, device = run.work, run.engine.torch_device
    sizes, found = f"batch {BATCH}, one pass of {work.rows}", dict[str, Alternative]()
    for precision in plain_precisions(device):
        plain = PlainLoop(work, pictures, device, precision)
        facts = {"pictures": len(plain), "occluders": len(work.occluders), "sizes": sizes, "device": device.type}
        row = blank_row(work, "baseline", "torch", precision, **facts)
        found[f"baseline {precision}" if found else "baseline"] = Alternative(plain, len(plain), row)
    return found


def _fitting(run: OpenRun, passes: Passes, rate: float) -> int:
    """Return how many pictures fit a call, in whole parts, given the network's pairs a second.

    The next part is read while the network has this one: the slower of the two is what counts.
    """
    work, device = run.work, run.engine.torch_device
    workers = (work.workers or (worker_count(),))[0]
    source = open_pictures("auto", work.folder, work.classifier.preprocessing, workers, device)

    def read() -> None:
        for _ in source.blocks(work.files(READ_TOGETHER), READ_TOGETHER):
            pass

    (reading,) = best_seconds({"read": read}, device, turns=1).values()
    part = _part(run, passes)
    seconds = part * max(reading / READ_TOGETHER, work.rows / rate)
    return max(1, int(run.seconds * _CALL_SHARE / seconds)) * part


def _score_all(engine: Engine, blocks: Sequence[Block], rows: int, passes: Passes) -> None:
    count = len(blocks[0].images)
    labels, occluders = torch.zeros(count, dtype=torch.int64), torch.arange(rows).expand(count, -1)
    for wait in [queue_part(engine, block, labels, occluders, passes) for block in blocks]:
        wait()
