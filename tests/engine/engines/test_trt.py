"""TensorRT as an engine: here all but the GPU, with ONNX Runtime in the place of the plan; the rest where there is one.

The stand-in is told addresses, shapes and types as TensorRT is, and reads and writes that memory: what is bound in a
wrong order, layout or type gives wrong logits.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gfo.engine.engines.torch import TorchEngine
from gfo.engine.engines.trt import compositions
from gfo.engine.engines.trt import engine as trt_engine
from gfo.engine.engines.trt import runtime as trt_runtime
from gfo.engine.engines.trt.compositions import FixedPairs, around_network
from gfo.engine.engines.trt.engine import TrtEngine
from gfo.engine.engines.trt.runtime import Plan, check_built_for, check_rows, pairs_within, plan_stem, preferred
from gfo.export.artefact import Artefact, ExportConfig, export
from gfo.export.bank import OccluderBank
from gfo.export.classifier import DTYPES, FrozenClassifier, load_classifier
from gfo.export.errors import EngineUnavailable, InputError
from gfo.export.formats.base import Limits
from gfo.export.models.spec import ModelSpec
from gfo.export.occluded import OccludedClassifier
from gfo.export.onnx_graph import NETWORK_INPUT, save_graph
from gfo.export.tensorrt import plan as tensorrt_plan
from gfo.export.tensorrt.library import LIBRARIES, RTX, tensorrt_library
from gfo.export.tensorrt.plan import bare_graph

CPU = torch.device("cpu")
PAIRS = 4
LENGTHS = [0, 1, PAIRS - 1, PAIRS, PAIRS + 1, 3 * PAIRS + 2]
OCCLUDERS = 3
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "UINT8": np.uint8, "INT64": np.int64}


def pictures(count: int, size: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=g)


def occluders(size: int, seed: int = 0, rows: int = OCCLUDERS) -> Tensor:
    return torch.randn(rows, size, size, 3, generator=torch.Generator().manual_seed(seed)) * 20


def pair_list(length: int, images: int, rows: int = OCCLUDERS) -> tuple[Tensor, Tensor]:
    """Unordered, with repetitions; the clean row among them."""
    g = torch.Generator().manual_seed(length)
    return torch.randint(0, images, (length,), generator=g), torch.randint(0, rows + 1, (length,), generator=g)


# ---- the composition


def network_of(classifier: FrozenClassifier, kind: str, folder: Path) -> Callable[[Tensor], Tensor]:
    if kind != "onnxruntime":
        return classifier.network_as(kind)
    onnxruntime = pytest.importorskip("onnxruntime")
    save_graph(bare_graph(classifier, "fp32"), folder / "bare.onnx")
    session = onnxruntime.InferenceSession(folder / "bare.onnx", providers=["CPUExecutionProvider"])

    def network(x: Tensor) -> Tensor:
        assert x.permute(0, 2, 3, 1).is_contiguous()  # as a plan reads it
        return torch.from_numpy(session.run(None, {NETWORK_INPUT: x.permute(0, 2, 3, 1).numpy()})[0])

    return network


@pytest.mark.parametrize("kind", ["fp32", "bf16", "onnxruntime"])
@torch.inference_mode()
def test_fixed_pairs_around_a_network_are_the_occluded_classifier(
    tiny_classifier: FrozenClassifier, tmp_path: Path, kind: str
) -> None:
    precision, network = "bf16" if kind == "bf16" else "fp32", network_of(tiny_classifier, kind, tmp_path)
    images, bank, fixed = pictures(5, 16), occluders(16), FixedPairs(PAIRS, 16, CPU)
    whole = OccludedClassifier(tiny_classifier, precision, bank)
    seen: list[tuple[int, ...]] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        assert x.dtype == DTYPES[precision]
        return network(x)

    step = around_network(watched, fixed, bank, tiny_classifier.preprocessing, precision, "reference")
    for length in LENGTHS:
        lists, found = pair_list(length, 5), torch.full((length, 5), torch.nan)
        fixed.run(step, images, *lists, found)
        tolerance = 2e-2 if kind == "bf16" else 1e-5
        torch.testing.assert_close(found, whole(images, *lists), rtol=tolerance, atol=tolerance)
    assert set(seen) == {(PAIRS, 3, 16, 16)}
    assert len(seen) == sum(-(-length // PAIRS) for length in LENGTHS)


def test_a_pass_that_is_not_full_is_filled_with_clean_pairs() -> None:
    fixed, found = FixedPairs(PAIRS, 2, CPU), []

    def step() -> Tensor:
        found.append(fixed.occluder_index.tolist())
        return fixed.images.flatten(1)[:, :1].float()

    images, logits = pictures(9, 2), torch.empty(6, 1)
    fixed.run(step, images, torch.tensor([8, 0, 3, 3, 1, 7]), torch.tensor([9, 8, 7, 6, 5, 4]), logits)
    assert found == [[9, 8, 7, 6], [5, 4, 0, 0]]
    assert torch.equal(logits[:, 0], images[[8, 0, 3, 3, 1, 7], 0, 0, 0].float())
    assert fixed.image_index.tolist() == [0, 1, 2, 3]


# ---- what is known before anything native is loaded

LIMITS = Limits((2, 8, 8), (1, 6, 6), (2, 2, 11), RTX, "1.7", ("8.6", "8.9"))
FOLDER = Path("exported")


def test_a_plan_for_this_library_and_gpu_is_let_through() -> None:
    assert check_built_for(FOLDER, LIMITS, RTX, "1.7", "8.9") is LIMITS


@pytest.mark.parametrize(
    ("library", "version", "capability", "words"),
    [
        ("tensorrt", "1.7", "8.9", "built by tensorrt_rtx 1.7, and tensorrt 1.7 is installed here"),
        (RTX, "1.8", "8.9", r"built by tensorrt_rtx 1\.7, and tensorrt_rtx 1\.8 .* pip install tensorrt-rtx==1\.7"),
        (RTX, "1.7", "12.0", r"compute capability 8\.6, 8\.9, and this one has 12\.0; .*--compute-capability 12\.0"),
    ],
)
def test_a_plan_for_another_library_or_gpu_is_refused(library: str, version: str, capability: str, words: str) -> None:
    with pytest.raises(EngineUnavailable, match=f"exported: .*{words}"):
        check_built_for(FOLDER, LIMITS, library, version, capability)


def test_a_plan_that_nothing_is_said_of_is_refused() -> None:
    with pytest.raises(InputError, match="exported: its manifest does not say"):
        check_built_for(FOLDER, None, RTX, "1.7", "8.9")


def test_a_pass_has_no_more_pairs_than_the_plan_takes_pairs_and_pictures() -> None:
    assert [pairs_within(FOLDER, LIMITS, asked) for asked in (None, 100, 6, 3, 2)] == [6, 6, 6, 3, 2]
    with pytest.raises(InputError, match="--batch-size 1: exported takes 2 to 6 pairs"):
        pairs_within(FOLDER, LIMITS, 1)


def test_a_bank_with_too_few_or_too_many_occluders_is_refused() -> None:
    for count in (1, 10):
        check_rows(FOLDER, LIMITS, count)
    for count in (0, 11):
        with pytest.raises(InputError, match=f"exported: takes banks of 1 to 10 occluders, and this one has {count}"):
            check_rows(FOLDER, LIMITS, count)


def test_an_artefact_is_first_tried_with_its_own_library() -> None:
    assert preferred(None) == LIBRARIES
    assert preferred(LIMITS) == (RTX, "tensorrt")
    assert set(preferred(replace(LIMITS, library="os"))) == set(LIBRARIES)  # a manifest names no module to import


def test_files_for_another_library_or_gpu_have_another_name() -> None:
    names = {plan_stem(*facts) for facts in [(RTX, "1.7", "NVIDIA RTX 4090/x", "8.9"), (RTX, "1.8", "a", "8.9")]}
    assert len(names) == 2
    assert all("/" not in name and " " not in name for name in names)


# ---- without a GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_is_installed_what_is_missing_and_what_to_do(
    tiny_classifier: FrozenClassifier,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    _, library, version = tensorrt_library()
    for device in ("auto", "cuda"):
        with pytest.raises(EngineUnavailable) as info:
            TrtEngine(tiny_classifier, "fp32", device)
        for words in (f"{library} {version} is installed", "no CUDA GPU or NVIDIA driver", "--engine openvino"):
            assert words in str(info.value)


def test_it_does_not_run_on_the_cpu_nor_with_no_pairs(tiny_classifier: FrozenClassifier) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(InputError, match="--device cpu"):
        TrtEngine.precisions("cpu")
    with pytest.raises(InputError, match="--batch-size 0"):
        TrtEngine(tiny_classifier, "fp32", pairs=0)


# ---- with ONNX Runtime in the place of the plan


class Stand:
    """Of the library: it builds for real, and loads and runs by ONNX Runtime.

    `fails` names a call that tells of a failure as TensorRT does; `graphs` has the ONNX file of each plan.
    """

    def __init__(self, real: Any) -> None:
        self._real = real
        self.fails = ""
        self.graphs: dict[bytes, bytes] = {}
        self.builds = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def Runtime(self, logger: Any) -> Any:  # noqa: N802 (the library's name)
        assert isinstance(logger, self._real.ILogger)
        return SimpleNamespace(deserialize_cuda_engine=self._load)

    def _load(self, plan: bytes) -> Any:
        assert plan in self.graphs, "loaded a plan that this test has not built"
        return None if self.fails == "deserialize_cuda_engine" else StandEngine(self, self.graphs[plan])


class StandEngine:
    def __init__(self, stand: Stand, graph: bytes) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        self.stand = stand
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, place: int) -> str:
        return self.names[place]

    def get_tensor_dtype(self, name: str) -> Any:
        kinds = {"float": "FLOAT", "float16": "HALF", "uint8": "UINT8", "int64": "INT64"}
        kind = {**self.inputs, **self.outputs}[name].type
        return getattr(self.stand.DataType, kinds[kind.removeprefix("tensor(").removesuffix(")")])

    def get_tensor_mode(self, name: str) -> Any:
        return self.stand.TensorIOMode.INPUT if name in self.inputs else self.stand.TensorIOMode.OUTPUT

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(
            create_runtime_cache=lambda: SimpleNamespace(deserialize=lambda blob: False, serialize=lambda: b"compiled"),
            set_runtime_cache=lambda cache: self.stand.fails != "set_runtime_cache",
        )

    def create_execution_context(self, config: Any) -> Any:
        eager = self.stand.DynamicShapesKernelSpecializationStrategy.EAGER
        assert config.dynamic_shapes_kernel_specialization_strategy == eager
        return None if self.stand.fails == "create_execution_context" else StandContext(self)


class StandContext:
    def __init__(self, engine: StandEngine) -> None:
        self.engine, self.stand = engine, engine.stand
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self.stand.fails != "set_input_shape"

    def infer_shapes(self) -> list[str]:
        return ["pictures"] if self.stand.fails == "infer_shapes" else []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        lead = "image_index" if "image_index" in self.shapes else NETWORK_INPUT
        return (self.shapes[lead][0], self.engine.outputs[name].shape[1])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.stand.fails != "set_tensor_address"

    def memory(self, name: str) -> Any:
        kind, shape = (
            NUMPY[self.engine.get_tensor_dtype(name).name],
            self.shapes.get(name) or self.get_tensor_shape(name),
        )
        raw = (ctypes.c_char * (int(np.prod(shape)) * np.dtype(kind).itemsize)).from_address(self.addresses[name])
        return np.frombuffer(memoryview(raw), dtype=kind).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        if self.stand.fails == "execute_async_v3":
            return False
        given = {name: self.memory(name).copy() for name in self.engine.inputs}
        for name, value in zip(self.engine.outputs, self.engine.session.run(None, given), strict=True):
            self.memory(name)[...] = value
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return False


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    """The stand-in in the library's place, and the CPU in that of a GPU of compute capability 8.9."""
    made, build = Stand(pytest.importorskip("tensorrt_rtx")), tensorrt_plan.tensorrt_from_onnx
    if tensorrt_library()[1] != RTX:
        pytest.skip("it builds with TensorRT for RTX")

    def building(source: Path, target: Path, *rest: Any, **how: Any) -> Any:
        report = build(source, target, *rest, **how)
        made.graphs[target.read_bytes()] = source.read_bytes()
        made.builds += 1
        return report

    @contextlib.contextmanager
    def no_stream(engine: TrtEngine) -> Iterator[None]:
        yield

    for module in (compositions, tensorrt_plan):
        monkeypatch.setattr(module, "tensorrt_from_onnx", building)
    for module in (trt_engine, tensorrt_plan):
        monkeypatch.setattr(module, "capability_here", lambda: "8.9")
    monkeypatch.setattr(trt_runtime, "tensorrt_library", lambda wanted: (made, RTX, made.__version__))
    monkeypatch.setattr(trt_engine, "_gpu", lambda device: CPU)
    monkeypatch.setattr(TrtEngine, "precisions", classmethod(lambda cls, device: ("fp32", "fp16")))
    monkeypatch.setattr(TrtEngine, "_on_stream", no_stream)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    return made


def truth(classifier: FrozenClassifier, bank: Tensor, images: Tensor, lists: tuple[Tensor, Tensor]) -> Tensor:
    with TorchEngine(classifier, "fp32", "cpu") as engine:
        engine.load_bank(bank)
        return engine.infer(images, *lists)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 2e-2)])
def test_a_classifier_runs_around_a_plan_of_its_network(
    stand: Stand, tiny_classifier: FrozenClassifier, precision: str, tolerance: float
) -> None:
    images = pictures(9, 16)
    with TrtEngine(tiny_classifier, precision, pairs=PAIRS) as engine:
        assert "built now, 4 pairs in a pass" in engine.how
        for seed, rows in enumerate((3, 5, 2)):  # a bank of another size, and then of fewer rows than indices before
            bank = occluders(16, seed, rows)
            engine.load_bank(bank)
            for length in LENGTHS:
                lists = pair_list(length, 9, rows)
                wanted = truth(tiny_classifier, bank, images, lists)
                found = engine.infer(engine.place(images), *lists)
                torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert stand.builds == 1


def test_a_bank_of_equal_shape_takes_the_place_of_the_last_one(
    stand: Stand, tiny_classifier: FrozenClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captured step reads it there; whoever gave the last one keeps it as it was."""
    captures, capture = list[int](), TrtEngine._captured
    monkeypatch.setattr(TrtEngine, "_captured", lambda engine: captures.append(1) or capture(engine))
    images, lists = pictures(9, 16), pair_list(10, 9, 3)
    with TrtEngine(tiny_classifier, "fp32", pairs=PAIRS) as engine:
        for seed, rows, count in ((0, 3, 1), (1, 3, 1), (2, 4, 2), (3, 4, 2), (4, 3, 3)):
            bank = occluders(16, seed, rows)
            given = bank.clone()
            engine.load_bank(given)
            wanted = truth(tiny_classifier, bank, images, lists)
            torch.testing.assert_close(engine.infer(images, *lists), wanted, rtol=1e-5, atol=1e-5)
            assert len(captures) == count
            engine.load_bank(torch.zeros_like(bank))
            assert torch.equal(given, bank)


def test_a_verdict_is_that_of_the_torch_engine(stand: Stand, tiny_classifier: FrozenClassifier) -> None:
    images, bank, labels, lists = pictures(9, 16), occluders(16), torch.arange(9) % 5, pair_list(13, 9)
    verdicts = []
    for engine in (TrtEngine(tiny_classifier, "fp32", pairs=PAIRS), TorchEngine(tiny_classifier, "fp32", "cpu")):
        with engine:
            engine.load_bank(bank)
            verdicts.append(engine.score(images, *lists, labels))
    assert torch.equal(verdicts[0].prediction, verdicts[1].prediction)
    assert torch.equal(verdicts[0].rank, verdicts[1].rank)
    torch.testing.assert_close(verdicts[0].margin, verdicts[1].margin, rtol=1e-5, atol=1e-5)


def test_a_plan_is_built_once_for_a_network_precision_and_number_of_pairs(stand: Stand) -> None:
    classifier = load_classifier(ModelSpec("gfo/digits-resnet", "random", seed=5))
    for pairs, builds, words in (
        (2, 1, "built now"),
        (2, 1, "of an earlier run"),
        (3, 2, "built now"),
        (3, 2, "earlier"),
    ):
        with TrtEngine(classifier, "fp32", pairs=pairs) as engine:
            assert words in engine.how
        assert stand.builds == builds


def exported(classifier: FrozenClassifier, bank: OccluderBank, folder: Path, bank_input: bool) -> Artefact:
    config = ExportConfig("trt", bank_input=bank_input, batch_size=PAIRS)
    return export(classifier, bank, folder, config)


@pytest.mark.parametrize("bank_input", [False, True])
@pytest.mark.parametrize("asked", [None, 3])
def test_an_artefact_runs_whole_with_more_pictures_than_it_takes_at_once(
    stand: Stand,
    tiny_classifier: FrozenClassifier,
    make_bank: Callable[..., OccluderBank],
    tmp_path: Path,
    bank_input: bool,
    asked: int | None,
) -> None:
    bank, images = make_bank(occluders=occluders(16).clamp(-8, 8)), pictures(9, 16)
    artefact = exported(tiny_classifier, bank, tmp_path / "out", bank_input)
    with TrtEngine(artefact, "fp32", pairs=asked) as engine:
        assert f"an exported plan, {asked or PAIRS} pairs" in engine.how
        if bank_input:
            engine.load_bank(bank.occluders)
        for length in LENGTHS:
            lists = pair_list(length, 9)
            wanted = truth(tiny_classifier, bank.occluders, images, lists)
            torch.testing.assert_close(engine.infer(images, *lists), wanted, rtol=1e-5, atol=1e-5)


def test_an_artefact_for_other_gpus_is_refused_before_it_is_loaded(
    stand: Stand,
    tiny_classifier: FrozenClassifier,
    make_bank: Callable[..., OccluderBank],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artefact = exported(tiny_classifier, make_bank(), tmp_path / "out", True)
    with TrtEngine(artefact, "fp32") as engine, pytest.raises(InputError, match="takes banks of 1 to 6 occluders"):
        engine.load_bank(occluders(16, rows=1001))
    stand.graphs.clear()  # loading it would now be another error
    monkeypatch.setattr(trt_engine, "capability_here", lambda: "12.0")
    with pytest.raises(EngineUnavailable, match=r"compute capability 8\.9, and this one has 12\.0"):
        TrtEngine(artefact, "fp32")


@pytest.mark.parametrize(
    "call",
    [
        "deserialize_cuda_engine",
        "create_execution_context",
        "set_runtime_cache",
        "set_input_shape",
        "infer_shapes",
        "set_tensor_address",
        "execute_async_v3",
    ],
)
def test_whatever_call_fails_is_an_error(stand: Stand, tiny_classifier: FrozenClassifier, call: str) -> None:
    stand.fails = call
    classifier = replace(tiny_classifier, origin=f"{call}: compiled kernels are kept only beside what is cached")
    unloaded = call in ("deserialize_cuda_engine", "create_execution_context")
    words = r"tensorrt_rtx [\d.]+ (cannot load it|cannot run it here)" if unloaded else f"TensorRT: {call}.* failed"
    with pytest.raises(EngineUnavailable if unloaded else RuntimeError, match=words):
        run_once(classifier)


def test_what_is_kept_and_damaged_is_made_again(
    stand: Stand, tiny_classifier: FrozenClassifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GFO_CACHE", str(tmp_path / "cache"))
    classifier = replace(tiny_classifier, origin="named, so that it is kept")
    for _ in range(2):
        for found, kernels in (("a plan built now", b""), ("a plan of an earlier run", b"compiled")):
            with TrtEngine(classifier, "fp32", pairs=PAIRS) as engine:
                assert found in engine.how
                assert engine._plan._kept == kernels
        for kind in ("plan", "jit"):
            (path,) = tmp_path.rglob(f"*.{kind}")
            path.write_bytes(path.read_bytes() + b"damage")


def run_once(classifier: FrozenClassifier) -> None:
    with TrtEngine(classifier, "fp32", pairs=PAIRS) as engine:
        engine.load_bank(occluders(16))
        engine.infer(pictures(1, 16), *pair_list(1, 1))


def test_a_plan_takes_no_other_names_types_or_layouts(
    stand: Stand, tiny_classifier: FrozenClassifier, tmp_path: Path
) -> None:
    source, path = tmp_path / "bare.onnx", tmp_path / "bare.plan"
    save_graph(bare_graph(tiny_classifier, "fp32"), source)
    tensorrt_plan.tensorrt_from_onnx(source, path, "fp32", tensorrt_plan.bare_profile(16, 2))
    plan, x = Plan(RTX, path, CPU), torch.zeros(2, 16, 16, 3)
    assert plan({NETWORK_INPUT: x}).shape == (2, 5)
    for inputs, words in (
        ({"images": x}, r"takes \['pictures'\], got \['images'\]"),
        ({NETWORK_INPUT: x.half()}, "expected contiguous torch.float32"),
        ({NETWORK_INPUT: x.transpose(1, 2)}, "expected contiguous"),
        ({NETWORK_INPUT: x.to("meta")}, "on cpu, got torch.float32 on meta"),
    ):
        with pytest.raises(ValueError, match=words):
            plan(inputs)


# ---- on a GPU


def _usable() -> str:
    """Why the engine cannot run here; empty where it can."""
    try:
        TrtEngine.precisions()
    except EngineUnavailable as error:
        return str(error)
    return ""


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]
on_gpu = [*gpu, pytest.mark.skipif(torch.cuda.is_available() and bool(_usable()), reason="no TensorRT for this GPU")]
TOLERANCES = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 4e-1}


def marked(function: Callable[..., None]) -> Callable[..., None]:
    for mark in on_gpu:
        function = mark(function)
    return function


@pytest.fixture(scope="module")
def digits() -> FrozenClassifier:
    return load_classifier(ModelSpec("gfo/digits-resnet", "random", seed=6))


@marked
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_gpu_a_classifier_gives_the_logits_of_the_torch_engine(digits: FrozenClassifier, precision: str) -> None:
    size = digits.preprocessing.input_size
    images, bank = pictures(9, size), occluders(size)
    with TrtEngine(digits, precision, pairs=PAIRS) as engine:
        engine.load_bank(bank)
        for length in LENGTHS:
            lists = pair_list(length, 9)
            wanted = truth(digits, bank, images, lists)
            found = engine.infer(engine.place(images), *lists).cpu()
            assert float((found - wanted).abs().max() if length else 0) <= TOLERANCES[precision] * float(
                wanted.std() + 1
            )


@marked
def test_gpu_passes_repeat_bit_for_bit_and_do_not_hang_on_their_place(digits: FrozenClassifier) -> None:
    size = digits.preprocessing.input_size
    images, lists = pictures(9, size), pair_list(3 * PAIRS + 2, 9)
    with TrtEngine(digits, "fp32", pairs=PAIRS) as engine:
        engine.load_bank(occluders(size))
        first, second = (engine.infer(images, *lists) for _ in range(2))
        assert torch.equal(first, second)
        assert "no CUDA graph" not in engine.how
        alone = [engine.infer(images, *(index[i : i + 1] for index in lists)) for i in range(len(first))]
        # Neither the other pairs of a pass nor its tail change anything but rounding.
        torch.testing.assert_close(torch.cat(alone), first, rtol=1e-5, atol=1e-5)
        other = torch.cuda.Stream()
        with torch.cuda.stream(other):
            assert torch.equal(engine.infer(images, *lists), first)


@marked
def test_gpu_another_bank_is_not_the_captured_one(digits: FrozenClassifier) -> None:
    size = digits.preprocessing.input_size
    images = pictures(9, size)
    with TrtEngine(digits, "fp32", pairs=PAIRS) as engine:
        for seed, rows in enumerate((3, 3, 5, 3)):
            bank, lists = occluders(size, seed, rows), pair_list(10, 9, rows)
            engine.load_bank(bank)
            found = engine.infer(images, *lists).cpu()
            torch.testing.assert_close(found, truth(digits, bank, images, lists), rtol=1e-3, atol=1e-3)


@marked
def test_gpu_a_verdict_is_that_of_the_torch_engine(digits: FrozenClassifier) -> None:
    size = digits.preprocessing.input_size
    images, labels, lists = pictures(9, size), torch.arange(9), pair_list(21, 9)
    verdicts = []
    for engine in (TrtEngine(digits, "fp32", pairs=PAIRS), TorchEngine(digits, "fp32", "cuda")):
        with engine:
            engine.load_bank(occluders(size))
            verdicts.append(engine.score(engine.place(images), *lists, engine.place(labels)))
    assert torch.equal(verdicts[0].prediction, verdicts[1].prediction)
    torch.testing.assert_close(verdicts[0].margin, verdicts[1].margin, rtol=1e-3, atol=1e-3)


@marked
def test_gpu_a_second_run_finds_the_plan(digits: FrozenClassifier) -> None:
    hows = []
    for _ in range(2):
        with TrtEngine(digits, "fp16", pairs=5) as engine:
            engine.load_bank(occluders(digits.preprocessing.input_size))
            hows.append(engine.how)
    assert "built now" in hows[0]
    assert "earlier run" in hows[1]


@marked
@pytest.mark.parametrize("bank_input", [False, True])
def test_gpu_an_artefact_gives_the_logits_of_the_torch_engine(
    tiny_classifier: FrozenClassifier, make_bank: Callable[..., OccluderBank], tmp_path: Path, bank_input: bool
) -> None:
    bank, images = make_bank(occluders=occluders(16).clamp(-8, 8)), pictures(9, 16)
    with TrtEngine(exported(tiny_classifier, bank, tmp_path / "out", bank_input), "fp32") as engine:
        if bank_input:
            engine.load_bank(bank.occluders)
        for length in LENGTHS:
            lists = pair_list(length, 9)
            wanted = truth(tiny_classifier, bank.occluders, images, lists)
            torch.testing.assert_close(engine.infer(images, *lists).cpu(), wanted, rtol=1e-3, atol=1e-3)


@marked
@pytest.mark.parametrize(("precision", "type_name"), [("fp16", "half"), ("bf16", "bf")])
def test_gpu_layers_run_in_the_type_of_the_precision(digits: FrozenClassifier, precision: str, type_name: str) -> None:
    with TrtEngine(digits, precision, pairs=PAIRS) as engine:
        engine.load_bank(occluders(digits.preprocessing.input_size))
        engine.infer(pictures(1, digits.preprocessing.input_size), *pair_list(1, 1))
        layers = engine.layers().lower()
    assert type_name in layers or {"fp16": "fp16", "bf16": "bfloat16"}[precision] in layers
