"""Sweeps: trainings that differ in some options, evaluated alike, from one TOML file.

    seeds = [0, 1]
    strengths = [0.5, 1.0]              # see gfo-eval --strength; two or more

    [models.digits]                     # options of both commands, one table for each network
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
import functools
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

from ..engine.evaluation.bootstrap import mean
from ..engine.evaluation.config import run_folders, strength_name
from ..engine.evaluation.frontier import Quotients, at_marks
from ..engine.evaluation.metrics import quotients_of_strengths
from ..engine.evaluation.results import MARKS, Marks, Ratio, RatioName
from ..engine.evaluation.store import RunStore
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
    models
        Options of every command, by the name of a network.
    train
        Options of every gfo-train.
    evaluations
        Options of each gfo-eval, by its name.
    experiments
        Options of one gfo-train, by the name of the experiment.
    """

    __pydantic_config__: ClassVar = STRICT

    seeds: Annotated[list[Annotated[int, Ge(0)]], MinLen(1)]
    strengths: Annotated[list[float], MinLen(2)]
    models: Annotated[dict[str, Options], MinLen(1)]
    train: Options
    evaluations: Annotated[dict[str, Options], MinLen(1)]
    experiments: Annotated[dict[str, Options], MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """What one bank of a sweep was found to do in one evaluation, or the banks of all seeds in the mean.

    Attributes
    ----------
    model, experiment, evaluation
        Which training of which network, evaluated on which pictures.
    seed
        Its seed; null for the mean over seeds.
    train
        The command that trained it; null for a mean.
    strength
        Largest strength of the evaluation.
    clean
        Accuracy without an occluder.
    matched, unmatched, unseen
        matched/clean, unmatched/clean, and unmatched_unseen/clean at that strength; null without pictures.
    frontier, frontier_unseen
        The latter two where matched/clean is 0.2, 0.3 and 0.4.
    difference
        `frontier` minus that of the first experiment, of the same network, seed and evaluation: paired, as both have
        the same classes and pictures. Null for the first one itself, and for a bank of other classes or pictures.

    The intervals of a mean are over pictures and classes; the rows of its seeds show how much they scatter.
    """

    model: str
    experiment: str
    evaluation: str
    seed: int | None
    train: str | None
    strength: float
    clean: float | None
    matched: Ratio | None
    unmatched: Ratio | None
    unseen: Ratio | None
    frontier: Marks
    frontier_unseen: Marks
    difference: Marks | None


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
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise InputError(f"{path}: seeds: names one twice; leave it out")
    drawn = any(str(options.get("classes", "")).startswith("random:") for options in _tables(sweep))
    if drawn and len(sweep.seeds) > 1:
        raise InputError(f"{path}: classes = random:N draws others for each seed; name the classes")
    for name in (*sweep.models, *sweep.experiments, *sweep.evaluations):
        if not _NAME.fullmatch(name):
            raise InputError(f"{path}: {name!r} is the name of a folder; use letters, digits, - and _")
    for options in _tables(sweep):
        if own := next((key for key in options if key.replace("-", "_") in _OWN), None):
            raise InputError(f"{path}: {own} is set by the sweep itself; leave it out")
    return sweep


def _tables(sweep: Sweep) -> Sequence[Options]:
    return (*sweep.models.values(), sweep.train, *sweep.experiments.values(), *sweep.evaluations.values())


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


@dataclass(frozen=True)
class _Bank:
    """A trained bank and its RUNs, by strength."""

    model: str
    experiment: str
    evaluation: str
    seed: int
    train: str
    runs: Mapping[float, Path]

    @functools.cached_property
    def summary(self) -> Summary:
        """Of the strongest."""
        return read_summary(self.runs[max(self.runs)] / SUMMARY_FILE)

    @functools.cached_property
    def pictures(self) -> Any:
        """The classes of the bank and the pictures that were evaluated, to be compared."""
        store = RunStore.open(self.runs[max(self.runs)])
        readable = store.readable().tolist()
        return store.occluders.tolist(), store.paths, store.labels.tolist(), readable

    @functools.cached_property
    def quotients(self) -> Mapping[float, Quotients]:
        """The ratios by strength, with replicates that resample alike in every bank."""
        return quotients_of_strengths([RunStore.open(run) for run in self.runs.values()])


class Runner:
    """Runs the commands of a sweep in `out`; what is finished is kept, and goes on where it was interrupted."""

    def __init__(self, sweep: Sweep, out: Path) -> None:
        self._sweep, self._out = sweep, out

    def run(self, models: Sequence[str], experiments: Sequence[str]) -> Iterator[SweepRow]:
        """Train and evaluate experiments with each network, seed by seed; yield a row for each evaluation, then means.

        Raises
        ------
        InputError
            An option that a command refuses; the experiment is named.
        """
        for model in models:
            banks = [b for seed in self._sweep.seeds for name in experiments for b in self._banks(model, name, seed)]
            for evaluation in self._sweep.evaluations:
                yield from _rows([bank for bank in banks if bank.evaluation == evaluation])

    def _banks(self, model: str, name: str, seed: int) -> Iterator[_Bank]:
        from ..engine.commands import evaluate, train

        sweep, folder, network = self._sweep, self._out / model / name / str(seed), self._sweep.models[model]
        bank = {"out": folder / _BANK, "seed": seed}
        training = words(bank, sweep.experiments[name], sweep.train, network)
        _call(f"experiment {name} of {model}", "gfo-train", train.app, training)
        for evaluation, options in sweep.evaluations.items():
            out = folder / evaluation
            strengths = ",".join(map(strength_name, sweep.strengths))
            how = {"occluders": folder / _BANK, "out": out, "strength": strengths, "seed": seed}
            _call(f"evaluation {evaluation} of {model}", "gfo-eval", evaluate.app, words(how, options, network))
            runs = run_folders(out, sweep.strengths)
            yield _Bank(model, name, evaluation, seed, shlex.join(["gfo-train", *training]), runs)


def _rows(banks: Sequence[_Bank]) -> Iterator[SweepRow]:
    """Yield the rows of one network and evaluation: one for each bank, and where there are several seeds the means."""
    first = {bank.seed: bank for bank in reversed(banks)}
    for bank in banks:
        yield _row(bank, None if bank is first[bank.seed] else _difference([bank], first))
    for name in dict.fromkeys(bank.experiment for bank in banks):
        alike = [bank for bank in banks if bank.experiment == name]
        if len(alike) > 1:
            yield _mean_row(alike, None if name == banks[0].experiment else _difference(alike, first))


def _difference(banks: Sequence[_Bank], first: Mapping[int, _Bank]) -> Marks | None:
    if any(bank.pictures != first[bank.seed].pictures for bank in banks):
        return None
    pairs = [
        (at_marks(bank.quotients, "unmatched/clean"), at_marks(first[bank.seed].quotients, "unmatched/clean"))
        for bank in banks
    ]
    classes = banks[0].quotients[max(banks[0].runs)]["unmatched/clean"][1]
    return {mark: mean([ours[mark] - theirs[mark] for ours, theirs in pairs]).ratio(classes) for mark in MARKS}


def _mean_row(banks: Sequence[_Bank], difference: Marks | None) -> SweepRow:
    strongest = [bank.quotients[max(bank.runs)] for bank in banks]
    cleans = [bank.summary.clean.accuracy for bank in banks if bank.summary.clean]

    def of(name: RatioName) -> Ratio | None:
        return mean([quotients[name][0] for quotients in strongest]).ratio(strongest[0][name][1])

    def frontier(name: RatioName) -> Marks:
        at = [at_marks(bank.quotients, name) for bank in banks]
        return {mark: mean([marks[mark] for marks in at]).ratio(strongest[0][name][1]) for mark in MARKS}

    return SweepRow(
        model=banks[0].model,
        experiment=banks[0].experiment,
        evaluation=banks[0].evaluation,
        seed=None,
        train=None,
        strength=banks[0].summary.strength,
        clean=sum(cleans) / len(cleans) if cleans else None,
        matched=of("matched/clean"),
        unmatched=of("unmatched/clean"),
        unseen=of("unmatched_unseen/clean"),
        frontier=frontier("unmatched/clean"),
        frontier_unseen=frontier("unmatched_unseen/clean"),
        difference=difference,
    )


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


def _row(bank: _Bank, difference: Marks | None) -> SweepRow:
    summary = bank.summary
    if summary.frontier is None:
        raise InputError(f"{bank.evaluation}: has no frontier; rerun its gfo-eval with --strength")
    return SweepRow(
        model=bank.model,
        experiment=bank.experiment,
        evaluation=bank.evaluation,
        seed=bank.seed,
        train=bank.train,
        strength=summary.strength,
        clean=summary.clean.accuracy if summary.clean else None,
        matched=summary.ratios["matched/clean"],
        unmatched=summary.ratios["unmatched/clean"],
        unseen=summary.ratios.get("unmatched_unseen/clean"),
        frontier=summary.frontier.unmatched,
        frontier_unseen=summary.frontier.unmatched_unseen,
        difference=difference,
    )
