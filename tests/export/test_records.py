"""Records: what a file may hold follows from the types, and an error names the file and the field."""

from __future__ import annotations

import contextlib
import json
from hashlib import sha256
from pathlib import Path

import pytest

from gfo.export.bank_header import BankHeader
from gfo.export.cache import key
from gfo.export.errors import InputError
from gfo.export.formats.base import Limits
from gfo.export.manifest import Manifest
from gfo.export.preprocessing import Preprocessing
from gfo.export.records import load_record, read_record, save_record, schema


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


def test_a_record_in_a_file_is_what_was_written(tmp_path: Path) -> None:
    record = Preprocessing(8, 9, mean=(0.1, 0.5, 1.0))
    path = tmp_path / "p.json"
    save_record(path, record.to_dict())
    assert load_record(Preprocessing, path, "fix it") == record
    # the same by hand, as the documentation of the files says it
    facts = json.loads(path.read_text())
    stated = facts.pop("sha256")
    assert stated == sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            assert load_record(Preprocessing, path, "fix it") == record  # white space
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            load_record(Preprocessing, path, "fix it")


def test_a_record_without_a_checksum_holds_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(Preprocessing(8, 9).to_dict()))
    assert load_record(Preprocessing, path, "fix it") == Preprocessing(8, 9)
    path.write_text(json.dumps({**Preprocessing(8, 9).to_dict(), "sha257": ""}))
    with pytest.raises(InputError, match=r"p\.json: 'sha257' is no key of it, and it has no checksum; fix it$"):
        load_record(Preprocessing, path, "fix it")
    for text in ("[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"input_size": ' + "1" * 5000 + "}", '"\ud800"', ""):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(InputError, match=r"p\.json: "):
            load_record(Preprocessing, path, "fix it")
