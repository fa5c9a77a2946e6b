"""A training on a cluster gives the bank of one process, also where a worker dies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from gfo.engine.cluster.spec import ClusterSpec
from gfo.engine.data.spec import DataSpec
from gfo.engine.devices import device_name
from gfo.engine.progress import Silent, no_progress
from gfo.engine.training.config import TrainConfig
from gfo.engine.training.distributed import _JOIN, Facts, TrainingWork
from gfo.engine.training.preserve import PreserveConfig
from gfo.engine.training.train import Job, train
from gfo.export.bank import OccluderBank
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.models.spec import ModelSpec

pytest.importorskip("distributed")

MODEL = ModelSpec("python:gfo_tiny:network")
CONFIG = TrainConfig(epsilon=8.0, epochs=3, batch_size=6, classes_together=1, precision="fp32", device="cpu")


class Heard(Silent):
    """What is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.mark.slow
def test_two_workers_train_the_bank_of_one_process(
    own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them dies over a picture; the bank is the same file, byte for byte, and its checkpoint is gone."""
    Image.new("RGB", (40, 40), (200, 200, 200)).save(own_data / "train" / "cat" / "0.jpg")
    deaths = tmp_path / "deaths"
    data, heard = DataSpec(own_data), Heard()
    alone = train(MODEL, data, tmp_path / "alone.safetensors", CONFIG)
    monkeypatch.setenv("GFO_TINY_DEATHS", str(deaths))
    deaths.write_text("1")
    config = replace(CONFIG, cluster=ClusterSpec("local:2"))
    both = train(MODEL, data, tmp_path / "both.safetensors", config, heard)
    assert deaths.read_text() == "0"
    assert both.hash == alone.hash
    assert (tmp_path / "both.safetensors").read_bytes() == (tmp_path / "alone.safetensors").read_bytes()
    assert not (tmp_path / "both.safetensors.parts").exists()
    assert sum(line.startswith("memory: about") for line in heard.said) == 1  # others would say the same


def test_a_worker_takes_over_what_another_has_begun(tiny_data: Path, tmp_path: Path) -> None:
    """Tasks that are done already, the bank among them, are not done again."""
    job = Job(MODEL, DataSpec(tiny_data), tmp_path / "bank.safetensors", CONFIG)
    with TrainingWork(job).open(no_progress) as first:
        facts = first.facts
        assert (facts.every, facts.classes) == (3, {0: 1, 1: 1, 2: 1})
        first.do(1)
        with TrainingWork(job).agreed(facts).open(no_progress) as second:
            assert second.facts.classes == {0: 1, 2: 1}
            saved = {path: path.stat().st_mtime_ns for path in facts.folder.glob("*.safetensors")}
            assert len(saved) == 1
            for task in (0, 1, 2):
                second.do(task)
            assert all(path.stat().st_mtime_ns == before for path, before in saved.items())
            second.do(_JOIN)
            first.do(_JOIN)
    alone = train(MODEL, DataSpec(tiny_data), tmp_path / "alone.safetensors", CONFIG)
    assert OccluderBank.load(job.out).hash == alone.hash
    with TrainingWork(job).open(no_progress) as late:
        assert late.facts.classes is None


def test_two_groups_in_work_have_a_state_each(tiny_data: Path, tmp_path: Path) -> None:
    job = Job(MODEL, DataSpec(tiny_data), tmp_path / "bank.safetensors", CONFIG)

    class Ended(Silent):
        steps = 0

        def advance(self, amount: float, note: str = "") -> None:
            self.steps += 1
            if self.steps > 2:
                raise KeyboardInterrupt

    for task in (0, 2):
        with pytest.raises(KeyboardInterrupt), TrainingWork(job).open(Ended()) as begun:
            begun.do(task)
    folder = tmp_path / "bank.safetensors.parts"
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["epoch-3.safetensors", "epoch-4.safetensors"]


# ---- bad input


def test_other_processes_need_a_name(tiny_classifier: FrozenClassifier, tiny_data: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, cluster=ClusterSpec("local:1"))
    with pytest.raises(InputError, match="--cluster: needs a model by its name"):
        train(tiny_classifier, DataSpec(tiny_data), tmp_path / "bank.safetensors", config)


def test_devices_must_be_alike(tiny_data: Path, tmp_path: Path) -> None:
    job = Job(MODEL, DataSpec(tiny_data), tmp_path / "bank.safetensors", CONFIG)
    with (
        pytest.raises(InputError, match=r"--cluster: a worker trains on .*, another on A100; use devices alike"),
        TrainingWork(job, "A100").open(no_progress),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_worker_that_does_not_see_the_checkpoint(tiny_data: Path, tmp_path: Path) -> None:
    job = Job(MODEL, DataSpec(tiny_data), tmp_path / "bank.safetensors", CONFIG)
    facts = Facts(device_name(torch.device("cpu")), tmp_path, 3, {})
    with (
        pytest.raises(InputError, match=r"config\.json: not seen by the worker on"),
        TrainingWork(job).agreed(facts).open(no_progress),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_preserved_folders_are_found_from_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "others").mkdir()
    assert PreserveConfig(("classes", "12", "others")).resolved().sources == ("classes", "12", str(tmp_path / "others"))
