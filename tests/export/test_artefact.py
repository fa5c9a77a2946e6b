"""The folder that an export leaves: whole, described by its manifest, and refused where anything in it has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from gfo.export.artefact import Artefact, Export, ExportConfig, export
from gfo.export.bank import OccluderBank
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import EngineUnavailable, InputError
from gfo.export.formats import FORMATS
from gfo.export.formats.base import Format, Written
from gfo.export.manifest import NOT_RUN, file_hash
from gfo.export.models.spec import ModelSpec
from gfo.export.records import save_record
from gfo.export.subject import Subject

MakeBank = Callable[..., OccluderBank]


class Text(Format):
    """A format of another package: the graph's name."""

    first = "model.txt"

    def write(
        self, graph: onnx.ModelProto, folder: Path, classifier: FrozenClassifier, config: ExportConfig
    ) -> Written:
        (folder / self.first).write_text(graph.graph.name)
        return Written([self.first], {"alphabet": "26"})


@pytest.fixture(scope="module")
def bank(make_bank: MakeBank) -> OccluderBank:
    return make_bank(fitted=torch.tensor([3, 1]), held_out=torch.tensor([7]))


@pytest.fixture(scope="module")
def exported(tiny_classifier: FrozenClassifier, bank: OccluderBank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_classifier, bank, tmp_path_factory.mktemp("exported") / "out").folder


@pytest.fixture
def artefact(exported: Path, tmp_path: Path) -> Artefact:
    """A copy for each test to spoil."""
    return Artefact.load(shutil.copytree(exported, tmp_path / "out"))


def spoil(artefact: Artefact, **changes: Any) -> Path:
    """Change the manifest's words, with a checksum that is right."""
    save_record(artefact.folder / "manifest.json", {**artefact.manifest.to_dict(), **changes})
    return artefact.folder


def test_the_manifest_tells_everything_and_reads_back(
    artefact: Artefact, tiny_classifier: FrozenClassifier, bank: OccluderBank
) -> None:
    loaded = Artefact.load(artefact.folder)
    assert loaded.manifest == artefact.manifest
    facts = json.loads((artefact.folder / "manifest.json").read_text())
    assert {"format": "onnx", "precision": "fp32", "bank": "embedded"}.items() <= facts.items()
    assert facts["parity"]["status"] == NOT_RUN
    assert facts["weights_hash"] == tiny_classifier.weights_hash
    assert facts["bank_hash"] == bank.hash
    for name, file in facts["files"].items():
        assert file == {"sha256": file_hash(artefact.folder / name), "bytes": (artefact.folder / name).stat().st_size}
    assert loaded.path == artefact.folder / "model.onnx"
    assert (loaded.model, loaded.num_classes) == (tiny_classifier.model, 5)
    inside = loaded.embedded_bank()
    assert inside is not None
    assert (inside.header, inside.hash) == (bank.header, bank.hash)
    assert (inside.fitted.tolist(), inside.held_out.tolist()) == ([3, 1], [7])


def test_the_graph_says_itself_what_it_is(artefact: Artefact, bank: OccluderBank) -> None:
    said = {entry.key: entry.value for entry in onnx.load(artefact.path).metadata_props}
    assert said["gfo.bank_hash"] == bank.hash
    assert json.loads(said["gfo.class_ids"]) == list(bank.class_ids)
    assert float(said["gfo.epsilon"]) == bank.epsilon
    assert said["gfo.precision"] == "fp32"
    assert json.loads(said["gfo.preprocessing"]) == artefact.preprocessing.to_dict()


def test_the_occluders_inside_are_given_back_or_refused(
    artefact: Artefact, bank: OccluderBank, make_bank: MakeBank
) -> None:
    inside = artefact.read_bank()
    assert torch.equal(inside.occluders, bank.occluders)
    assert (inside.header, inside.hash, inside.fitted.tolist()) == (bank.header, bank.hash, [3, 1])
    spoil(artefact, bank_hash=make_bank(epsilon=9.0).hash)
    with pytest.raises(InputError, match="the occluders inside are not those of its manifest; export again"):
        Artefact.load(artefact.folder).read_bank()


def test_without_a_bank_inside(tiny_classifier: FrozenClassifier, bank: OccluderBank, tmp_path: Path) -> None:
    free = export(tiny_classifier, bank, tmp_path / "out", ExportConfig(bank_input=True))
    assert free.embedded_bank() is None
    with pytest.raises(InputError, match="its bank is an input"):
        free.read_bank()
    assert list(free.manifest.files) == ["model.onnx"]
    assert free.manifest.bank_hash is None


def test_other_formats_have_their_own_files(
    tiny_classifier: FrozenClassifier, bank: OccluderBank, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    made = export(tiny_classifier, bank, tmp_path / "ir", ExportConfig("openvino", "bf16"))
    assert sorted(p.name for p in made.folder.iterdir()) == [
        "fit.safetensors",
        "manifest.json",
        "model.bin",
        "model.xml",
    ]
    assert "openvino" in made.manifest.built_with
    assert torch.equal(made.read_bank().occluders, bank.occluders)


@pytest.mark.parametrize("bank_input", [False, True])
def test_a_tensorrt_engine_file_is_built_without_a_gpu(
    bank_input: bool, tiny_classifier: FrozenClassifier, bank: OccluderBank, tmp_path: Path
) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    made = export(*(tiny_classifier, bank, tmp_path / "plan"), ExportConfig("trt", "fp16", bank_input, 8, ("8.9",)))
    limits = made.manifest.limits
    assert limits is not None
    assert (limits.pairs, limits.pictures) == ((1, 8, 8), (1, 8, 8))
    assert (limits.rows is not None) == bank_input
    assert (limits.library, limits.library_version) == ("tensorrt_rtx", trt.__version__)
    assert limits.compute_capabilities == ("8.9",)
    assert made.manifest.layers is not None
    assert made.manifest.layers["HALF"] > 0
    assert Artefact.load(made.folder).manifest == made.manifest
    with pytest.raises(InputError, match="its bank is an input" if bank_input else "does not give back the occluders"):
        made.read_bank()


@pytest.mark.parametrize("name", ["model.onnx", "fit.safetensors"])
def test_files_that_changed_are_refused(name: str, artefact: Artefact) -> None:
    path = artefact.folder / name
    whole = path.read_bytes()
    for spoiled in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(spoiled)
        with pytest.raises(InputError, match=r"was changed or cut off .* export again") as caught:
            Artefact.load(artefact.folder)
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        Artefact.load(artefact.folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/model.onnx", "weights.bin", "a\0b"])
def test_files_of_other_names_are_refused(name: str, artefact: Artefact) -> None:
    files = {**artefact.manifest.files, name: {"sha256": "0", "bytes": 1}}
    with pytest.raises(InputError, match="not a manifest"):
        Artefact.load(spoil(artefact, files=files))


def test_a_link_out_of_the_folder_is_refused(artefact: Artefact) -> None:
    outside = artefact.folder.parent / "moved.onnx"
    artefact.path.rename(outside)
    artefact.path.symlink_to(outside)
    with pytest.raises(InputError, match="is a link out of its folder"):
        Artefact.load(artefact.folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schema": 2, "novel": "field"}, "schema: .*, got 2"),
        ({"format": "caffe"}, "format 'caffe': expected one of onnx, openvino, trt"),
        ({"format": "openvino"}, "files: 'model.bin' is missing"),
        ({"format": "trt"}, "limits: format is 'trt'"),
        ({"bank": "elsewhere"}, "bank: .*, got 'elsewhere'"),
        ({"bank_hash": None}, "bank_hash None: bank is 'embedded'"),
        ({"files": {}}, "files: 'fit.safetensors' is missing"),
        ({"files": ["model.onnx"]}, "files: "),
        ({"files": {"model.onnx": {}, "fit.safetensors": 3}}, r"files\.model\.onnx\.sha256: Field required"),
        ({"parity": {}}, r"parity\.status: Field required"),
        ({"parity": "passed"}, "parity: .*, got 'passed'"),
        ({"parity": {"status": "fine", "reason": ""}}, r"parity\.status: .*, got 'fine'"),
        ({"num_classes": "5"}, "num_classes: .* got '5'"),
        ({"num_classes": 1}, "num_classes: .*, got 1"),
        ({"limits": {}}, r"limits\.pairs: Field required"),
        ({"extra": 1}, "extra: "),
        ({"preprocessing": {}}, r"preprocessing\.input_size: Field required"),
        ({"preprocessing": {"input_size": 9, "resize": 8}}, "preprocessing: .*expected 1 ≤ input size"),
    ],
)
def test_manifests_of_another_kind_are_refused(changes: dict[str, Any], named: str, artefact: Artefact) -> None:
    with pytest.raises(InputError, match=rf"manifest.json: not a manifest of gfo-export \(.*{named}.*; export again"):
        Artefact.load(spoil(artefact, **changes))


def test_folders_that_are_no_artefact(tmp_path: Path, artefact: Artefact) -> None:
    with pytest.raises(InputError, match="no such file; --artefact takes a folder"):
        Artefact.load(tmp_path / "nothing")
    (artefact.folder / "manifest.json").write_text('["a list"]')
    with pytest.raises(InputError, match="not a manifest"):
        Artefact.load(artefact.folder)
    header = artefact.manifest.bank_header or {}
    for changes in ({"class_ids": []}, {"folders": ["ant"]}, {"norm": "l1"}, {"weights_hash": "sha256:0"}):
        spoil(artefact, bank_header={**header, **changes})
        with pytest.raises(InputError, match="its bank is not described"):
            Artefact.load(artefact.folder).embedded_bank()


def test_a_proof_that_fails_leaves_nothing_and_one_that_ends_is_inside(
    tiny_classifier: FrozenClassifier, bank: OccluderBank, tmp_path: Path
) -> None:
    def interrupted(artefact: Artefact) -> None:
        assert artefact.path.is_file()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tiny_classifier, bank, tmp_path / "out", prove=interrupted)
    assert list(tmp_path.iterdir()) == []
    export(tiny_classifier, bank, tmp_path / "out", prove=lambda made: (made.folder / "proof").touch())
    assert (tmp_path / "out" / "proof").is_file()


def test_bad_exports_leave_nothing(
    tiny_classifier: FrozenClassifier, make_bank: MakeBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, out = make_bank(), tmp_path / "out"
    for word, changes in (
        ("--format caffe: expected one of onnx, openvino, trt", {"format": "caffe"}),
        ("--precision int4: expected one of fp32, bf16, fp16, int8", {"precision": "int4"}),
        ("--batch-size 0: expected at least 1", {"batch_size": 0}),
        ("--compute-capability 8.9: is for --format trt", {"compute_capabilities": ("8.9",)}),
    ):
        with pytest.raises(InputError) as caught:
            export(tiny_classifier, bank, out, ExportConfig(**changes))  # type: ignore[arg-type]
        assert word in str(caught.value)
    with pytest.raises(InputError, match="bank was made for weights"):
        export(tiny_classifier, make_bank(weights_hash="sha256:0"), out)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(EngineUnavailable, match=r"pip install gfo\[openvino\]"):
        export(tiny_classifier, bank, out, ExportConfig("openvino"))
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    with pytest.raises(InputError, match="is there already"):
        export(tiny_classifier, bank, out)


def test_an_export_checks_before_it_writes_and_loads_what_is_named(
    tiny_classifier: FrozenClassifier, tiny_bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "out", list[str]()
    check_fits = OccluderBank.check_fits
    monkeypatch.setattr(OccluderBank, "check_fits", lambda *given: [calls.append("fits"), check_fits(*given)])
    for bank in (tiny_bank, OccluderBank.load(tiny_bank)):
        assert Export(tiny_classifier, bank, out).bank.hash == OccluderBank.load(tiny_bank).hash
    assert calls == ["fits", "fits"]
    assert not out.exists()
    zeros = Export(ModelSpec("python:gfo_tiny:network"), "zero:2", out)
    assert (zeros.classifier.weights_hash, len(zeros.bank.occluders)) == (tiny_classifier.weights_hash, 2)
    with pytest.raises(InputError, match="zero:9: expected zero:1 to zero:5"):
        Export(tiny_classifier, Path("zero:9"), out)


def test_a_classifier_and_an_artefact_are_read_in_the_same_way(
    artefact: Artefact, tiny_classifier: FrozenClassifier
) -> None:
    subjects: list[Subject] = [tiny_classifier, artefact]
    assert [subject.name for subject in subjects] == ["python:gfo_tiny:network", str(artefact.folder)]
    assert [subject.format for subject in subjects] == [None, "onnx"]
    assert [subject.exported_precision for subject in subjects] == [None, "fp32"]
    assert [subject.key is None for subject in subjects] == [True, False]
    assert [subject.parity and subject.parity["status"] for subject in subjects] == [None, NOT_RUN]
    assert [subject.embedded_bank() is None for subject in subjects] == [True, False]
    for name in ("model", "weights", "weights_hash", "preprocessing", "num_classes"):
        assert getattr(artefact, name) == getattr(tiny_classifier, name)


def test_another_package_adds_a_format(tiny_classifier: FrozenClassifier, bank: OccluderBank, tmp_path: Path) -> None:
    with FORMATS.added("text", f"{__name__}:Text"):
        made = export(tiny_classifier, bank, tmp_path / "out", ExportConfig("text"))
        assert made.path.read_text() == "occluded_classifier"
        assert made.manifest.built_with["alphabet"] == "26"
        assert FORMATS.listed() == "onnx, openvino, trt or text"
    with pytest.raises(InputError, match="format 'text': expected one of onnx, openvino, trt"):
        Artefact.load(tmp_path / "out")


def test_banks_of_zeros(tiny_classifier: FrozenClassifier) -> None:
    bank = OccluderBank.zeros(2, tiny_classifier)
    bank.check_fits(tiny_classifier, "zero:2")
    assert bank.occluders.shape == (2, 16, 16, 3)
    assert not bank.occluders.any()
    for count in (0, 6):
        with pytest.raises(InputError, match="expected zero:1 to zero:5"):
            OccluderBank.zeros(count, tiny_classifier)
