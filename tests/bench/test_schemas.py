"""The published schemas are what the code gives; a field says in them what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gfo.bench.schemas import RECORDS, schema_text

PUBLISHED = Path(__file__).parents[2] / "docs" / "schemas"


@pytest.mark.parametrize("name", RECORDS)
def test_published_schemas_are_current(name: str) -> None:
    text = (PUBLISHED / f"{name}.json").read_text(encoding="utf-8")
    assert text == schema_text(name), "run python -m gfo.bench.schemas docs/schemas"


def test_nothing_else_is_published() -> None:
    assert {file.name for file in PUBLISHED.iterdir()} == {f"{name}.json" for name in RECORDS}


@pytest.mark.parametrize("name", RECORDS)
def test_every_field_is_described(name: str) -> None:
    schema: dict[str, Any] = json.loads(schema_text(name))
    # The names of Ratios' fields are the quotients themselves.
    described = [schema, *(kind for title, kind in schema.get("$defs", {}).items() if title != "Ratios")]
    for kind in described:
        assert all(len(field.get("description", "")) > 2 for field in kind["properties"].values()), kind["title"]
        assert "-----" not in kind.get("description", "")
