"""The bare network on several engines and precisions at once, in turns: how much faster one is than another."""

from __future__ import annotations

import contextlib

from ..engine.progress import Progress
from . import stages
from .measure import Rates, measure, ratio, timer, with_rates
from .throughput import OpenRun, PairsConfig, PairsRow, engine_rows
from .workload import Workload


def versus_rows(work: Workload, config: PairsConfig, progress: Progress) -> list[PairsRow]:
    """Measure the network alone on every engine that is chosen, all of them open and in turns.

    `config.seconds` are for each of them.

    Returns
    -------
    list
        Ratios are to the first engine that runs.

    Raises
    ------
    InputError, EngineUnavailable
        The only engine cannot be opened, or a picture cannot be read.
    """
    chosen: list[stages.Alternative] = []

    def choose(run: OpenRun) -> list[PairsRow]:
        chosen.append(stages.best_alternative(run))
        return [chosen[-1].row]

    with contextlib.ExitStack() as stack:
        rows = engine_rows(work, config, ["bare"], choose, progress, stack)
        if not chosen:
            return rows
        clock = timer("cuda" if any(one.row.device == "cuda" for one in chosen) else "cpu")
        calls = {str(i): one.call for i, one in enumerate(chosen)}
        times = measure(calls, seconds=config.seconds * len(calls), timer=clock, rest=stages.REST)
    rates = iter([one.pairs / seconds for one, seconds in zip(chosen, times.values(), strict=True)])
    measured: list[PairsRow] = []
    first: tuple[str, Rates] | None = None
    for row in rows:
        if not row.available:
            measured.append(row)
            continue
        own = next(rates)
        measured.append(with_rates(row, own, None if first is None else ratio(own, *first)))
        first = first or (f"{row.engine} {row.precision}", own)
    return measured
