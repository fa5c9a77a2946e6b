"""Sweeps: trainings that differ in some options, evaluated alike, from one TOML file.

    seeds = [0, 1]
    strengths = [0.5, 1.0]              # see gfo-eval --strength; two or more

    [model]                             # options of both commands
    model = "gfo/digits-resnet"

    [train]                             # options of every gfo-train
    data = "{data}"

    [evaluations.val]                   # options of a gfo-eval, one table for each
    data = "{data}"
    split = "val"

    [experiments.pure]                  # options of one gfo-train, which go before those of [train]
    epsilon = 16

`{data}` stands for the folder that the command names. A list repeats an option, `true` is an option without a value.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, MinLen

from ..engine.evaluation.config import run_folders, strength_name
from ..engine.evaluation.results import Marks, Ratio
from ..engine.evaluation.summary import SUMMARY_FILE, Summary, read_summary
from ..export.errors import InputError
from ..export.records import STRICT, read_record

Options = dict[str, Any]
_BANK = "bank.safetensors"
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_OWN = ("out", "seed", "strength", "occluders")


@dataclass(frozen=True)
class Sweep:
    """The contents of a sweep's file.

    Attributes
    ----------
    seeds
        Seed of each repetition.
    strengths
        Strengths at which every bank is evaluated.
    model, train
        Options of every command, and of every gfo-train.
    evaluations
        Options of each gfo-eval, by its name.
    experiments
        Options of one gfo-train, by the name of the experiment.
    """

    __pydantic_config__: ClassVar = STRICT

    seeds: Annotated[list[Annotated[int, Ge(0)]], MinLen(1)]
    strengths: Annotated[list[float], MinLen(2)]
    model: Options
    train: Options
    evaluations: Annotated[dict[str, Options], MinLen(1)]
    experiments: Annotated[dict[str, Options], MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """What one bank of a sweep was found to do in one evaluation.

    Attributes
    ----------
    experiment, evaluation, seed
        Which training, evaluated on which pictures.
    train
        The command that trained it.
    strength
        Largest strength of the evaluation.
    clean
        Accuracy without an occluder.
    matched, unmatched, unseen
        matched/clean, unmatched/clean, and unmatched_unseen/clean at that strength; null without pictures.
    frontier, frontier_unseen
        The latter two where matched/clean is 0.2, 0.3 and 0.4.
    """

    experiment: str
    evaluation: str
    seed: int
    train: str
    strength: float
    clean: float | None
    matched: Ratio | None
    unmatched: Ratio | None
    unseen: Ratio | None
    frontier: Marks
    frontier_unseen: Marks


def read_sweep(path: Path, data: str) -> Sweep:
    """Read a sweep's file, with the folder `data` in place of `{data}`.

    Raises
    ------
    InputError
        The file is missing, not TOML, or lacks a table; file and table are named.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a sweep's file") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise InputError(f"{path}: not TOML ({error}); correct it") from error
    try:
        text = json.dumps(found)
    except (TypeError, ValueError) as error:  # dates
        raise InputError(f"{path}: {error}; use texts, numbers, lists and true") from error
    escaped = json.dumps(data)[1:-1]
    sweep = read_record(Sweep, text.replace("{data}", escaped), path, "see the sweeps in docs/sweeps")
    for name in (*sweep.experiments, *sweep.evaluations):
        if not _NAME.fullmatch(name):
            raise InputError(f"{path}: {name!r} is the name of a folder; use letters, digits, - and _")
    for options in (sweep.model, sweep.train, *sweep.experiments.values(), *sweep.evaluations.values()):
        if own := next((key for key in options if key.replace("-", "_") in _OWN), None):
            raise InputError(f"{path}: {own} is set by the sweep itself; leave it out")
    return sweep


def words(*options: Mapping[str, Any]) -> list[str]:
    """Return options as words of a command line; of two with one name the first counts."""
    found: list[str] = []
    merged = {key: value for group in reversed(options) for key, value in group.items()}
    for key, value in merged.items():
        option = "--" + key.replace("_", "-")
        if value is True:
            found.append(option)
        elif value is not False:
            values: Sequence[Any] = value if isinstance(value, list) else [value]
            found += [word for one in values for word in (option, str(one))]
    return found


class Runner:
    """Runs the commands of a sweep in `out`; what is finished is kept, and goes on where it was interrupted."""

    def __init__(self, sweep: Sweep, out: Path) -> None:
        self._sweep, self._out = sweep, out

    def run(self, chosen: Sequence[str]) -> Iterator[SweepRow]:
        """Train and evaluate the chosen experiments, seed by seed, and yield a row for each evaluation.

        Raises
        ------
        InputError
            An option that a command refuses; the experiment is named.
        """
        for seed in self._sweep.seeds:
            for name in chosen:
                yield from self._experiment(name, seed)

    def _experiment(self, name: str, seed: int) -> Iterator[SweepRow]:
        from ..engine.commands import evaluate, train

        sweep, folder = self._sweep, self._out / name / str(seed)
        bank = {"out": folder / _BANK, "seed": seed}
        training = words(bank, sweep.experiments[name], sweep.train, sweep.model)
        _call(f"experiment {name}", "gfo-train", train.app, training)
        for evaluation, options in sweep.evaluations.items():
            out = folder / evaluation
            strengths = ",".join(map(strength_name, sweep.strengths))
            how = {"occluders": folder / _BANK, "out": out, "strength": strengths, "seed": seed}
            _call(f"evaluation {evaluation}", "gfo-eval", evaluate.app, words(how, options, sweep.model))
            strongest = run_folders(out, sweep.strengths)[max(sweep.strengths)]
            yield _row(read_summary(strongest / SUMMARY_FILE), name, evaluation, seed, training)


def _call(what: str, command: str, app: Any, arguments: list[str]) -> None:
    """Run a command in this process; what it prints goes to standard error, as standard output is for the result."""
    import typer

    print(f"$ {shlex.join([command, *arguments])}", file=sys.stderr)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            app(arguments, prog_name=command, standalone_mode=False)
        except InputError as error:
            raise InputError(f"{what}: {error}") from error
        except typer.Abort as error:
            raise KeyboardInterrupt from error
        except Exception as error:
            if not hasattr(error, "format_message"):  # a usage error of click, which typer brings along
                raise
            raise InputError(f"{what}: {error.format_message()} (see {command} --help)") from error  # type: ignore[attr-defined]


def _row(summary: Summary, experiment: str, evaluation: str, seed: int, training: list[str]) -> SweepRow:
    frontier = summary.frontier
    if frontier is None:
        raise InputError(f"{evaluation}: has no frontier; rerun its gfo-eval with --strength")
    return SweepRow(
        experiment=experiment,
        evaluation=evaluation,
        seed=seed,
        train=shlex.join(["gfo-train", *training]),
        strength=summary.strength,
        clean=summary.clean.accuracy if summary.clean else None,
        matched=summary.ratios["matched/clean"],
        unmatched=summary.ratios["unmatched/clean"],
        unseen=summary.ratios.get("unmatched_unseen/clean"),
        frontier=frontier.unmatched,
        frontier_unseen=frontier.unmatched_unseen,
    )
