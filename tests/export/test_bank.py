"""The bank: what is saved comes back, and every way in which a file can be wrong is named."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gfo.export.bank import OccluderBank, picture_key
from gfo.export.bank_header import BankHeader
from gfo.export.bank_rows import read_rows
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.files import save_tensors
from gfo.export.preprocessing import Preprocessing
from gfo.export.records import read_record

MakeBank = Callable[..., OccluderBank]


def test_what_is_saved_comes_back(make_bank: MakeBank, tmp_path: Path) -> None:
    keys = {"fitted": torch.tensor([5, -7]), "held_out": torch.tensor([2**62])}
    bank = make_bank(objective={"kappa": 10.0}, seed=3, **keys)
    bank.save(tmp_path / "new folder" / "bank.safetensors")
    loaded = OccluderBank.load(tmp_path / "new folder" / "bank.safetensors")
    assert loaded.header == bank.header
    assert loaded.hash == bank.hash
    for name in ("occluders", "fitted", "held_out"):
        assert torch.equal(getattr(loaded, name), getattr(bank, name))
    assert (loaded.class_ids, loaded.epsilon, loaded.norm) == ((3, 0, 4), 8.0, "linf")
    assert [p.name for p in (tmp_path / "new folder").iterdir()] == ["bank.safetensors"]


def test_the_header_is_json_that_others_can_read(tiny_bank: Path) -> None:
    with safe_open(tiny_bank, framework="pt") as file:
        header = json.loads(file.metadata()["gfo"])
    assert header["schema"] == 1
    assert header["class_ids"] == [3, 0, 4]
    assert header["preprocessing"]["input_size"] == 16
    assert read_record(BankHeader, json.dumps(header), tiny_bank, "fix") == OccluderBank.load(tiny_bank).header


def test_the_hash_is_of_values_and_header(make_bank: MakeBank) -> None:
    bank = make_bank()
    nudged = bank.occluders.clone()
    nudged[0, 0, 0, 0] *= 0.5
    hashes = [bank.hash, make_bank(occluders=nudged).hash, make_bank(seed=1).hash, make_bank(epsilon=9.0).hash]
    assert len(set(hashes)) == 4
    assert make_bank().hash == bank.hash


def test_rows_are_read_with_the_hash_of_the_whole_bank(make_bank: MakeBank, tmp_path: Path) -> None:
    bank = make_bank(seed=3, fitted=torch.tensor([5, -7]))
    bank.save(tmp_path / "bank.safetensors")
    found, rows = read_rows(tmp_path / "bank.safetensors", [2, 0])
    assert found == bank.hash
    assert sorted(rows) == [0, 2]
    assert all(torch.equal(rows[row], bank.occluders[row]) for row in rows)
    assert read_rows(tmp_path / "bank.safetensors", [])[0] == bank.hash


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), length=st.none() | st.integers(0, 10**6))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_of_a_damaged_bank_are_refused_or_have_another_hash(
    tiny_bank: Path, tmp_path: Path, place: int, bit: int, length: int | None
) -> None:
    """Or they are what they were: where the damage is to the pictures that training used, or to the checksum."""
    content, whole = bytearray(tiny_bank.read_bytes()), OccluderBank.load(tiny_bank)
    content[place % len(content)] ^= 1 << bit
    (tmp_path / "bank.safetensors").write_bytes(content if length is None else content[: length % len(content)])
    with contextlib.suppress(InputError):
        found, rows = read_rows(tmp_path / "bank.safetensors", [1])
        assert found != whole.hash or torch.equal(rows[1], whole.occluders[1])


def spoiled(occluders: torch.Tensor, value: float) -> torch.Tensor:
    occluders = occluders.clone()
    occluders[1, 3, 2, 0] = value
    return occluders


SIGNS = torch.ones(3, 16, 16, 3) * 8.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"occluders": SIGNS.half()}, "float16"),
        ({"occluders": SIGNS[:2]}, r"\[2, 16, 16, 3\] but the header says float32 \[3, 16, 16, 3\]"),
        ({"occluders": SIGNS[:, :8]}, r"\[3, 8, 16, 3\]"),
        ({"preprocessing": Preprocessing(20, 20)}, r"\[3, 20, 20, 3\]"),
        ({"folders": ("ant", "bee")}, "2 folders"),
        ({"occluders": SIGNS[:0], "class_ids": (), "folders": ()}, "0 folders"),
        ({"class_ids": (3, 0, 3)}, "appears twice"),
        ({"folders": ("ant", "bee", "ant")}, "appears twice"),
        ({"occluders": spoiled(SIGNS, float("nan"))}, "the occluder of bee holds NaN"),
        ({"occluders": spoiled(SIGNS, float("-inf"))}, "the occluder of bee holds NaN or infinity"),
        ({"norm": "l1"}, "norm 'l1': expected one of linf, l2"),
        ({"occluders": spoiled(SIGNS, 8.1)}, "reaches 8.1 but ε is 8"),
        ({"norm": "l2"}, "reaches 221.7"),  # √(16 · 16 · 3) · 8
        ({"epsilon": float("nan")}, "epsilon: .* got nan"),
        ({"epsilon": 0.0}, r"epsilon: .* got 0\.0"),
        ({"epsilon": "much"}, "epsilon: .* got 'much'"),
        ({"schema": 2, "novel": "field"}, "schema: .* got 2"),
        ({"novel": "field"}, "novel: "),
        ({"seed": 0.5}, "seed: "),
        ({"fitted": torch.zeros(2)}, "int64"),
    ],
)
def test_a_bank_that_does_not_add_up_is_refused(
    changes: dict[str, Any], named: str, make_bank: MakeBank, tmp_path: Path
) -> None:
    changes = dict(changes)
    bank, tensors = make_bank(), {}
    for name in ("occluders", "fitted", "held_out"):
        tensors[name] = changes.pop(name, getattr(bank, name))
    preprocessing = changes.pop("preprocessing", bank.header.preprocessing).to_dict()
    header = json.dumps({**bank.header.to_dict(), **changes, "preprocessing": preprocessing})
    save_tensors(tmp_path / "bank.safetensors", tensors, {"gfo": header})
    with pytest.raises(InputError, match=named) as caught:
        OccluderBank.load(tmp_path / "bank.safetensors")
    assert str(tmp_path / "bank.safetensors") in str(caught.value)
    assert "again" in str(caught.value)


def test_headers_that_do_not_add_up_cannot_be_made(make_bank: MakeBank) -> None:
    for changes in ({"class_ids": (1,)}, {"folders": ("ant", "ant", "bee")}, {"norm": "l1"}):
        with pytest.raises(ValueError, match=r"folders|norm"):
            make_bank(**changes)


def test_a_rounding_beyond_the_ball_is_let_through(make_bank: MakeBank, tmp_path: Path) -> None:
    make_bank(occluders=SIGNS * (1 + 1e-6)).save(tmp_path / "bank.safetensors")
    assert OccluderBank.load(tmp_path / "bank.safetensors").occluders.max() > 8


def cut(path: Path, tiny_bank: Path) -> None:
    path.write_bytes(tiny_bank.read_bytes()[:-100])


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All of a bank's tensors but its checksum."""
    return {name: tensor for name, tensor in load_file(path).items() if name != "sha256"}


def foreign(path: Path, _: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def without_header(path: Path, tiny_bank: Path) -> None:
    save_file(tensors_of(tiny_bank), path)


def with_another_header(header: str) -> Callable[[Path, Path], None]:
    return lambda path, tiny_bank: save_file(tensors_of(tiny_bank), path, metadata={"gfo": header})


def with_a_foreign_tensor(path: Path, tiny_bank: Path) -> None:
    metadata, tensors = {"gfo": OccluderBank.load(tiny_bank).header.to_json()}, tensors_of(tiny_bank)
    save_file({**tensors, "sha257": torch.zeros(32, dtype=torch.uint8)}, path, metadata=metadata)


def with_another_value(path: Path, tiny_bank: Path) -> None:
    content = bytearray(tiny_bank.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (None, "bank not found; create one with gfo-train"),
        (lambda path, _: path.mkdir(), "bank not found"),
        (lambda path, _: path.write_bytes(b""), "not a readable safetensors file"),
        (lambda path, _: path.write_text("some text that is longer than a header"), "not a readable safetensors file"),
        (cut, "not a readable safetensors file"),
        (foreign, "not an occluder bank"),
        (without_header, "not an occluder bank"),
        (with_a_foreign_tensor, "not an occluder bank"),
        (with_another_value, "its checksum does not match"),
        (with_another_header("{"), "header is not valid"),
        (with_another_header("[1]"), "header is not valid"),
        (with_another_header("{}"), "header is not valid"),
        (with_another_header('{"schema": 1, "preprocessing": {"input_size": "many"}}'), "header is not valid"),
    ],
)
def test_a_file_that_is_no_bank_is_refused(
    write: Callable[[Path, Path], None] | None, named: str, tiny_bank: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bank.safetensors"
    if write:
        write(path, tiny_bank)
    with pytest.raises(InputError, match=named) as caught:
        OccluderBank.load(path)
    assert str(path) in str(caught.value)


def test_its_own_classifier_fits(tiny_bank: Path, tiny_classifier: FrozenClassifier) -> None:
    OccluderBank.load(tiny_bank).check_fits(tiny_classifier, tiny_bank)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "timm/resnet18"}, "for model python:gfo_tiny:network, not timm/resnet18; train a bank"),
        ({"weights_hash": "sha256:0"}, "for weights sha256:.*, not sha256:0"),
        ({"preprocessing": Preprocessing(20, 22)}, "for preprocessing input_size 16, not 20; resize 18, not 22"),
        ({"num_classes": 4}, r"class id 4, the model has outputs 0\.\.3"),
    ],
)
def test_another_classifier_does_not_fit(
    changes: dict[str, Any], named: str, tiny_bank: Path, tiny_classifier: FrozenClassifier
) -> None:
    with pytest.raises(InputError, match=named):
        OccluderBank.load(tiny_bank).check_fits(replace(tiny_classifier, **changes), tiny_bank)


def test_a_negative_class_id_does_not_fit(make_bank: MakeBank, tiny_classifier: FrozenClassifier) -> None:
    with pytest.raises(InputError, match="class id -1"):
        make_bank(class_ids=(3, -1, 4)).check_fits(tiny_classifier, "bank")


def test_picture_keys_are_64_bit_and_apart() -> None:
    keys = {picture_key(f"train/n01443537/{i}.JPEG") for i in range(2000)}
    assert len(keys) == 2000
    assert min(keys) < 0 < max(keys)
    assert torch.tensor(list(keys)).dtype == torch.int64
    assert picture_key("a") == int.from_bytes(bytes.fromhex("ca978112ca1bbdca"), "little", signed=True)  # SHA-256("a")
