"""Certificates of a bf16 run, against the run in fp32."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from gfo.engine.data.spec import DataSpec
from gfo.engine.engines.choice import EngineChoice
from gfo.engine.evaluation.config import EvaluationConfig
from gfo.engine.evaluation.evaluate import evaluate
from gfo.engine.evaluation.store import RunStore
from gfo.engine.evaluation.summary import Summary, read_summary
from gfo.engine.progress import Silent
from gfo.engine.reporting import report
from gfo.engine.sampling import draw as draw_module
from gfo.engine.sampling.certify import CELLS, CertificateSpec, certify, evaluate_certified, parse_certificate
from gfo.engine.sampling.control import Ridge
from gfo.engine.sampling.estimate import DifferenceEstimator
from gfo.engine.sampling.order import Ints, Order
from gfo.engine.sampling.strata import Floats, Stratum, StratumName
from gfo.export import ExportConfig, export
from gfo.export.artefact import Artefact
from gfo.export.bank import OccluderBank
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError

ALL = CertificateSpec(dict.fromkeys(CELLS, 1e-6))
WIDE = CertificateSpec(dict.fromkeys(CELLS, 0.02))


class Said(Silent):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="session")
def bf16(
    tiny_classifier: FrozenClassifier, bank: OccluderBank, data: DataSpec, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A full run in bf16."""
    out = tmp_path_factory.mktemp("bf16") / "run"
    evaluate(tiny_classifier, bank, data, out, EvaluationConfig(EngineChoice("torch", "bf16"), batch_size=32))
    return out


@pytest.fixture
def certified(
    tiny_classifier: FrozenClassifier, bank: OccluderBank, data: DataSpec, config: EvaluationConfig, bf16: Path
) -> Callable[..., Summary]:
    """Certify a copy of the run."""

    def certified(out: Path, spec: CertificateSpec = WIDE, **how: Any) -> Summary:
        if not out.exists():
            shutil.copytree(bf16, out)
        return certify(tiny_classifier, bank, how.pop("data", data), out, how.pop("config", config), spec, **how)

    return certified


def cells(summary: Summary) -> dict[str, Any]:
    assert summary.certificate is not None
    return {cell.cell: cell for cell in summary.certificate.cells}


def number(summary: Summary, cell: str) -> float:
    return dict(summary.ratios)[cell].value if "/" in cell else getattr(summary, cell).accuracy  # type: ignore[index,union-attr]


def test_with_all_pairs_it_is_the_fp32_run(
    certified: Callable[..., Summary], full: tuple[Path, Summary], bf16: Path, tmp_path: Path
) -> None:
    found, run = certified(tmp_path / "run", ALL), read_summary(bf16 / "summary.json")
    assert found == read_summary(tmp_path / "run" / "summary.json")
    assert replace(found, certificate=None) == run
    assert found.certificate is not None
    assert (found.certificate.engine, found.certificate.device) == ("torch", "cpu")
    assert list(cells(found)) == ["clean", "matched", "unmatched", "matched/clean", "unmatched/clean"]
    for name, cell in cells(found).items():
        assert cell.value == pytest.approx(number(full[1], name))
        assert cell.run == pytest.approx(number(run, name))
        assert (cell.half_width, cell.pairs) == (0, cell.total)
    right = [
        (store.predictions(0, len(store)) == store.labels[:, None])[store.readable()]
        for store in (RunStore.open(bf16), RunStore.open(full[0]))
    ]
    assert cells(found)["clean"].changed == pytest.approx((right[0] != right[1])[:, 0].mean())


def test_a_sample_holds_the_fp32_run(
    certified: Callable[..., Summary], full: tuple[Path, Summary], tmp_path: Path
) -> None:
    found = certified(tmp_path / "run")
    for name, cell in cells(found).items():
        assert abs(cell.value - number(full[1], name)) <= 2 * cell.half_width  # seeded
        assert (cell.wanted is None) == ("/" in name)
        assert cell.wanted is None or cell.half_width <= cell.wanted
        assert 500 <= cell.pairs < cell.total
    clean, matched, ratio = (cells(found)[name] for name in ("clean", "matched", "matched/clean"))
    share = np.hypot(matched.half_width / matched.value, clean.half_width / clean.value)
    assert ratio.half_width == pytest.approx(ratio.value * share)


def test_it_resumes_and_goes_on(
    certified: Callable[..., Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = CertificateSpec({"matched": 0.004})
    whole, first = certified(tmp_path / "other", narrow), certified(tmp_path / "run")
    narrower = certified(tmp_path / "run", narrow)
    assert cells(narrower)["matched"] == cells(whole)["matched"]
    assert cells(narrower)["matched"].pairs > cells(first)["matched"].pairs

    def broken(*args: object) -> None:
        raise AssertionError("nothing is left to evaluate")

    monkeypatch.setattr(draw_module, "_evaluated", broken)
    assert cells(certified(tmp_path / "run")) == cells(first)


def test_the_most_pairs_leave_a_width_short(certified: Callable[..., Summary], tmp_path: Path) -> None:
    found = certified(tmp_path / "run", replace(ALL, max_pairs=1500)).certificate
    assert found is not None
    assert [cell.cell for cell in found.short] == ["clean", "matched", "unmatched"]
    assert {cell.pairs for cell in found.cells} == {500}


def test_a_run_that_is_resumed_keeps_its_certificate_until_a_picture_changes(
    certified: Callable[..., Summary],
    tiny_classifier: FrozenClassifier,
    bank: OccluderBank,
    data: DataSpec,
    config: EvaluationConfig,
    tmp_path: Path,
) -> None:
    shutil.copytree(data.root, tmp_path / "data", ignore=shutil.ignore_patterns("[1-3]??.png"))
    own, cheap = replace(data, root=tmp_path / "data"), replace(config, engine=EngineChoice("torch", "bf16"))
    out = tmp_path / "run"
    evaluate(tiny_classifier, bank, own, out, cheap)
    found = certified(out, data=own)
    assert evaluate(tiny_classifier, bank, own, out, cheap) == found
    Image.new("RGB", (18, 18), (255, 0, 0)).save(tmp_path / "data" / "val" / "ant" / "000.png")
    assert evaluate(tiny_classifier, bank, own, out, cheap).certificate is None
    said = Said()
    again = certified(out, ALL, data=own, progress=said)
    assert any("the answers of the run changed since; drawing again" in line for line in said.lines)
    fp32 = evaluate(tiny_classifier, bank, own, tmp_path / "fp32", config)
    for name, cell in cells(again).items():
        assert cell.value == pytest.approx(number(fp32, name))


def test_what_cannot_be_certified_is_refused(
    certified: Callable[..., Summary],
    make_bank: Callable[..., OccluderBank],
    tiny_classifier: FrozenClassifier,
    data: DataSpec,
    config: EvaluationConfig,
    full: tuple[Path, Summary],
    bf16: Path,
    tmp_path: Path,
) -> None:
    for changed, named in (
        (replace(config, shard=(0, 2)), "--shard"),
        (replace(config, strengths=(0.5, 1.0)), "--strength"),
        (replace(config, strengths=(0.5,)), "strength 0.5, the RUN 1.0"),
        (replace(config, per_class=3), "other pictures"),
    ):
        with pytest.raises(InputError, match=named):
            certified(tmp_path / "run", config=changed)
    with pytest.raises(InputError, match="is in fp32 itself"):
        certified(full[0])
    with pytest.raises(InputError, match="no such store"):
        certify(tiny_classifier, make_bank(), data, tmp_path / "none", config)
    with pytest.raises(InputError, match="bank_hash"):
        certify(tiny_classifier, make_bank(), data, bf16, config)
    with pytest.raises(InputError, match="is in fp32 itself"):  # before anything is evaluated
        evaluate_certified(tiny_classifier, tiny_classifier, make_bank(), data, tmp_path / "new", config)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("until", "max_pairs", "named"),
    [
        ("0", None, "half-width"),
        ("matched/clean=0.1", None, "ratios follow"),
        ("x", None, "--until"),
        (None, 1499, "1500"),
    ],
)
def test_bad_specifications_are_refused(until: str | None, max_pairs: int | None, named: str) -> None:
    with pytest.raises(InputError, match=named):
        parse_certificate(until, max_pairs)


def test_specifications_are_read() -> None:
    assert parse_certificate(None, None).until == dict.fromkeys(CELLS, 0.005)
    assert parse_certificate("0.01", 2000) == CertificateSpec(dict.fromkeys(CELLS, 0.01), 2000)
    assert parse_certificate("clean=0.01", None).until == {"clean": 0.01}


class Known(Ridge[Any]):
    """A regression on answers that are an array, bool [N, K + 1]."""

    def __init__(self, stratum: Stratum, cheap: np.ndarray) -> None:
        super().__init__(np.array([1e-6, 1.0]))
        self._stratum, self._cheap = stratum, cheap

    def design(self, picture: Ints, row: Ints) -> Floats:
        return np.stack([np.ones(len(row)), self._cheap[picture, row + 1]], axis=1)

    def expectation(self, coefficients: Floats) -> Any:
        ridge = self

        class Expected:
            def of(self, picture: Ints, row: Ints) -> Floats:
                return ridge.design(picture, row) @ coefficients

            def mean(self, stratum: Stratum) -> float:
                picture, row = stratum.pairs(np.arange(stratum.total))
                return float(stratum.weights(picture, row) @ self.of(picture, row) / stratum.total)

        return Expected()


@pytest.mark.parametrize("name", get_args(StratumName))
@pytest.mark.parametrize(("sizes", "flips"), [([150] * 6, 0.015), ([150] * 6, 0.1), ([400, *[40] * 9], 0.015)])
def test_intervals_hold_where_few_answers_change(
    made: Callable[..., Any], name: StratumName, sizes: list[int], flips: float
) -> None:
    """Of 400 intervals of 95 %, at least 92 %: below, by chance once in a thousand."""
    population, right = made(sizes)
    generator, stratum = np.random.default_rng(1), population.stratum(name)
    cheap = np.concatenate([population.right[:, None], right], axis=1)
    dear = cheap ^ (generator.random(cheap.shape) < flips)
    picture, row = stratum.pairs(np.arange(stratum.total))
    wanted = float(stratum.weights(picture, row) @ dear[picture, row + 1] / stratum.total)
    held, errors = 0, list[float]()
    for seed in range(400):
        estimator = DifferenceEstimator(stratum, Known(stratum, cheap))
        drawn = Order(stratum.total, seed).first(min(500, stratum.total // 2))
        estimator.add(picture[drawn], row[drawn], dear[picture[drawn], row[drawn] + 1].astype(float))
        found = estimator.estimate()
        held += abs(found.value - wanted) <= found.half_width
        errors.append(found.value - wanted)
    assert held >= 0.92 * 400
    assert abs(np.mean(errors)) < 4 * np.std(errors) / 20


def test_the_command_and_the_report_say_it(
    run: Callable[..., tuple[int, str, str]],
    evaluate: Callable[..., list[object]],
    refused: Callable[..., None],
    tiny_data: Path,
    tiny_bank: Path,
    tmp_path: Path,
) -> None:
    words = evaluate(tiny_data, tiny_bank, tmp_path / "run", "--certify", "fp32")
    refused(words, "--certify", "is in fp32 itself")
    assert not (tmp_path / "run").exists()
    words += ["--precision", "bf16"]
    refused([*words, "--claim", "matched<=0.5"], "--claim", "leave it out")
    refused([*words, "--shard", "0/2"], "--certify", "leave --shard out")
    refused([*words[:-4], "--certify", tmp_path / "none", *words[-2:]], tmp_path / "none")
    code, out, _ = run(*words)
    assert code == 0
    lines = out.splitlines()
    assert "in fp32, by engine torch; ± is the 95% half-width over the pairs that were not drawn" in lines
    for cell, pairs in (("clean", 18), ("matched", 18), ("unmatched", 36)):
        assert any(line.startswith(f"{cell} ") and f"  {pairs} of {pairs} pairs, " in line for line in lines)
    assert lines[-1] == str(tmp_path / "run" / "summary.json")
    found = cells(read_summary(tmp_path / "run" / "summary.json"))["matched"]
    written = report([tmp_path / "run"], tmp_path / "report")
    assert any(f"matched {found.value:.4f} ± {found.half_width:.4f}" in note for note in written.notes)


def test_an_artefact_is_certified_by_its_fp32_export(
    run: Callable[..., tuple[int, str, str]],
    refused: Callable[..., None],
    tiny_classifier: FrozenClassifier,
    make_bank: Callable[..., OccluderBank],
    tiny_data: Path,
    tmp_path: Path,
) -> None:
    for precision in ("fp16", "fp32"):
        export(tiny_classifier, make_bank(), tmp_path / precision, ExportConfig("onnx", precision))
    words = ["gfo-eval", "--artefact", tmp_path / "fp16", "--data", tiny_data, "--split", "val"]
    words += ["--out", tmp_path / "run", "--certify"]
    refused([*words, "fp32"], "--certify fp32", "fp32 export")
    refused([*words, tmp_path / "fp16"], "--certify", "is in fp16; export it again in fp32")
    code, _, _ = run(*words, tmp_path / "fp32")
    assert code == 0
    found = read_summary(tmp_path / "run" / "summary.json")
    assert found.certificate is not None
    assert found.precision == "fp16"
    assert found.certificate.artefact == Artefact.load(tmp_path / "fp32").key != found.artefact
    assert {cell.half_width for cell in found.certificate.cells} == {0}
