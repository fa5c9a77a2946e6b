"""Options of one engine, objective or another thing of a table: `key=value` pairs, checked against its dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class NoOptions:
    """The `Options` of a thing that has none."""


def whole_number(text: str) -> int | None:
    """Return the number that up to 18 digits write, None for any other text: Python refuses to read 4,300 of them."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def zeros_asked(bank: object) -> int | None:
    """Return K of `zero:K`, which stands for K occluders of zeros; None for the file of a bank."""
    kind, _, number = str(bank).partition(":")
    return whole_number(number) if kind == "zero" else None


def key_values(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """Split `key=value` texts of a repeatable option; raises `InputError` for one without a key or given twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise InputError(f"{option} {pair}: expected key=value")
        if key in found:
            raise InputError(f"{option} {pair}: {key} is given twice")
        found[key] = value
    return found


def read_options(
    kind: type[T], given: Mapping[str, Any], option: str, owner: str, shorthands: Mapping[str, str] | None = None
) -> T:
    """Build the `Options` dataclass of a thing from texts or values.

    Parameters
    ----------
    kind
        A frozen dataclass whose fields have defaults; `Literal` types list the values of a choice.
    given
        Values by field name, as texts or already typed.
    option, owner
        For the messages, as `--engine-option` and `engine openvino`.
    shorthands
        For the messages: names that have an option of their own in the commands, as `{"provider": "--provider"}`.

    Raises
    ------
    InputError
        A name that the dataclass does not have, or a value that it does not allow.
    """
    from pydantic import TypeAdapter, ValidationError

    def said(name: str) -> str:
        shorthand = (shorthands or {}).get(name)
        return f"{shorthand} {given[name]}" if shorthand else f"{option} {name}={given[name]}"

    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            listed = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"{said(name)}: {owner} has no such option, {listed}; leave it out")
    try:
        return TypeAdapter(kind).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        refused = first.get("ctx", {}).get("error")
        if isinstance(refused, InputError):  # of a `__post_init__` that knows its option
            raise refused from None
        name = str(first["loc"][0]) if first["loc"] else ""
        what = said(name) if name in given else " ".join(map(said, given))
        message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
        raise InputError(f"{what}: {owner} expects {message}") from error


def defaults(kind: type[Any]) -> dict[str, Any]:
    """Return the default of every option by its name."""
    return {name: default for name, default, _ in described_options(kind)}


def described_options(kind: type[Any]) -> list[tuple[str, Any, str]]:
    """Return name, default and help text (the field's metadata `help`) of every option."""
    return [(field.name, field.default, field.metadata.get("help", "")) for field in dataclasses.fields(kind)]
