"""One suite for every engine: what each must compute, refuse and keep, from a model and from an artefact."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gfo.engine.engines import ENGINES
from gfo.engine.engines.base import Engine
from gfo.engine.engines.choice import EngineChoice, choose_engine, open_engine
from gfo.engine.engines.onnxruntime import OnnxRuntimeEngine
from gfo.engine.engines.openvino import OpenVinoEngine, OpenVinoOptions
from gfo.export.artefact import Artefact, ExportConfig, export
from gfo.export.bank import OccluderBank
from gfo.export.classifier import FrozenClassifier, load_classifier
from gfo.export.errors import EngineUnavailable, InputError
from gfo.export.manifest import file_facts
from gfo.export.models.spec import ModelSpec
from gfo.export.occluded import OccludedClassifier
from gfo.kernels.score import score

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

G = torch.Generator().manual_seed(0)
SIZE = 16
IMAGES = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8, generator=G)
IMAGES[0], IMAGES[1] = 0, 255  # black and white: x + d leaves the range on one side everywhere
ROWS = 3
# Unordered, repeated, clean in between; long enough to be cut into pieces.
PAIRS = torch.tensor([[3, 0, 1, 1, 0, 3, 3, 2, 2, 1, 0], [0, 3, 1, 1, 0, 2, 0, 3, 1, 2, 1]])

# What plain PyTorch may differ by from itself in another order of the same sums; others by their own rounding: int8
# rounds three layers' inputs to 1/127 of their range, and noise reaches beyond it.
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 3e-3, "int8": 0.1}
CPU_ENGINES = [name for name in ENGINES.own if "cpu" in ENGINES[name].devices]
INPUT = ", bank an input"


def cases() -> Iterator[tuple[str, str, str]]:
    """Every engine for the CPU at its precisions here: a model, and what is exported in each of its formats."""
    for name in CPU_ENGINES:
        for precision in ENGINES[name].precisions("cpu"):
            for form in ("model", *(f"{kind}{bank}" for kind in ENGINES[name].formats for bank in ("", INPUT))):
                yield name, precision, form


CASES = list(cases())


@dataclass(frozen=True)
class Case:
    engine: str
    precision: str
    form: str
    subject: FrozenClassifier | Artefact

    def made(self) -> Engine:
        return ENGINES[self.engine](self.subject, self.precision, "cpu")

    @property
    def embedded(self) -> bool:
        return self.form in ("onnx", "openvino")


@pytest.fixture(scope="module")
def artefact(
    int8_classifier: FrozenClassifier, make_bank: Callable[..., OccluderBank], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Artefact]:
    """The artefact of a form and precision, exported once."""
    made: dict[tuple[str, str], Artefact] = {}

    def artefact(form: str, precision: str) -> Artefact:
        if (form, precision) not in made:
            out = tmp_path_factory.mktemp("artefact") / "out"
            kind, _, rest = form.partition(",")
            config = ExportConfig(kind, precision, bank_input=bool(rest))
            made[form, precision] = export(int8_classifier, make_bank(), out, config)
        return made[form, precision]

    return artefact


@pytest.fixture(params=CASES, ids=", ".join)
def case(
    request: pytest.FixtureRequest, int8_classifier: FrozenClassifier, artefact: Callable[[str, str], Artefact]
) -> Case:
    engine, precision, form = request.param
    if form == "model":  # as one of a library, whose graph is exported once and cached
        return Case(engine, precision, form, replace(int8_classifier, origin="tests"))
    return Case(engine, precision, form, artefact(form, precision))


def test_every_engine_for_the_cpu_has_its_cases() -> None:
    assert {name for name, *_ in CASES} == {"torch", "onnxruntime", "openvino"} == set(CPU_ENGINES)


@pytest.fixture
def bank(make_bank: Callable[..., OccluderBank]) -> Tensor:
    return make_bank().occluders


@pytest.fixture
def engine(case: Case, bank: Tensor):
    with case.made() as engine:
        if not case.embedded:
            engine.load_bank(bank)
        yield engine


@pytest.fixture
def truth(tiny_classifier: FrozenClassifier, bank: Tensor) -> Callable[..., Tensor]:
    """Logits of plain PyTorch in float64, pair by pair from the formula."""
    network = tiny_classifier.network_as("fp32").double()
    mean, std = (
        torch.tensor(v).double() for v in (tiny_classifier.preprocessing.mean, tiny_classifier.preprocessing.std)
    )

    def truth(images: Tensor, pairs: Tensor, occluders: Tensor = bank) -> Tensor:
        rows = torch.cat([torch.zeros_like(occluders[:1]), occluders]).double()
        occluded = (images[pairs[0]].double() + rows[pairs[1]]).clamp(0, 255)
        return network(((occluded / 255 - mean) / std).permute(0, 3, 1, 2))

    return truth


def assert_close(case: Case, logits: Tensor, wanted: Tensor) -> None:
    assert logits.dtype == torch.float32
    assert logits.shape == wanted.shape
    spread = float(wanted.max() - wanted.min()) or 1.0
    assert float((logits.double() - wanted).abs().max()) <= TOLERANCE[case.precision] * max(spread, 1.0)


def test_pairs_in_any_order_and_repetition(case: Case, engine: Engine, truth: Callable[..., Tensor]) -> None:
    logits = engine.infer(IMAGES, *PAIRS)
    assert_close(case, logits, truth(IMAGES, PAIRS))
    assert torch.equal(logits[2], logits[3])  # the same pair twice


def test_any_number_of_pictures_and_pairs(case: Case, engine: Engine, truth: Callable[..., Tensor]) -> None:
    for pairs in (PAIRS[:, :1], PAIRS[:, :4], PAIRS.repeat(1, 3)):
        assert_close(case, engine.infer(IMAGES, *pairs.contiguous()), truth(IMAGES, pairs))
    one = torch.tensor([[0, 0], [2, 0]])
    assert_close(case, engine.infer(IMAGES[3:], *one), truth(IMAGES[3:], one))
    assert engine.infer(IMAGES, *PAIRS[:, :0]).shape == (0, 5)


def test_index_0_is_the_plain_classifier(case: Case, engine: Engine, tiny_classifier: FrozenClassifier) -> None:
    pictures = torch.arange(4)
    scale, shift = (torch.tensor(v) for v in (tiny_classifier.preprocessing.scale, tiny_classifier.preprocessing.shift))
    plain = tiny_classifier.network((IMAGES.float() * scale + shift).permute(0, 3, 1, 2))
    assert_close(case, engine.infer(IMAGES, pictures, torch.zeros_like(pictures)), plain.double())


def test_the_score_is_that_of_the_logits(engine: Engine) -> None:
    labels = torch.tensor([3, 0, 4, 1])
    pictures, occluders = PAIRS
    wanted = score(engine.infer(IMAGES, pictures, occluders), labels[pictures])
    for found, part in zip(engine.score(IMAGES, pictures, occluders, labels), wanted, strict=True):
        assert torch.equal(found, part)


def test_pictures_that_are_no_own_memory(case: Case, engine: Engine, truth: Callable[..., Tensor]) -> None:
    wide = torch.randint(0, 256, (4, SIZE, 2 * SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    half = wide[:, :, SIZE:]
    assert_close(case, engine.infer(half.contiguous(), *PAIRS), truth(half, PAIRS))
    with pytest.raises(ValueError, match="images: expected contiguous"):
        engine.infer(half, *PAIRS)


def test_another_bank_takes_the_place_of_the_first(
    case: Case, engine: Engine, truth: Callable[..., Tensor], bank: Tensor
) -> None:
    if case.embedded:
        with pytest.raises(ValueError, match="embeds its bank"):
            engine.load_bank(bank)
        return
    larger = torch.cat([bank.flip(0) * 2, bank])
    engine.load_bank(larger)
    pairs = torch.tensor([[0, 1, 2], [6, 1, 4]])
    assert_close(case, engine.infer(IMAGES, *pairs), truth(IMAGES, pairs, larger))


BAD_CALLS = [
    (IMAGES, torch.tensor([[4], [0]]), "image_index: entries must lie in 0..3"),
    (IMAGES, torch.tensor([[0], [4]]), "occluder_index: entries must lie in 0..3"),
    (IMAGES, torch.tensor([[0], [-1]]), "occluder_index: entries"),
    (IMAGES.float(), PAIRS, "images: expected uint8"),
    (IMAGES[:, 1:], PAIRS, "images: expected uint8 [B, 16, 16, 3], got uint8 [4, 15, 16, 3]"),
    (IMAGES, PAIRS.int(), "expected two int64"),
]


def test_bad_calls_are_refused_before_the_library_sees_them(engine: Engine) -> None:
    for images, pairs, word in BAD_CALLS:
        with pytest.raises(ValueError, match=re.escape(word)):
            engine.infer(images, *pairs)


def test_no_bank_is_an_error_and_so_is_one_of_another_size(case: Case, bank: Tensor) -> None:
    with case.made() as engine:
        if not case.embedded:
            with pytest.raises(ValueError, match="no bank"):
                engine.infer(IMAGES, *PAIRS)
            with pytest.raises(ValueError, match="occluders: expected float32"):
                engine.load_bank(bank[:, 1:])


def test_an_engine_opens_again_after_it_was_closed(case: Case, bank: Tensor) -> None:
    engine, logits = case.made(), []
    for _ in range(2):
        with engine:
            if not case.embedded:
                with pytest.raises(ValueError, match="no bank"):  # not the one of the last time
                    engine.infer(IMAGES, *PAIRS)
                engine.load_bank(bank)
            logits.append(engine.infer(IMAGES, *PAIRS))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "how"),
    [
        (OpenVinoOptions(hint="latency"), "latency, 1 streams (requested)"),
        (OpenVinoOptions(hint="throughput"), "throughput, "),
        (OpenVinoOptions(streams=2), "throughput, 2 streams (requested)"),
    ],
)
def test_openvinos_options_compute_the_same(
    options: OpenVinoOptions, how: str, tiny_classifier: FrozenClassifier, bank: Tensor
) -> None:
    with OpenVinoEngine(tiny_classifier, "fp32", options=options) as engine:
        engine.load_bank(bank)
        logits = engine.infer(IMAGES, *PAIRS)
        assert engine.how.startswith(how)
    wanted = OccludedClassifier(tiny_classifier)(IMAGES, *PAIRS, bank)
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)


@pytest.mark.skipif("bf16" not in OpenVinoEngine.precisions(), reason="openvino has no bf16 on this CPU")
def test_openvino_keeps_occlusion_in_float32_where_the_network_is_bf16(
    artefact: Callable[[str, str], Artefact], bank: Tensor
) -> None:
    """In bfloat16 200 + 0.3 is 200: two occluders that differ by less than a grey level would give the same bits."""
    case = Case("openvino", "bf16", "openvino, bank an input", artefact("openvino, bank an input", "bf16"))
    images, index = torch.full((1, SIZE, SIZE, 3), 200, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    with case.made() as engine:
        engine.load_bank(torch.stack([torch.full((SIZE, SIZE, 3), d) for d in (0.05, 0.45)]))
        first, second = engine.infer(images, index, torch.tensor([1, 2]))
    assert not torch.equal(first, second)


def in_threes(source: Artefact, folder: Path) -> Artefact:
    """A copy of an artefact, whose logits go through rows of three: only threes of pairs of five classes do."""
    onnx = pytest.importorskip("onnx")
    shutil.copytree(source.folder, folder)
    model, helper = onnx.load(source.path), onnx.helper
    model.graph.node[-1].output[0] = "whole"
    for name, columns in (("odd_shape", 3), ("even_shape", source.num_classes)):
        model.graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT64, [2], [-1, columns]))
    model.graph.node.extend(
        [
            helper.make_node("Reshape", ["whole", "odd_shape"], ["odd"]),
            helper.make_node("Softplus", ["odd"], ["soft"]),  # otherwise OpenVINO makes one of the two
            helper.make_node("Reshape", ["soft", "even_shape"], ["logits"]),
        ]
    )
    onnx.save(model, folder / source.path.name)
    replace(source.manifest, files=file_facts(folder, list(source.manifest.files))).write(folder)
    return Artefact.load(folder)


@pytest.mark.parametrize(("name", "options"), [("onnxruntime", {}), ("openvino", {"hint": "latency"})])
def test_a_graph_that_fails_when_it_runs_is_one_line(
    name: str,
    options: dict[str, str],
    artefact: Callable[[str, str], Artefact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choice, named = EngineChoice(name, "fp32", "cpu", options), r"threes: fails in O.*[Rr]eshape.*export again$"
    subject = in_threes(artefact("onnx", "fp32"), tmp_path / "threes")
    with pytest.raises(InputError, match=named), open_engine(choice, subject):  # before anything is written
        pass
    monkeypatch.setattr(Engine, "_try_one_pair", lambda engine: None)
    with open_engine(choice, subject) as engine:
        assert engine.infer(IMAGES, *PAIRS[:, :3]).shape == (3, 5)
        with pytest.raises(InputError, match=named):
            engine.infer(IMAGES, *PAIRS)


def test_a_lack_of_gpu_memory_in_onnx_runtime_is_one(tiny_classifier: FrozenClassifier, bank: Tensor) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 123")

    with open_engine(EngineChoice("onnxruntime", "fp32", "cpu"), tiny_classifier) as engine:
        assert isinstance(engine, OnnxRuntimeEngine)
        engine.load_bank(bank)
        engine._session.run_with_iobinding = full
        with pytest.raises(torch.OutOfMemoryError, match="requested buffer of size 123"):
            engine.infer(IMAGES, *PAIRS)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["torchvision/googlenet", "torchvision/resnet50", "timm/tf_efficientnet_lite0"])
def test_the_fields_networks_give_pytorchs_logits(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GoogLeNet normalises once more inside (`transform_input`) and has lost its auxiliary heads.

    No node of the network computes a shape: ONNX Runtime puts such nodes on the CPU, and a session that may only use a
    GPU is then refused.
    """
    monkeypatch.setenv("GFO_CACHE", str(tmp_path))
    classifier = load_classifier(ModelSpec(model, "random", input_size=64))
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=g)
    bank = torch.randn(2, 64, 64, 3, generator=g) * 20
    pairs = torch.tensor([[2, 0, 1, 1], [0, 2, 1, 2]])
    with torch.no_grad():
        wanted = OccludedClassifier(classifier)(images, *pairs, bank)
    spread = float(wanted.max() - wanted.min())
    for name in ("onnxruntime", "openvino"):
        with open_engine(EngineChoice(name, "fp32", "cpu"), classifier) as engine:
            engine.load_bank(bank)
            assert float((engine.infer(images, *pairs) - wanted).abs().max()) <= 1e-4 * spread
    for graph in tmp_path.glob("graphs/*/model.onnx"):
        nodes = pytest.importorskip("onnx").load(graph, load_external_data=False).graph.node
        kinds = {node.op_type for node in nodes if node.output[0].startswith("network/")}
        assert {"Conv", "ReduceMean"} <= kinds
        assert kinds.isdisjoint({"Shape", "Range", "Squeeze"})


# ---- choosing


def test_auto_passes_over_what_does_not_come_up(tiny_classifier: FrozenClassifier, bank: Tensor) -> None:
    class Counts(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, : 2 + int(x.sum() > 1e9)]

    untraceable = FrozenClassifier.from_module(Counts(), tiny_classifier.preprocessing, model="counts")
    with open_engine(EngineChoice("auto", "fp32", "cpu"), untraceable) as engine:
        assert engine.name == "torch"
        assert "not openvino: counts: cannot be exported to ONNX" in engine.reason
        engine.load_bank(bank)
        assert engine.infer(IMAGES, *PAIRS).shape == (11, 2)
    choice = EngineChoice("openvino", "fp32")
    with pytest.raises(InputError, match="cannot be exported"), open_engine(choice, untraceable):
        pass


def test_auto_takes_the_fastest_that_there_is_and_says_why(tiny_classifier: FrozenClassifier) -> None:
    found = {}
    for precision, options in (("fp32", {}), ("fp16", {}), ("fp32", {"impl": "reference"})):
        choice = choose_engine(EngineChoice("auto", precision, "cpu", options), tiny_classifier)
        found[precision, *options] = choice
        with open_engine(choice, tiny_classifier) as engine:
            assert (engine.name, engine.reason) == (choice.name, choice.reason)
    assert (found["fp32",].name, found["fp32",].reason) == ("openvino", "the fastest available engine")
    assert [other.name for other in found["fp32",].alternatives] == ["onnxruntime", "torch"]
    assert found["fp16",].name == "torch" or "fp16" in OpenVinoEngine.precisions()
    assert "not openvino: --impl reference: engine openvino has no such option" in found["fp32", "impl"].reason
    assert found["fp32", "impl"].name == "torch"


@pytest.mark.parametrize(
    ("name", "precision", "device", "options", "word"),
    [
        ("fast", "fp32", "auto", {}, "--engine fast: expected one of auto, torch, onnxruntime, openvino, trt"),
        ("torch", "int4", "auto", {}, "--precision int4: expected one of fp32"),
        ("onnxruntime", "bf16", "cpu", {}, "--precision bf16: engine onnxruntime has fp32"),
        ("openvino", "fp32", "cuda", {}, "--device cuda: engine openvino runs on the CPU"),
        (
            "openvino",
            "fp32",
            "auto",
            {"impl": "reference"},
            "--impl reference: engine openvino has no such option",
        ),
        ("auto", "fp32", "cpu", {"provider": "rocm"}, "--provider rocm: engine onnxruntime expects 'auto', 'cpu'"),
        ("auto", "fp32", "cpu", {"impl": "fast"}, "--impl fast: engine torch expects 'auto', 'reference' or 'triton'"),
        ("onnxruntime", "fp32", "cpu", {"provider": "rocm"}, "--provider rocm: engine onnxruntime expects"),
        ("openvino", "fp32", "cpu", {"hint": "fast"}, "--engine-option hint=fast: engine openvino expects 'auto'"),
        ("openvino", "fp32", "cpu", {"streams": "two"}, "--engine-option streams=two: engine openvino expects a valid"),
        ("openvino", "fp32", "cpu", {"streams": "0"}, "--engine-option streams=0: engine openvino expects streams ≥ 1"),
        ("openvino", "fp32", "cpu", {"pace": "1"}, "--engine-option pace=1: engine openvino has no such option"),
        ("trt", "fp32", "auto", {"pace": "1"}, "--engine-option pace=1: engine trt has no such option, it has none"),
        ("onnxruntime", "fp32", "cpu", {"provider": "cuda"}, "--provider cuda: cannot run on --device cpu"),
    ],
)
def test_choices_that_there_are_not(
    name: str, precision: str, device: str, options: dict[str, str], word: str, tiny_classifier: FrozenClassifier
) -> None:
    with pytest.raises(InputError) as caught:
        choose_engine(EngineChoice(name, precision, device, options), tiny_classifier)
    assert word in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_without_its_gpu_is_unavailable_never_the_cpu(
    provider: str, tiny_classifier: FrozenClassifier
) -> None:
    with pytest.raises(EngineUnavailable, match="CUDA"):
        choose_engine(EngineChoice("onnxruntime", "fp32", options={"provider": provider}), tiny_classifier)


def test_an_artefact_runs_on_engines_of_its_format_at_its_precision(artefact: Callable[[str, str], Artefact]) -> None:
    onnx, ir = artefact("onnx", "fp32"), artefact("openvino", "fp32")
    for name, subject, word in (
        ("torch", onnx, "is onnx; use --engine onnxruntime or openvino"),
        ("onnxruntime", ir, "is openvino; use --engine openvino"),
        ("trt", onnx, "runs trt, and"),
    ):
        with pytest.raises(InputError) as caught:
            choose_engine(EngineChoice(name, "fp32", "cpu"), subject)
        assert word in str(caught.value)
    with pytest.raises(InputError, match="was exported at fp32; leave --precision out, or export again at bf16"):
        choose_engine(EngineChoice("openvino", "bf16"), onnx)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "trt"])
def test_a_library_that_is_not_installed_is_named(
    name: str, tiny_classifier: FrozenClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(EngineUnavailable, match=r"not installed.*pip install gfo"):
        choose_engine(EngineChoice(name, "fp32"), tiny_classifier)


# ---- caches


@pytest.fixture
def library_classifier() -> FrozenClassifier:
    """One whose code is a library's: only such graphs are cached."""
    return load_classifier(ModelSpec("gfo/digits-vgg", "random"))


def test_graphs_are_cached_by_what_makes_them_and_never_by_the_bank(
    library_classifier: FrozenClassifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gfo.engine.engines import graphs

    original, made = graphs.occluded_graph, []

    def counted(classifier: FrozenClassifier, precision: str, *rest: object, **how: object) -> object:
        made.append((classifier.weights_hash, precision))
        return original(classifier, precision, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(graphs, "occluded_graph", counted)
    monkeypatch.setenv("GFO_CACHE", str(tmp_path))

    def logits(classifier: FrozenClassifier, scale: float) -> Tensor:
        with open_engine(EngineChoice("onnxruntime", "fp32"), classifier) as engine:
            engine.load_bank(torch.full((1, 32, 32, 3), scale))
            images = torch.full((1, 32, 32, 3), 100, dtype=torch.uint8)
            return engine.infer(images, torch.tensor([0]), torch.tensor([1]))

    first = logits(library_classifier, 10.0)
    assert not torch.equal(logits(library_classifier, 60.0), first)  # another bank, the same graph
    assert torch.equal(logits(library_classifier, 10.0), first)
    assert len(made) == 1
    other = load_classifier(ModelSpec("gfo/digits-vgg", "random", seed=1))
    assert not torch.equal(logits(other, 10.0), first)
    assert len(made) == 2
    monkeypatch.setattr("gfo.engine.engines.graphs.version", lambda name: "another")
    assert torch.equal(logits(library_classifier, 10.0), first)
    assert len(made) == 3


@pytest.mark.parametrize("spoil", ["cut", "changed", "gone"])
def test_a_damaged_graph_in_the_cache_is_made_again(
    spoil: str, library_classifier: FrozenClassifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GFO_CACHE", str(tmp_path))
    with open_engine(EngineChoice("onnxruntime", "fp32"), library_classifier):
        (graph,) = tmp_path.rglob("model.onnx")
    whole = graph.read_bytes()
    if spoil == "gone":
        graph.unlink()
    else:
        graph.write_bytes(whole[:-100] if spoil == "cut" else whole[:-100] + bytes(100))
    with open_engine(EngineChoice("onnxruntime", "fp32"), library_classifier):
        assert len(graph.read_bytes()) == len(whole)
    assert graph.parent.stat().st_mode & 0o777 == 0o755


def test_a_graph_with_another_bank_than_its_manifest_says_is_refused(
    tiny_classifier: FrozenClassifier, make_bank: Callable[..., OccluderBank], tmp_path: Path
) -> None:
    """Rows that are not there would read as other memory, or as clean."""
    one = make_bank(occluders=make_bank().occluders[:1], class_ids=(3,), folders=("ant",))
    for form, names in (("onnx", ("onnxruntime", "openvino")), ("openvino", ("openvino",))):
        large = export(tiny_classifier, make_bank(), tmp_path / form, ExportConfig(form))
        small = export(tiny_classifier, one, tmp_path / f"{form}-small", ExportConfig(form))
        for name in small.manifest.files:
            (large.folder / name).write_bytes((small.folder / name).read_bytes())
        replace(large.manifest, files=file_facts(large.folder, list(large.manifest.files))).write(large.folder)
        for name in names:
            with (
                pytest.raises(InputError, match="inputs and outputs are"),
                open_engine(EngineChoice(name, "fp32"), Artefact.load(large.folder)),
            ):
                pass


def test_a_users_own_network_is_never_cached(
    tiny_classifier: FrozenClassifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GFO_CACHE", str(tmp_path))
    with open_engine(EngineChoice("onnxruntime", "fp32"), tiny_classifier):
        pass
    assert list(tmp_path.rglob("*")) == []


def test_openvino_remembers_what_it_compiled_and_which_hint_was_faster(
    library_classifier: FrozenClassifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GFO_CACHE", str(tmp_path))
    said = []
    for _ in range(2):
        with open_engine(EngineChoice("openvino", "fp32"), library_classifier) as engine:
            said.append(engine.how)
    assert "pairs/s" in said[0]
    assert "measured before" in said[1]
    assert said[0].split(",")[0] == said[1].split(",")[0]
    assert list(tmp_path.rglob("*.blob"))
    blob = next(tmp_path.rglob("*.blob"))
    blob.write_bytes(blob.read_bytes()[:-9] + b"123456789")  # damaged: compiled and measured again
    with open_engine(EngineChoice("openvino", "fp32"), library_classifier) as engine:
        assert "pairs/s" in engine.how


def test_openvino_workers_on_a_cold_cache_leave_each_others_folder_alone(
    library_classifier: FrozenClassifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GFO_CACHE", str(tmp_path))
    made, inside = OpenVinoEngine._made, list[str]()

    def another_worker_opens_meanwhile(engine: OpenVinoEngine, *given: Any) -> Any:
        requests = made(engine, *given)
        monkeypatch.setattr(OpenVinoEngine, "_made", made)
        with open_engine(EngineChoice("openvino", "fp32"), library_classifier) as other:
            inside.append(other.how)
        return requests

    monkeypatch.setattr(OpenVinoEngine, "_made", another_worker_opens_meanwhile)
    choice = EngineChoice("openvino", "fp32", options={"hint": "latency"})
    with open_engine(choice, library_classifier):
        pass
    assert inside


def test_a_graph_that_openvino_does_not_compile_is_one_line(
    tiny_classifier: FrozenClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino")

    def broken(*given: Any) -> Any:
        raise RuntimeError("Exception from src/core.cpp:1:\nno such kernel")

    monkeypatch.setattr(openvino.Core, "compile_model", broken)
    with (
        pytest.raises(InputError, match=r"OpenVINO cannot compile it \(no such kernel\); use another --engine"),
        open_engine(EngineChoice("openvino", "fp32"), tiny_classifier),
    ):
        pass


def test_every_engine_has_a_home_and_a_name() -> None:
    for name in ENGINES.names:
        assert ENGINES[name].name == name
        assert ENGINES[name].devices
        assert ENGINES[name].packages
        ENGINES[name].Options()  # every option has a default
