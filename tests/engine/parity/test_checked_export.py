"""`gfo-export` and `gfo-eval --artefact` as their users run them: parity, its failure, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor

from gfo.engine.data.spec import DataSpec
from gfo.engine.engines.choice import EngineChoice
from gfo.engine.engines.onnxruntime import OnnxRuntimeEngine
from gfo.engine.engines.openvino import OpenVinoEngine
from gfo.engine.evaluation.config import EvaluationConfig
from gfo.engine.evaluation.evaluate import evaluate as evaluate_pairs
from gfo.engine.parity.checked_export import ParityConfig, export_checked
from gfo.engine.reporting import report
from gfo.export.artefact import ExportConfig
from gfo.export.bank import OccluderBank
from gfo.export.models.spec import ModelSpec

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., None]
Command = Callable[..., list[object]]
EXPORT = ("gfo-export", "--model", "python:gfo_tiny:network")
ENGINES = ("onnxruntime", "openvino")


def parity_of(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the manifest says of it, and the report."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest["parity"], json.loads((folder / "parity.json").read_text())


@pytest.fixture(scope="module")
def artefact(tiny_data: Path, tiny_bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32 ONNX with the bank inside, checked on real files; don't write to it."""
    out = tmp_path_factory.mktemp("artefact") / "out"
    check = ParityConfig(DataSpec(tiny_data))
    export_checked(ModelSpec("python:gfo_tiny:network"), tiny_bank, out, check=check)
    return out


def test_parity_on_pictures_is_passed_by_every_engine(artefact: Path) -> None:
    said, full = parity_of(artefact)
    assert (said["status"], said["reason"]) == ("passed", "")
    assert said["engines"] == dict.fromkeys(ENGINES, "passed")
    assert said["pictures"].startswith("18 pictures of")
    for engine in full["engines"]:
        assert engine["gate"] == "fp32"
        assert engine["kinds"]["matched"]["agreement"] == 1
        assert engine["pairs"] == 18 * 4  # three classes: clean, matched, two unmatched


@pytest.mark.parametrize(
    ("options", "form", "engines"),
    [
        (("--format", "onnx", "--bank-input"), "onnx, fp32, bank input", ("onnxruntime", "openvino")),
        (("--format", "openvino", "--precision", "bf16"), "openvino, bf16, bank embedded", ("openvino",)),
    ],
)
def test_the_command_says_what_it_made(
    options: tuple[str, ...], form: str, engines: tuple[str, ...], tiny_bank: Path, tmp_path: Path, run: Run
) -> None:
    code, out, err = run(*EXPORT, "--occluders", tiny_bank, "--out", tmp_path / "out", *options)
    assert code == 0, err
    assert form in out
    assert out.splitlines()[-1].startswith("parity: ")
    said, full = parity_of(tmp_path / "out")
    assert said["pictures"] == "synthetic"
    assert set(said["engines"]) == set(engines)
    if "bf16" in options and said["status"] != "not run":  # a CPU may have none
        assert full["engines"][0]["gate"] == "rounding"
    else:
        assert said["status"] in ("passed", "not run")


INT8 = ("--precision", "int8", "--calibration-pictures", 12)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_int8_is_exported_judged_and_evaluated(
    form: str, tiny_data: Path, tiny_bank: Path, tmp_path: Path, run: Run
) -> None:
    pytest.importorskip("nncf")
    out = tmp_path / "out"
    words = ("--occluders", tiny_bank, "--data", tiny_data, "--format", form, "--out", out)
    code, _, err = run(*EXPORT, *words, *INT8)
    said, full = parity_of(out)
    assert code == 0, (err, said)
    assert f"calibrating on 12 pictures of {tiny_data / 'train'}, 6 of them occluded" in err
    assert "in int8: " in err
    assert "error of the logits: all " in err
    ran = [each for each in full["engines"] if each["status"] == "passed"]
    assert [each["engine"] for each in ran] == [name for name in ENGINES if form == "onnx" or name == form]
    for each in ran:
        assert each["gate"] == "accuracy"
        for kind in ("clean", "matched", "unmatched"):
            assert len(each["kinds"][kind]["ci95_points"]) == 2
            assert 0 <= each["kinds"][kind]["agreement"] <= 1
    facts = json.loads((out / "manifest.json").read_text())
    assert facts["int8"]["calibration"]["bank_hash"] == facts["bank_hash"]
    assert facts["int8"]["calibration"]["seed"] == 0
    assert "nncf" in facts["built_with"]
    words = ("--artefact", out, "--data", tiny_data, "--split", "val", "--engine", "openvino")
    code, _, err = run("gfo-eval", *words, "--out", tmp_path / "run")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["precision"] == "int8"


def test_int8_that_answers_otherwise_fails_the_export_with_4(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    infer = OpenVinoEngine._infer
    monkeypatch.setattr(OpenVinoEngine, "_infer", lambda *given: -infer(*given))
    words = ("--occluders", tiny_bank, "--calibration", tiny_data, "--out", tmp_path / "out")
    code, printed, _ = run(*EXPORT, *words, *INT8)
    said, _ = parity_of(tmp_path / "out")
    assert code == 4, printed
    assert said["status"] == "failed"
    assert said["engines"]["openvino"] == "failed"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--precision", "int8"), ("--precision int8", "pass --calibration or --data")),
        (("--precision", "bf16", "--calibration", "DATA"), ("--calibration", "not read at --precision bf16")),
        (("--calibration-pictures", 9), ("--calibration-pictures", "not read at --precision fp32")),
        (("--precision", "int8", "--calibration", "DATA/val"), ("val", "no train folder", "validation pictures")),
        (("--precision", "int8", "--calibration", "DATA", "--calibration-pictures", 1), ("expected at least 2",)),
    ],
)
def test_calibrations_that_cannot_be_are_refused(
    words: tuple[object, ...],
    named: tuple[str, ...],
    tiny_data: Path,
    tiny_bank: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    given = [str(word).replace("DATA", str(tiny_data)) for word in words]
    refused([*EXPORT, "--occluders", tiny_bank, "--out", tmp_path / "out", *given], *named)


@pytest.mark.parametrize("engine", ["auto", "openvino", "onnxruntime", "torch"])
def test_a_model_has_no_int8_without_an_artefact(
    engine: str, tiny_data: Path, tiny_bank: Path, tmp_path: Path, refused: Refused, evaluate: Command
) -> None:
    words = evaluate(tiny_data, tiny_bank, tmp_path / "run", "--precision", "int8")
    words[words.index("--engine") + 1] = engine
    refused(words, "--precision int8", "gfo-export --precision int8")


def test_zeros_without_parity(tmp_path: Path, run: Run) -> None:
    code, out, _ = run(*EXPORT, "--occluders", "zero:2", "--out", tmp_path / "out", "--no-parity")
    assert code == 0
    assert out.splitlines()[-1] == "parity: not run: the check was skipped"
    assert parity_of(tmp_path / "out")[0]["status"] == "not run"


def test_an_engine_file_without_a_gpu_is_marked_as_unchecked(tiny_bank: Path, tmp_path: Path, run: Run) -> None:
    pytest.importorskip("tensorrt_rtx")
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    options = ("--format", "trt", "--precision", "fp16", "--compute-capability", "8.9")
    code, out, _ = run(*EXPORT, "--occluders", tiny_bank, "--out", tmp_path / "out", *options)
    assert code == 0
    assert "layers by type: " in out
    assert "HALF" in out
    assert out.splitlines()[-1].startswith("parity: not run: ")
    assert "GPU" in out.splitlines()[-1]


def test_a_library_that_raises_fails_its_engine_not_the_export(
    tiny_bank: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    error: list[RuntimeError] = [RuntimeError("TensorRT: enqueue failed\n(out of order)")]

    def broken(engine: OnnxRuntimeEngine, *given: Tensor) -> Tensor:
        raise error[0]

    monkeypatch.setattr(OnnxRuntimeEngine, "_infer", broken)
    words = [*EXPORT, "--occluders", tiny_bank, "--out"]
    code, printed, _ = run(*words, tmp_path / "out")
    assert code == 4
    assert printed.splitlines()[-1] == "parity: failed: onnxruntime: RuntimeError: TensorRT: enqueue failed"
    assert parity_of(tmp_path / "out")[0]["engines"] == {"onnxruntime": "failed", "openvino": "passed"}
    error[0] = torch.OutOfMemoryError("full")  # says nothing about the engine
    with pytest.raises(torch.OutOfMemoryError):
        export_checked(ModelSpec("python:gfo_tiny:network"), tiny_bank, tmp_path / "other")


@pytest.mark.parametrize("spoil", [0.5, float("nan")])
def test_an_engine_that_computes_something_else_fails_the_export_with_4(
    spoil: float,
    tiny_data: Path,
    tiny_bank: Path,
    tmp_path: Path,
    run: Run,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = OnnxRuntimeEngine._infer

    def wrong(engine: OnnxRuntimeEngine, *given: Tensor) -> Tensor:
        logits = right(engine, *given)
        logits[:, 0] += spoil
        return logits

    monkeypatch.setattr(OnnxRuntimeEngine, "_infer", wrong)
    out = tmp_path / "out"
    code, printed, _ = run(*EXPORT, "--occluders", tiny_bank, "--data", tiny_data, "--out", out)
    assert code == 4
    assert printed.splitlines()[-1].startswith("parity: failed: onnxruntime: ")
    said, _ = parity_of(out)
    assert said["status"] == "failed"
    assert said["engines"] == {"onnxruntime": "failed", "openvino": "passed"}
    words = ["gfo-eval", "--artefact", out, "--data", tiny_data, "--split", "val", "--out", tmp_path / "run"]
    refused(words, out, "failed its parity check", "export it again")
    assert not (tmp_path / "run").exists()


def test_bad_exports_are_refused(tiny_data: Path, tiny_bank: Path, tmp_path: Path, refused: Refused) -> None:
    words = [*EXPORT, "--occluders", tiny_bank, "--out", tmp_path / "out"]
    refused([*words, "--format", "caffe"], "--format caffe: expected one of onnx, openvino, trt")
    refused([*words, "--precision", "int4"], "--precision int4: expected one of")
    refused([*words, "--data", tmp_path / "none"], tmp_path / "none", "no such folder")
    refused([*words, "--data", tiny_data, "--split", "test"], "--split test: expected one of")
    refused([*words, "--parity-pairs", 2], "--parity-pairs 2")
    refused([*words, "--no-parity", "--data", tiny_data], "--no-parity: does not read --data; leave")
    refused([*words, "--no-parity", "--split", "val"], "--no-parity: does not read --split; leave")
    refused([*words, "--no-parity", "--parity-pairs", 0], "--no-parity: does not read --parity-pairs; leave")
    refused([*words, "--parity-pairs", 0], "--parity-pairs 0: expected at least 3")
    unread = ["--class-map", tiny_data / "classes.json", "--split", "train"]
    refused([*words, *unread], "--split, --class-map: not read without --data; pass --data")
    refused([*words, "--batch-size", 0], "--batch-size 0")
    refused([*words, "--compute-capability", "8.9"], "--compute-capability 8.9: is for --format trt")
    refused([*EXPORT, "--occluders", "zero:²", "--out", tmp_path / "out"], "zero:²", "bank not found")
    refused([*EXPORT, "--occluders", "zero:9", "--out", tmp_path / "out"], "zero:9: expected zero:1 to zero:5")
    refused([*EXPORT, "--occluders", tmp_path / "x.st", "--out", tmp_path / "out"], tmp_path / "x.st", "bank not found")
    assert list(tmp_path.iterdir()) == []
    refused([*words[:-1], tmp_path], tmp_path, "is there already")


# ---- evaluating


def columns_of(run_dir: Path) -> tuple[list[int], np.ndarray[Any, Any]]:
    group = zarr.open_group(run_dir / "predictions.zarr", mode="r")
    occluder, prediction = group["occluder"], group["prediction"]
    assert isinstance(occluder, zarr.Array)
    assert isinstance(prediction, zarr.Array)
    return np.asarray(occluder[:]).tolist(), np.asarray(prediction[:])


@pytest.mark.parametrize("engine", ENGINES)
def test_an_artefact_evaluates_to_what_torch_says(
    engine: str,
    artefact: Path,
    tiny_data: Path,
    tiny_bank: Path,
    tmp_path: Path,
    run: Run,
    evaluate: Command,
    make_bank: Callable[..., OccluderBank],
) -> None:
    assert run(*evaluate(tiny_data, tiny_bank, tmp_path / "torch"))[0] == 0
    words = ["gfo-eval", "--artefact", artefact, "--data", tiny_data, "--split", "val", "--engine", engine]
    code, _, err = run(*words, "--out", tmp_path / engine)
    assert code == 0, err
    wanted, found = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("torch", engine))
    for cell in ("clean", "matched", "unmatched", "permuted"):
        assert found[cell] == wanted[cell]
    assert found["noise"] is None
    assert found["bank_hash"] == make_bank().hash
    assert (found["engine"], found["device"], found["precision"]) == (engine, "cpu", "fp32")
    assert found["engine_variant"] == {"onnxruntime": "cpu", "openvino": None}[engine]
    ids, predictions = columns_of(tmp_path / engine)
    assert ids == [-1, *make_bank().class_ids]
    assert np.array_equal(predictions, columns_of(tmp_path / "torch")[1][:, :-1])
    assert run(*words, "--out", tmp_path / engine)[0] == 0  # resumes: nothing to do
    report([tmp_path / "torch", tmp_path / engine], tmp_path / "report")  # with and without noise side by side
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_evaluates_on_every_engine_with_noise(
    engine: str, tiny_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, evaluate: Command
) -> None:
    assert run(*evaluate(tiny_data, tiny_bank, tmp_path / "torch"))[0] == 0
    assert run(*evaluate(tiny_data, tiny_bank, tmp_path / "run", "--engine", engine))[0] == 0
    wanted, found = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("torch", "run"))
    assert all(found[cell] == wanted[cell] for cell in ("clean", "matched", "unmatched", "permuted", "noise"))


def test_an_artefact_that_takes_its_bank_with_the_call(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, refused: Refused, make_bank: Callable[..., OccluderBank]
) -> None:
    out = tmp_path / "out"
    export_checked(ModelSpec("python:gfo_tiny:network"), tiny_bank, out, ExportConfig(bank_input=True), None)
    words = ["gfo-eval", "--artefact", out, "--data", tiny_data, "--split", "val", "--out", tmp_path / "run"]
    refused(words, "--occluders: a bank is needed")
    foreign = tmp_path / "foreign.safetensors"
    make_bank(weights_hash="sha256:0").save(foreign)
    refused([*words, "--occluders", foreign], foreign, "bank was made for weights")
    code, _, err = run(*words, "--occluders", tiny_bank, "--engine", "onnxruntime")
    assert code == 0
    assert "was never checked against PyTorch (the check was skipped)" in err
    assert columns_of(tmp_path / "run")[0][-1] == -2  # the noise row is there


def test_what_does_not_go_with_an_artefact(
    artefact: Path, tiny_data: Path, tiny_bank: Path, tmp_path: Path, refused: Refused, evaluate: Command
) -> None:
    words = ["gfo-eval", "--data", tiny_data, "--split", "val", "--out", tmp_path / "run"]
    inside = [*words, "--artefact", artefact]
    refused(words, "--model, --artefact: pass exactly one of them")
    refused([*inside, "--model", "python:gfo_tiny:network"], "--model, --artefact: pass exactly one of them")
    refused([*inside, "--weights", "random"], artefact, "leave their options out")
    refused([*inside, "--input-size", 32], artefact, "leave their options out")
    refused([*inside, "--occluders", tiny_bank], tiny_bank, "leave --occluders out")
    refused([*inside, "--precision", "bf16"], "--precision bf16", "was exported at fp32")
    refused([*inside, "--engine", "torch"], "--engine torch: runs models, not artefacts")
    refused([*words, "--artefact", tmp_path], tmp_path / "manifest.json", "no such file")
    assert not (tmp_path / "run").exists()


def test_trt_without_a_gpu_exits_3_and_writes_nothing(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, evaluate: Command
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    code, out, err = run(*evaluate(tiny_data, tiny_bank, tmp_path / "run", "--engine", "trt"))
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert "GPU" in err
    assert not (tmp_path / "run").exists()


# ---- real material


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif("GFO_REAL_DATA" not in os.environ, reason="GFO_REAL_DATA names no folder of real material")
def test_real_weights_and_pictures(tmp_path: Path) -> None:
    """fp32 parity on 300 real pairs, and one evaluation on three engines with the same accuracies."""
    root = Path(os.environ["GFO_REAL_DATA"])
    model = ModelSpec(
        "timm/tf_efficientnet_lite0", str(root / "weights/tf_efficientnet_lite0.safetensors"), input_size=96
    )
    data, bank = root / "tiny-imagenet-20", tmp_path / "bank.safetensors"
    from gfo.engine.training.config import TrainConfig
    from gfo.engine.training.train import train

    config = TrainConfig(epsilon=8.0, epochs=1, batch_size=16, pictures_per_class=16, precision="fp32")
    train(model, DataSpec(data, classes="n01443537,n01855672,n02099601"), bank, config)
    made = export_checked(model, bank, tmp_path / "artefact", check=ParityConfig(DataSpec(data)))
    engines = parity_of(made.folder)[1]["engines"]
    assert made.manifest.parity["status"] == "passed"
    assert {engine["engine"]: engine["pairs"] for engine in engines} == {"onnxruntime": 300, "openvino": 300}
    assert all(engine["enough"] for engine in engines)
    summaries = [
        evaluate_pairs(what, rows, DataSpec(data), tmp_path / name, EvaluationConfig(EngineChoice(name), per_class=15))
        for name, what, rows in (("torch", model, bank), *((name, made, None) for name in ENGINES))
    ]
    for cell in ("clean", "matched", "unmatched"):
        assert len({getattr(summary, cell).accuracy for summary in summaries}) == 1
