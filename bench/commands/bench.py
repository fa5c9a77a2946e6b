"""`gfo-bench`: the pairs suite, and every suite of `bench.suites` as a subcommand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Final, NoReturn

import typer

from ...engine import terminal
from ...engine.commands import options
from ...export.errors import InputError
from ..suites import SUITES
from ..suites.base import command, parameters

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
    suites, broken = SUITES.by_name(), SUITES.broken()
    pairs = suites.get(_DEFAULT)
    signature = [context, *(parameters(pairs) if pairs else ()), *_replaced()]
    app.callback(help=inspect.getdoc(pairs) if pairs else broken[_DEFAULT])(options.with_signature(_pairs, signature))
    for name, suite in suites.items():
        app.command(name, help=inspect.getdoc(suite))(command(suite))
    for name, reason in broken.items():
        # Whatever options follow: they are not known.
        unknown = {"ignore_unknown_options": True, "allow_extra_args": True}
        app.command(name, help=f"Cannot be used: {reason}", context_settings=unknown)(_refuses(reason))


def _refuses(reason: str) -> Callable[[], NoReturn]:
    def call() -> NoReturn:
        raise InputError(reason)

    return call


_add_commands()


def main() -> None:
    """Run the console script."""
    terminal.run(app, "gfo-bench", resumes=False)
