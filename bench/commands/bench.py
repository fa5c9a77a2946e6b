"""`gfo-bench`: the pairs suite, and every suite of `bench.suites` as a subcommand."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Final

import typer

from ...engine import terminal
from ...export.errors import InputError
from ..suites import SUITES
from ..suites.base import command, parameters, with_signature

_DEFAULT = "pairs"
# Options that subcommands have replaced: their type, and the new way.
_REPLACED: Final[dict[str, tuple[Any, str]]] = {
    "scaling": (str | None, "gfo-bench scaling --points"),
    "loader": (str | None, "gfo-bench loaders --loader"),
    "train": (bool | None, "gfo-bench train"),
    "kernels": (bool | None, "gfo-bench kernels"),
}

app = typer.Typer(
    add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False, invoke_without_command=True
)


def _pairs(context: typer.Context, **given: Any) -> None:
    """Run the pairs suite, unless a subcommand follows: its options come after its name."""
    for name, (_, instead) in _REPLACED.items():
        if given.pop(name):
            raise InputError(f"--{name}: is a subcommand now; use {instead}")
    if context.invoked_subcommand is None:
        raise typer.Exit(SUITES[_DEFAULT](**given).run())
    lost = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    ]
    if lost:
        raise InputError(
            f"{', '.join(lost)}: not read by {context.invoked_subcommand}; put its own options after its name"
        )


def _replaced() -> list[inspect.Parameter]:
    """Return the replaced options, which `--help` does not show."""
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind, typer.Option(f"--{name}", hidden=True)],
        )
        for name, (kind, _) in _REPLACED.items()
    ]


def _add_commands() -> None:
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    pairs = SUITES[_DEFAULT]
    signature = [context, *parameters(pairs), *_replaced()]
    app.callback(help=inspect.getdoc(pairs))(with_signature(_pairs, signature))
    for name in SUITES.names:
        app.command(name, help=inspect.getdoc(SUITES[name]))(command(SUITES[name]))


_add_commands()


def main() -> None:
    """Run the console script."""
    terminal.run(app, "gfo-bench", resumes=False)
