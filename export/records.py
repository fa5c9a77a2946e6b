"""Records on disk as JSON: one reader and one schema for each, from the types of a frozen dataclass.

A record is a standard dataclass; pydantic checks what a file holds against its annotations, strictly: no text becomes a
number, no number becomes a flag. Relations between fields are checked in `__post_init__`, which raises `ValueError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from .errors import InputError

T = TypeVar("T")

STRICT: Final[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
"""The `__pydantic_config__` of records that take no unknown keys, no NaN and no infinity; pydantic is not imported."""

ATTRIBUTES: Final = "Attributes\n----------\n"
"""Head of the section of a numpy docstring that describes fields."""

_LONGEST = 200  # characters of a message with a value from the file


@cache
def _adapter(kind: type[T]) -> Any:
    from pydantic import TypeAdapter  # imported on use: no command needs it for --help

    return TypeAdapter(kind)


def read_record(kind: type[T], text: str | bytes, path: Path | str, fix: str, what: str = "") -> T:
    """Parse one record.

    Parameters
    ----------
    kind
        A dataclass; its `__pydantic_config__` says how unknown keys are taken.
    text
        JSON, as the file holds it.
    path
        The file, for the message.
    fix
        What to do about a file that is not valid, as `export again`.
    what
        What is wrong as a whole, as `not a manifest`; the field and its error follow in brackets.

    Raises
    ------
    InputError
        The text is not JSON, or a field is missing or has another type or value than the record allows; the first
        such field is named, a `schema` of another version before all.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        said = _first(error.errors(include_url=False))
        raise InputError(f"{path}: {f'{what} ({said})' if what else said}; {fix}") from error


def _first(errors: Sequence[Any]) -> str:
    """Return pydantic's message on one field, with the value where that is short enough to help."""
    first = next((error for error in errors if error["loc"] == ("schema",)), errors[0])
    where = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    value = first.get("input")
    # The input of a record that is no JSON at all is the whole file.
    if first["type"] != "json_invalid" and isinstance(value, str | int | float | None):
        message = f"{message}, got {value!r}"
    return f"{where}: {message}"[:_LONGEST] if where else message[:_LONGEST]


def schema(kind: type[Any]) -> dict[str, Any]:
    """Return the JSON schema of a record, as `docs/schemas` publishes it; docstrings describe its fields."""
    found = _adapter(kind).json_schema()
    for base in filter(is_dataclass, kind.__mro__[1:]):  # pydantic takes docstrings from the class itself only
        for name, field in _adapter(base).json_schema()["properties"].items():
            if "description" in field:
                found["properties"][name].setdefault("description", field["description"])
    for record in (found, *found.get("$defs", {}).values()):
        summary, _, section = record.get("description", "").partition(ATTRIBUTES)
        if section:
            record["description"] = summary.strip()
            for name, text in _attributes(section).items():
                record["properties"].get(name, {}).setdefault("description", text)
    return found


def _attributes(section: str) -> dict[str, str]:
    """Return what the section `Attributes` of a numpy docstring says of each name."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line and not line.startswith(" "):
            names = line.split(", ")
        else:
            found |= {name: f"{found.get(name, '')} {line.strip()}".strip() for name in names}
    return found
