"""The demo's data folder and networks: fixed, whole or absent, the same again."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from gfo.bench.demo import digits
from gfo.export.files import load_tensors
from gfo.export.models.digits_networks import DIGITS_NETWORKS
from gfo.export.models.digits_recipe import DIGITS_RECIPES, digits_weights_path

NAMES = tuple(DIGITS_NETWORKS)
FIRST_VAL = [48, 1, 2, 45, 4, 5, 6, 17, 18, 9]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.write_digits(tmp_path_factory.mktemp("digits") / "data")


@pytest.fixture
def quick_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One epoch, and a cache of this test's own."""
    monkeypatch.setenv("GFO_CACHE", str(tmp_path / "cache"))
    for name in NAMES:
        monkeypatch.setitem(DIGITS_RECIPES, name, dataclasses.replace(DIGITS_RECIPES[name], epochs=1))


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def test_split_is_stratified_and_covers_every_picture_once(root: Path):
    files = {split: sorted((root / split).glob("*/*.png")) for split in ("train", "val")}
    assert len(files["train"]) == 1297
    assert Counter(file.parent.name for file in files["val"]) == {str(digit): 50 for digit in range(10)}
    indices = [int(file.stem) for listed in files.values() for file in listed]
    assert sorted(indices) == list(range(1797))


def test_split_is_fixed(root: Path):
    # The first val picture of each digit: another split would make old and new results incomparable without a word.
    first = [min(int(f.stem) for f in (root / "val" / str(digit)).iterdir()) for digit in range(10)]
    assert first == FIRST_VAL


def test_folders_are_the_digits_of_scikit_learn(root: Path):
    _, labels = load_digits(return_X_y=True)
    for file in root.glob("*/*/*.png"):
        assert int(file.parent.name) == labels[int(file.stem)]
    assert json.loads((root / "classes.json").read_text()) == {str(digit): digit for digit in range(10)}


def test_pictures_are_grey_rgb_of_the_full_range(root: Path):
    pictures, _ = digits.read_split(root, "val")
    assert (pictures == pictures[:, :1]).all()
    assert [int(bound) for bound in pictures.aminmax()] == [0, 255]
    with Image.open(next((root / "val").glob("*/*.png"))) as picture:
        assert picture.mode == "RGB"


def test_writing_again_gives_the_same_bytes(root: Path, tmp_path: Path):
    assert contents(digits.write_digits(tmp_path / "again")) == contents(root)


def test_existing_folder_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(digits, "_write_pictures", lambda root: pytest.fail("written again"))
    assert digits.write_digits(root) == root


def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(root: Path) -> None:
        (root / "train").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(digits, "_write_pictures", full_disk)
    with pytest.raises(OSError, match="No space left"):
        digits.write_digits(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_faster_run_beside_this_one_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_pictures = digits._write_pictures
    target = tmp_path / "data"

    def other_run_wins(root: Path) -> None:
        monkeypatch.setattr(digits, "_write_pictures", write_pictures)
        digits.write_digits(target)
        write_pictures(root)

    monkeypatch.setattr(digits, "_write_pictures", other_run_wins)
    digits.write_digits(target)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_read_split(root: Path):
    pictures, labels = digits.read_split(root, "val")
    assert (pictures.shape, pictures.dtype) == ((500, 3, 32, 32), torch.uint8)
    assert labels.bincount().tolist() == [50] * 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("quick_recipes")
def test_training_is_reproducible_and_leaves_torch_as_it_was(root: Path, name: str):
    pictures, labels = digits.read_split(root, "val")
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    first = digits.train_network(name, pictures, labels).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.rand(3)  # whatever else the process draws must not matter
    second = digits.train_network(name, pictures, labels).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.usefixtures("quick_recipes")
def test_weights_are_trained_once_and_fit(root: Path, monkeypatch: pytest.MonkeyPatch):
    path = digits.digits_weights("digits-vgg", root)
    assert path == digits_weights_path("digits-vgg")
    DIGITS_NETWORKS["digits-vgg"]().load_state_dict(load_tensors(path)[1])
    monkeypatch.setattr(digits, "train_network", lambda *_: pytest.fail("trained again"))
    assert digits.digits_weights("digits-vgg", root) == path


@pytest.mark.usefixtures("quick_recipes")
def test_interrupted_training_leaves_no_weights(root: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        digits.digits_weights("digits-vgg", root)
    assert list(digits_weights_path("digits-vgg").parent.iterdir()) == []
