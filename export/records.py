"""Records on disk as JSON: one reader and one schema for each, from the types of a frozen dataclass.

A record is a standard dataclass; pydantic checks what a file holds against its annotations, strictly: no text becomes a
number, no number becomes a flag. Relations between fields are checked in `__post_init__`, which raises `ValueError`.

A file that holds a record alone has a checksum of it, the key `sha256`: `save_record` and `load_record`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from .errors import InputError
from .files import atomic_path

T = TypeVar("T")

STRICT: Final[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
"""The `__pydantic_config__` of records that take no unknown keys, no NaN and no infinity; pydantic is not imported."""

ATTRIBUTES: Final = "Attributes\n----------\n"
"""Head of the section of a numpy docstring that describes fields."""

_CHECKSUM: Final = "sha256"
_SEAL: Final = "SHA-256 of the other keys: as JSON with sorted keys, without spaces, in ASCII."
_LONGEST = 200  # characters of a message with a value from the file


@cache
def _adapter(kind: type[T]) -> Any:
    from pydantic import TypeAdapter  # imported on use: no command needs it for --help

    return TypeAdapter(kind)


def checksum(facts: Mapping[str, Any]) -> str:
    """Return SHA-256 of a JSON object as hexadecimal digits: with sorted keys, without spaces, in ASCII.

    Raises `ValueError` on NaN or infinity.
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def save_record(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a record, as JSON types, whole or not at all, with the checksum that `load_record` checks.

    Raises
    ------
    OSError
        The file cannot be written; the error names `path`.
    """
    text = json.dumps({**facts, _CHECKSUM: checksum(facts)}, indent=1, allow_nan=False)
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="ascii")


def load_record(kind: type[T], path: Path, fix: str, what: str = "") -> T:
    """Read a file that `save_record` wrote; see `read_record` for the parameters.

    A file without a checksum, from an older version, is taken if it holds no key but the record's own: otherwise damage
    to the checksum's name would be taken for its absence.

    Raises
    ------
    InputError
        The file is not what was written; see `read_record`, too.
    OSError
        It cannot be read.
    """
    content = path.read_bytes()
    try:
        facts, sealed = unsealed(content)
    except TypeError:
        return read_record(kind, content, path, fix, what)  # pydantic says what it is
    except ValueError as error:
        raise InputError(f"{path}: {error}; {fix}") from error
    if not sealed and (foreign := sorted(set(facts) - {field.name for field in fields(kind)})):  # type: ignore[arg-type]
        raise InputError(f"{path}: {foreign[0]!r} is no key of it, and it has no checksum; {fix}")
    return read_record(kind, json.dumps(facts), path, fix, what)


def unsealed(content: bytes) -> tuple[dict[str, Any], bool]:
    """Return a JSON object without its checksum, and whether it had one.

    Raises
    ------
    TypeError
        The content is not a JSON object.
    ValueError
        It is not what was written.
    """
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TypeError(str(error)) from error
    if not isinstance(facts, dict):
        raise TypeError(f"a {type(facts).__name__}")
    stated = facts.pop(_CHECKSUM, None)
    if stated is not None and stated != checksum(facts):
        raise ValueError("its checksum does not match")
    return facts, stated is not None


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


def schema(kind: type[Any], *, sealed: bool = False) -> dict[str, Any]:
    """Return the JSON schema of a record, as `docs/schemas` publishes it; docstrings describe its fields.

    `sealed` is for a record that has a file of its own, with its checksum.
    """
    found = _adapter(kind).json_schema()
    if sealed:
        found["properties"][_CHECKSUM] = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": _SEAL}
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
