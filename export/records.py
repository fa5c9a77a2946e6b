"""Records that lie on a disk as JSON: one reader and one schema for each, from the types of a frozen dataclass.

A record is a standard dataclass; pydantic checks what a file holds against its annotations, strictly: no text becomes a
number, no number becomes a flag.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from .errors import InputError

T = TypeVar("T")


@cache
def _adapter(kind: type[T]) -> Any:
    from pydantic import TypeAdapter  # loaded on use: no command needs it for --help

    return TypeAdapter(kind)


def read_record(kind: type[T], text: str | bytes, path: Path | str, fix: str) -> T:
    """Parse one record.

    Parameters
    ----------
    kind
        A dataclass; its `__pydantic_config__` says how keys that it does not know are taken.
    text
        JSON, as the file holds it.
    path
        The file, for the message.
    fix
        What to do about a file that is not valid, as `export again`.

    Raises
    ------
    InputError
        The text is not JSON, or a field is missing or has another type or value than the record allows; the first
        such field is named.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where + ': ' if where else ''}{_said(first)}; {fix}") from error


def _said(error: Any) -> str:
    """Return pydantic's message, with the value where that is short enough to help."""
    message = str(error["msg"]).removeprefix("Value error, ")
    value = error.get("input")
    return f"{message}, got {value!r}"[:200] if isinstance(value, str | int | float | None) else message


def schema(kind: type[Any]) -> dict[str, Any]:
    """Return the JSON schema of a record, as `docs/schemas` publishes it."""
    return _adapter(kind).json_schema()
