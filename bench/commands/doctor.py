"""`gfo-doctor`: this machine, the engines that run on it, and whether they are right."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...engine import terminal
from ...engine.commands import options
from ...engine.engines import ENGINES
from ...engine.names import terminal_cell, visible
from ...export.errors import InputError
from ..suites.options import names

if TYPE_CHECKING:
    from rich.table import Table

    from ..doctor import Check, EngineState

_FILE_WIDTH = 120

app = options.new_app()


@app.command()
def doctor(
    json_line: Annotated[bool, typer.Option("--json", help="Print everything as one plain line of JSON last.")] = False,
    selftest: Annotated[
        bool, typer.Option(help="Run every engine present against float64; exit 4 if one is wrong.")
    ] = False,
    engine: Annotated[
        str | None, typer.Option(help="Engines of the self-test, separated by commas; all if not given.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device of the self-test: cpu, cuda or cuda:N; auto for every kind that there is.")
    ] = "auto",
) -> None:
    """Show this machine, the versions, and which engines can run on which device."""
    if not selftest and (engine is not None or device != "auto"):
        given = f"--engine {engine}" if engine is not None else f"--device {device}"
        raise InputError(f"{given}: is read by the self-test only; add --selftest")
    engines = None if engine is None else names("--engine", engine, ENGINES.names)
    from ..doctor import as_json, engine_states, notes, self_test
    from ..environment import environment

    shown, facts, states = terminal.console(width=_FILE_WIDTH), environment(), engine_states()
    for table in (_environment_table(facts), _engine_table(states), *_option_tables()):
        terminal.print_table(shown, table)
    for note in notes(facts["packages"]):
        shown.print(visible(f"note: {note}"), markup=False)
    checks = list(self_test(engines, device)) if selftest else None
    if checks is not None:
        terminal.print_table(shown, _selftest_table(checks))
    if json_line:
        print(json.dumps(as_json(facts, states, checks)))
    if checks is not None and any(check.passed is False for check in checks):
        raise typer.Exit(terminal.FAILED)


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(terminal_cell, cells))


def _environment_table(facts: dict[str, Any]) -> Table:
    table = _table("This machine", "what", "value")
    cpu = facts["cpu"]
    _add(table, "gfo", facts["gfo"] or "not installed")
    _add(table, "Python", facts["python"])
    _add(table, "system", facts["os"])
    _add(table, "CPU", f"{cpu['model']}, {cpu['cores']} cores, {' '.join(cpu['flags'])}")
    _add(table, "memory", f"{facts['memory_gib']} GiB" if facts["memory_gib"] else "unknown")
    for gpu in facts["gpus"]:
        _add(table, "GPU", ", ".join(f"{key} {value}" for key, value in gpu.items()))
    if not facts["gpus"]:
        _add(table, "GPU", "none, or no NVIDIA driver")
    for package, version in facts["packages"].items():
        _add(table, package, version or "–")
    return table


def _engine_table(states: Sequence[EngineState]) -> Table:
    table = _table("Engines", "engine", "device", "runs here", "precisions, or why not")
    for state in states:
        detail = ", ".join(state.precisions) if state.available else state.reason
        _add(table, state.engine, state.device, "yes" if state.available else "no", detail)
    return table


def _option_tables() -> tuple[Table, Table]:
    from ...engine.training.objectives import OBJECTIVES

    return _option_table("engine", ENGINES.by_name()), _option_table("objective", OBJECTIVES.by_name())


def _option_table(what: str, classes: Mapping[str, Any]) -> Table:
    from ...export.options import described_options

    table = _table(f"Options of {what}s: --{what}-option NAME=VALUE", what, "name", "default", "meaning")
    for owner, found in classes.items():
        for name, default, meaning in described_options(found.Options):
            _add(table, owner, name, str(default), meaning)
    return table


def _selftest_table(checks: Sequence[Check]) -> Table:
    table = _table(
        "Self-test against float64",
        "engine",
        "device",
        "precision",
        "max error",
        "allowed",
        "top-1",
        "pairs/s",
        "result",
    )
    for check in checks:
        numbers = (
            _number(check.max_error, ".1e"),
            _number(check.allowed_error, ".1e"),
            _number(check.agreement, ".4f"),
            _number(check.pairs_per_second, ".0f"),
        )
        result = {True: "passed", False: f"FAILED: {check.reason}", None: f"not run: {check.reason}"}[check.passed]
        _add(table, check.engine, check.device, check.precision, *numbers, result)
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def main() -> None:
    """Run the console script."""
    terminal.run(app, "gfo-doctor", resumes=False)
