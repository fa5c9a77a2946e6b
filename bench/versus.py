"""The bare network on several engines and precisions at once, in turns: how much faster one is than another."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from ..engine.engines.choice import open_engine
from ..engine.progress import Progress
from ..export.errors import EngineUnavailable, InputError
from . import stages
from .measure import measure, ratio, timer, with_rates
from .throughput import OpenRun, PairsConfig, PairsRow, blank_row, first_block, refused_rows
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
    rows: list[PairsRow] = []
    chosen: dict[str, stages.Alternative] = {}
    block, devices = first_block(work), set[str]()
    with contextlib.ExitStack() as stack:
        for choice in config.engines:
            precision = choice.precision or "fp32"
            progress.say(f"engine {choice.name} at {precision}")
            try:
                engine = stack.enter_context(open_engine(replace(choice, pairs=work.pairs), work.classifier))
                run = OpenRun(work, engine, block, config.seconds, progress)
                if refused := refused_rows(run, ["bare"]):
                    rows += refused
                    continue
                chosen[f"{engine.name} {precision}"] = stages.best_alternative(run)
                devices.add(engine.torch_device.type)
            except (EngineUnavailable, InputError, RuntimeError) as error:
                if len(config.engines) == 1:
                    raise
                reason = str(error).splitlines()[0]
                rows.append(blank_row(work, "bare", choice.name, precision, available=False, reason=reason))
        if not chosen:
            return rows
        clock = timer("cuda" if "cuda" in devices else "cpu")
        calls = {name: one.call for name, one in chosen.items()}
        times = measure(calls, seconds=config.seconds * len(calls), timer=clock, rest=stages.REST)
    rates = {name: one.pairs / times[name] for name, one in chosen.items()}
    first = next(iter(rates))
    against = {name: None if name == first else ratio(rates[name], first, rates[first]) for name in rates}
    return [*(with_rates(one.row, rates[name], against[name]) for name, one in chosen.items()), *rows]
