"""Records: what a file may hold follows from the types, and an error names the file and the field."""

from __future__ import annotations

import pytest

from gfo.export.bank_header import BankHeader
from gfo.export.cache import key
from gfo.export.errors import InputError
from gfo.export.formats.base import Limits
from gfo.export.manifest import Manifest
from gfo.export.preprocessing import Preprocessing
from gfo.export.records import read_record, schema


def test_a_record_is_read_strictly() -> None:
    text = '{"input_size": 8, "resize": 9, "mean": [0, 0.5, 1]}'
    assert read_record(Preprocessing, text, "p.json", "fix it") == Preprocessing(8, 9, mean=(0.0, 0.5, 1.0))
    for spoiled, named in (
        ('"8"', "input_size: .*, got '8'"),
        ("true", "input_size: .*, got True"),
        ("NaN", "input_size: .*, got nan"),
        ("[]", "input_size: .*"),
    ):
        with pytest.raises(InputError, match=rf"^p.json: {named}; fix it$"):
            read_record(Preprocessing, text.replace("8", spoiled, 1), "p.json", "fix it")
    with pytest.raises(InputError, match=r"^p.json: not a record \(Invalid JSON.*\); fix it$"):
        read_record(Preprocessing, text[:-1], "p.json", "fix it", "not a record")
    with pytest.raises(InputError, match="colour: "):
        read_record(Preprocessing, text.replace("}", ', "colour": 1}'), "p.json", "fix it")


@pytest.mark.parametrize("kind", [BankHeader, Limits, Manifest, Preprocessing])
def test_every_record_has_a_schema_that_takes_no_other_keys(kind: type[object]) -> None:
    published = schema(kind)
    assert published["additionalProperties"] is False
    assert published["required"]


def test_numbers_have_one_form() -> None:
    assert Preprocessing(8, 8, mean=(0, 0, 0), std=(1, 1, 1)).to_dict()["mean"] == [0.0, 0.0, 0.0]
    assert repr(Preprocessing(8, 8, mean=(0, 0, 0)).mean) == "(0.0, 0.0, 0.0)"


def test_cache_keys_depend_on_the_facts_alone() -> None:
    facts = {"b": [1, 2], "a": {"y": None, "x": 0.5}}
    assert key(facts) == key({"a": {"x": 0.5, "y": None}, "b": (1, 2)})
    assert len(key(facts)) == 32
    assert key({**facts, "b": [2, 1]}) != key(facts)
