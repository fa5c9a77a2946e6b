"""JSON schemas of the records that gfo writes, from the code: `python -m gfo.bench.schemas docs/schemas`.

Records come from every floor, and only this one may import them all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Final

from ..export.files import atomic_path
from ..export.records import schema

RECORDS: Final[Mapping[str, str]] = {
    "summary": "..engine.evaluation.summary:Summary",
    "run": "..engine.evaluation.summary:Run",
    "manifest": "..export.manifest:Manifest",
    "bank-header": "..export.bank_header:BankHeader",
    "bench-row": ".rows:flat_record",
    "compile-row": "..kernels.compile:CompileRow",
    "sweep-row": ".sweep:SweepRow",
}
"""Class of each record, or a function that returns it, relative to this package, by the name of its schema's file."""

_FILES: Final = ("summary", "manifest")
"""Records that have a file of their own, with a checksum."""

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def schema_text(name: str) -> str:
    """Return the contents of `<name>.json` for a record of `RECORDS`."""
    module, _, found = RECORDS[name].partition(":")
    record = getattr(import_module(module, __package__), found)
    described = schema(record if isinstance(record, type) else record(), sealed=name in _FILES)
    return json.dumps({"$schema": _DIALECT, **described}, indent=1, ensure_ascii=False) + "\n"


def write_schemas(folder: Path) -> None:
    """Write the schema of every record into a folder. Raises `OSError` where that cannot be done."""
    for name in RECORDS:
        with atomic_path(folder / f"{name}.json") as partial:
            partial.write_text(schema_text(name), encoding="utf-8")


if __name__ == "__main__":
    import typer

    typer.run(write_schemas)
