"""The doctor tells the truth: facts as JSON, engines that cannot run with the reason, wrong engines as failures."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from gfo.bench import doctor, environment
from gfo.bench.commands.doctor import main
from gfo.engine.engines.torch import TorchEngine
from gfo.export.classifier import PRECISIONS
from gfo.export.registry import Table

NOTHING: dict[str, str | None] = dict.fromkeys(environment.packages())


def run_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[Any, str]:
    """Exit code and standard output."""
    monkeypatch.setattr("sys.argv", ["gfo-doctor", *options])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code, capsys.readouterr().out


def test_json_is_the_last_line_and_complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    code, out = run_doctor(monkeypatch, capsys, "--json")
    assert code == 0
    facts = json.loads(out.splitlines()[-1])
    assert facts["schema"] == 1
    assert facts["selftest"] is None
    assert facts["environment"]["packages"]["torch"] == environment.package_version("torch")
    assert facts["environment"]["cpu"]["cores"] >= 1
    assert facts["objectives"]["pure"] == {"kappa": 10.0}
    assert facts["objectives"]["specific"]["keep"] == "cross-entropy"
    options = {state["engine"]: state["options"] for state in facts["engines"]}
    assert options["torch"] == {"impl": "auto", "compiled": False}
    assert options["openvino"] == {"hint": "auto", "streams": None}
    assert (options["onnxruntime"], options["trt"]) == ({"provider": "auto", "literal": False}, {})


def test_tables_only_without_the_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    code, out = run_doctor(monkeypatch, capsys)
    assert code == 0
    assert "Engines" in out
    assert "Options of objectives: --objective-option NAME=VALUE" in out
    assert "confidence of the margin in logit units" in out
    assert '"schema"' not in out
    assert "Self-test" not in out


def test_selftest_passes_and_prints_every_precision(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    code, out = run_doctor(monkeypatch, capsys, "--selftest", "--json")
    assert code == 0
    checks = json.loads(out.splitlines()[-1])["selftest"]
    assert {check["precision"] for check in checks if check["device"] == "cpu"} == set(PRECISIONS)
    assert all(check["passed"] and check["agreement"] > 0.9 for check in checks if check["device"] == "cpu")
    assert all(check["reason"] for check in checks if not check["passed"])


def test_selftest_of_one_engine_on_one_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    code, out = run_doctor(monkeypatch, capsys, "--selftest", "--engine", "onnxruntime", "--device", "cpu", "--json")
    assert code == 0
    checks = json.loads(out.splitlines()[-1])["selftest"]
    assert [(check["engine"], check["kind"], check["precision"]) for check in checks] == [
        ("onnxruntime", "cpu", "fp32")
    ]


@pytest.mark.parametrize("options", [("--engine", "torch"), ("--device", "cpu"), ("--selftest", "--engine", "none")])
def test_options_of_the_selftest_are_not_read_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
):
    code, out = run_doctor(monkeypatch, capsys, *options)
    assert (code, out) == (2, "")


@pytest.fixture
def only_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is spoilt there: the others need not be compiled, and half precisions are slow on most CPUs."""
    monkeypatch.setattr(TorchEngine, "precisions", classmethod(lambda *_: ("fp32",)))
    only = Table("--engine", "gfo.none", "gfo.engine.engines", {"torch": ".torch:TorchEngine"})
    monkeypatch.setattr(doctor, "ENGINES", only)


@pytest.mark.usefixtures("only_torch")
@pytest.mark.parametrize("spoil", [1e-3, float("nan")])
def test_a_wrong_engine_fails_with_4(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spoil: float):
    right = TorchEngine.infer
    monkeypatch.setattr(TorchEngine, "infer", lambda *arguments: right(*arguments) + spoil)
    code, out = run_doctor(monkeypatch, capsys, "--selftest")
    assert code == 4
    assert "FAILED" in out


@pytest.mark.usefixtures("only_torch")
def test_an_engine_that_breaks_is_a_failure_not_a_traceback(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> Tensor:
        raise RuntimeError("no such operation on this device\nand a long stack")

    monkeypatch.setattr(TorchEngine, "infer", broken)
    checks = [check for check in doctor.self_test() if (check.engine, check.device) == ("torch", "cpu")]
    assert [check.passed for check in checks] == [False]
    assert checks[0].reason == "RuntimeError: no such operation on this device"


@pytest.mark.usefixtures("only_torch")
def test_the_selftest_would_notice_one_occluder_swapped(monkeypatch: pytest.MonkeyPatch):
    right = TorchEngine.load_bank
    monkeypatch.setattr(TorchEngine, "load_bank", lambda engine, bank: right(engine, bank.flip(0)))
    assert not any(check.passed for check in doctor.self_test() if check.engine == "torch")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_cuda_without_a_gpu_is_no_failure_but_a_reason():
    states = {state.engine: state for state in doctor.engine_states() if state.device == "cuda"}
    assert set(states) == {"torch", "onnxruntime", "trt"}
    assert not any(state.available for state in states.values())
    assert all("CUDA" in state.reason for state in states.values())


def test_notes():
    assert doctor.notes(NOTHING) == []
    both = doctor.notes({**NOTHING, "onnxruntime": "1.24", "onnxruntime-gpu": "1.24"})
    assert any("pip uninstall" in note for note in both)
    assert any("TensorRT 10" in note for note in both)
    assert "H100" in doctor.notes({**NOTHING, "tensorrt-rtx": "1.7"})[0]


def test_missing_package_has_no_version():
    assert environment.package_version("gfo-no-such-distribution") is None


def test_machines_that_do_not_tell_are_no_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "_cpuinfo", dict)
    monkeypatch.setattr("shutil.which", lambda name: None)
    facts = environment.environment()
    assert facts["cpu"]["flags"] == []
    assert facts["cpu"]["model"]
    assert facts["gpus"] == []
