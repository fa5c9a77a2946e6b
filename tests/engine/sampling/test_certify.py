"""Certificates of a bf16 run, against the run in fp32."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gfo.engine.data.spec import DataSpec
from gfo.engine.engines.choice import EngineChoice, choose_engine
from gfo.engine.evaluation.config import EvaluationConfig
from gfo.engine.evaluation.evaluate import evaluate, evaluate_strengths
from gfo.engine.evaluation.store import RunStore
from gfo.engine.evaluation.summary import Summary, read_summary
from gfo.engine.progress import Silent
from gfo.engine.reporting import report
from gfo.engine.sampling import draw as draw_module
from gfo.engine.sampling.certify import (
    CELLS,
    CertificateSpec,
    Certifier,
    _reference,
    certify,
    evaluate_certified,
    parse_certificate,
)
from gfo.engine.sampling.cheap import _features as features_of
from gfo.engine.sampling.order import Ints
from gfo.engine.sampling.strata import Floats, Population, StratumName
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


def test_answers_that_may_be_others_lose_their_certificate(
    certified: Callable[..., Summary],
    tiny_classifier: FrozenClassifier,
    bank: OccluderBank,
    data: DataSpec,
    config: EvaluationConfig,
    tmp_path: Path,
) -> None:
    cheap, out = replace(config, engine=EngineChoice("torch", "bf16")), tmp_path / "run"
    found = certified(out)
    assert found.clean is not None
    replace(found, clean=replace(found.clean, accuracy=0.5)).write(out)  # the summary of other answers
    assert evaluate(tiny_classifier, bank, data, out, cheap).certificate is None
    found.write(out)
    chunk = next((out / "predictions.zarr" / "margin").glob("c.*"))
    content = bytearray(chunk.read_bytes())
    content[20] ^= 1
    chunk.write_bytes(bytes(content))
    mended = evaluate(tiny_classifier, bank, data, out, cheap)
    assert mended.clean == found.clean
    assert mended.certificate is None


def test_answers_of_another_engine_are_drawn_again(
    certified: Callable[..., Summary], config: EvaluationConfig, tmp_path: Path
) -> None:
    first, said = certified(tmp_path / "run"), Said()
    found = certified(tmp_path / "run", config=replace(config, engine=EngineChoice("onnxruntime")), progress=said)
    assert any("the engine of the fp32 answers changed since" in line for line in said.lines)
    assert found.certificate is not None
    assert found.certificate.engine == "onnxruntime"
    for name, cell in cells(found).items():
        assert cell.value == pytest.approx(cells(first)[name].value, abs=1e-6)


def test_each_of_several_strengths_is_certified(
    tiny_classifier: FrozenClassifier,
    bank: OccluderBank,
    data: DataSpec,
    config: EvaluationConfig,
    tmp_path: Path,
) -> None:
    few = replace(config, strengths=(0.25, 1.0), per_class=40)
    cheap = replace(few, engine=EngineChoice("torch", "bf16"))
    found = evaluate_certified(None, tiny_classifier, bank, data, tmp_path / "run", cheap, ALL)
    truth = evaluate_strengths(tiny_classifier, bank, data, tmp_path / "fp32", few)
    for strength in (0.25, 1.0):
        assert found[strength] == read_summary(tmp_path / "run" / f"{strength:g}" / "summary.json")
        for name, cell in cells(found[strength]).items():
            assert cell.value == pytest.approx(number(truth[strength], name))
    assert cells(found[0.25])["matched"].value > cells(found[1.0])["matched"].value > 0.1


def test_fp32_is_fp32_whatever_was_chosen_before(tiny_classifier: FrozenClassifier) -> None:
    chosen = choose_engine(EngineChoice("auto", "bf16"), tiny_classifier)
    assert chosen.alternatives
    again = choose_engine(_reference(chosen), tiny_classifier)
    assert {again.precision, *(other.precision for other in again.alternatives)} == {"fp32"}


def test_what_cannot_be_certified_is_refused(
    certified: Callable[..., Summary],
    bank: OccluderBank,
    tiny_classifier: FrozenClassifier,
    data: DataSpec,
    config: EvaluationConfig,
    full: tuple[Path, Summary],
    bf16: Path,
    tmp_path: Path,
) -> None:
    for changed, named in (
        (replace(config, shard=(0, 2)), "--shard"),
        (replace(config, seed=1), "seed 1, the RUN 0"),
        (replace(config, strengths=(0.5,)), "strength 0.5, the RUN 1.0"),
        (replace(config, per_class=3), "other pictures"),
    ):
        with pytest.raises(InputError, match=named):
            certified(tmp_path / "run", config=changed)
    with pytest.raises(InputError, match="is in fp32 itself"):
        certified(full[0])
    with pytest.raises(InputError, match="no such store"):
        certify(tiny_classifier, bank, data, tmp_path / "none", config)
    with pytest.raises(InputError, match="bank_hash"):
        certify(tiny_classifier, replace(bank, occluders=-bank.occluders), data, bf16, config)
    with pytest.raises(InputError, match="is in fp32 itself"):  # before anything is evaluated
        evaluate_certified(None, tiny_classifier, bank, data, tmp_path / "new", config)
    assert not (tmp_path / "new").exists()
    half = replace(config, engine=EngineChoice("torch", "bf16"), shard=(0, 2))
    evaluate(tiny_classifier, bank, data, tmp_path / "half", half)
    with pytest.raises(InputError, match="is not complete"):
        certify(tiny_classifier, bank, data, tmp_path / "half", config)


def test_changed_pictures_are_refused(
    tiny_classifier: FrozenClassifier,
    make_bank: Callable[..., OccluderBank],
    own_data: Path,
    config: EvaluationConfig,
    tmp_path: Path,
) -> None:
    own, cheap = DataSpec(own_data), replace(config, engine=EngineChoice("torch", "bf16"))
    evaluate(tiny_classifier, make_bank(), own, tmp_path / "run", cheap)
    Image.new("RGB", (18, 18), (255, 0, 0)).save(next((own_data / "val").glob("*/*.*")), format="png")
    with pytest.raises(InputError, match="1 pictures have changed since"):
        certify(tiny_classifier, make_bank(), own, tmp_path / "run", config)


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


class Margins:
    """`CheapAnswers` of margins [N, K + 1] that are an array."""

    def __init__(self, population: Population, margin: Floats) -> None:
        self._known, self.means = features_of(margin > 0, margin / margin[:, 0].std()), dict[str, Floats]()
        for name, stratum in population.strata.items():
            picture, row = stratum.pairs(np.arange(stratum.total))
            self.means[name] = stratum.weights(picture, row) @ self.features(picture, row) / stratum.total

    def features(self, picture: Ints, row: Ints) -> Floats:
        return self._known[picture, row + 1]


SIZES = {"alike": [700] * 6, "a rare class": [1500] * 4 + [60], "two classes": [1500, 500]}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["noise", "one way", "in the last class"])
def test_intervals_hold_at_the_width_that_ends_it(sizes: str, kind: str) -> None:
    """Of 60 intervals of 95 %, at least 85 %: below, by chance once in a thousand."""
    generator, own = np.random.default_rng(0), np.repeat(np.arange(len(SIZES[sizes])), SIZES[sizes])
    margin = generator.normal(1.5, 2, (len(own), len(SIZES[sizes]) + 1))
    population = Population(np.arange(len(own)), own, margin[:, 0] > 0, margin[:, 0], len(SIZES[sizes]))
    wrong = generator.random(margin.shape) < 0.03
    if kind == "noise":
        fp32 = margin + generator.normal(0, 0.1, margin.shape) > 0
    else:
        fp32 = (margin > 0) & ~(wrong & ((kind == "one way") | (own == own[-1]))[:, None])
    answers: Any = Margins(population, margin)
    names: tuple[StratumName, ...] = ("clean", "unmatched") if sizes == "alike" else ("clean",)
    held = dict.fromkeys(names, 0)
    for seed in range(60):
        certifier = Certifier(population, answers, CertificateSpec(dict.fromkeys(names, 0.01)), seed)
        while looks := certifier.next_look():
            for name, (picture, row) in looks.items():
                certifier.add(name, picture, row, fp32[picture, row + 1].astype(float))
        for name in names:
            stratum, found = population.stratum(name), certifier.estimates[name]
            picture, row = stratum.pairs(np.arange(stratum.total))
            truth = float(stratum.weights(picture, row) @ fp32[picture, row + 1] / stratum.total)
            held[name] += abs(found.value - truth) <= found.half_width + 1e-9
            assert found.half_width <= 0.01
    assert min(held.values()) >= 0.85 * 60


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
    refused([*words[:-4], "--certify", "bf16", *words[-2:]], "--certify bf16", "expected fp32")
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
    export(tiny_classifier, make_bank(seed=1), tmp_path / "other", ExportConfig("onnx", "fp32"))
    refused([*words, tmp_path / "other"], "has another bank")
    export(tiny_classifier, make_bank(), tmp_path / "input", ExportConfig("onnx", "fp32", bank_input=True))
    refused([*words, tmp_path / "input"], "takes a bank", "embeds one")
    assert not (tmp_path / "run").exists()
    refused([*words, tmp_path / "fp16"], "--certify", "is in fp16; export it again in fp32")
    code, _, _ = run(*words, tmp_path / "fp32")
    assert code == 0
    found = read_summary(tmp_path / "run" / "summary.json")
    assert found.certificate is not None
    assert found.precision == "fp16"
    assert found.certificate.artefact == Artefact.load(tmp_path / "fp32").key != found.artefact
    assert {cell.half_width for cell in found.certificate.cells} == {0}
