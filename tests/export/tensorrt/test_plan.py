"""Real builds by TensorRT for RTX, which needs no GPU for them: types, sizes and targets, and what is refused."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

from gfo.export.classifier import FrozenClassifier, load_classifier
from gfo.export.errors import EngineUnavailable, InputError
from gfo.export.models.spec import ModelSpec
from gfo.export.onnx_graph import occluded_graph, save_graph
from gfo.export.tensorrt import library as library_module
from gfo.export.tensorrt import plan as plan_module
from gfo.export.tensorrt.library import PORTABLE_TARGETS, RTX, choose_targets, rtx_targets, tensorrt_library
from gfo.export.tensorrt.plan import (
    PlanReport,
    Profile,
    bare_graph,
    bare_profile,
    self_contained_profile,
    tensorrt_from_onnx,
)

trt = pytest.importorskip("tensorrt_rtx")

TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
ROWS = (2, 1001)
# Weights of the real ones in float32; a plan has them once, whatever it is for.
MEGABYTES = {"resnet50": 102, "googlenet": 26, "vgg16": 553}

pytestmark = pytest.mark.skipif(
    tensorrt_library()[1] != RTX, reason="these build with TensorRT for RTX, and tensorrt is installed here"
)


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "capability_here", lambda: None)


def build(source: Path, precision: str, profile: Profile, *targets: str) -> tuple[PlanReport, int]:
    """The report, and the bytes of the plan."""
    plan = source.with_suffix(".plan")
    report = tensorrt_from_onnx(source, plan, precision, profile, compute_capabilities=targets)
    size = plan.stat().st_size
    plan.unlink()
    return report, size


# ---- the models of the source


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [("resnet50", "fp32"), ("googlenet", "fp16")])
def test_real_networks_build_whole_in_the_type_of_their_precision(
    name: str, precision: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    classifier = load_classifier(ModelSpec(f"torchvision/{name}", "random"))
    with saved(occluded_graph(classifier, precision, None, gather="float32"), tmp_path) as path:
        report, size = build(path, precision, self_contained_profile(224, 64, ROWS))
    assert report.compute_capabilities == PORTABLE_TARGETS
    expect_types(report, precision, islands=True)
    expect_size(size, name, precision)
    written = capfd.readouterr()
    assert written.out + written.err == ""


@pytest.mark.slow
def test_the_largest_network_builds_alone_in_the_type_of_its_precision(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, precision = "vgg16", "fp16"
    classifier = load_classifier(ModelSpec(f"torchvision/{name}", "random"))
    with saved(bare_graph(classifier, precision), tmp_path) as path:
        report, size = build(path, precision, bare_profile(224, 64), "8.9")
        expect_limit(path, precision)
    assert report == PlanReport(RTX, trt.__version__, ("8.9",), report.layer_types)
    expect_types(report, precision, islands=False)
    expect_size(size, name, precision)
    written = capfd.readouterr()
    assert written.out + written.err == ""


@contextlib.contextmanager
def saved(graph: onnx.ModelProto, folder: Path) -> Iterator[Path]:
    """The file of a graph, removed at the end: half a gigabyte for VGG-16."""
    path = folder / "graph.onnx"
    save_graph(graph, path)
    yield path
    path.unlink()
    Path(f"{path}.data").unlink(missing_ok=True)


def expect_types(report: PlanReport, precision: str, islands: bool) -> None:
    """Every float layer has the type of the precision; occlusion and logits around it, where they are, are float32."""
    floats = {kind: n for kind, n in report.layer_types.items() if kind in TYPES.values()}
    assert floats[TYPES[precision]] > 40
    around = sum(floats.values()) - floats[TYPES[precision]]
    # VGG's two dropouts leave a constant behind.
    assert around <= 18 if islands else around <= 2
    if precision == "fp16":
        assert (around > 5) == islands


def expect_size(size: int, name: str, precision: str) -> None:
    share = size / 1e6 / MEGABYTES[name] * (1 if precision == "fp32" else 2)
    assert 0.9 < share < 1.7  # some weights are kept in a second form


def expect_limit(bare: Path, precision: str) -> None:
    """VGG-16 reaches 2³¹ elements at 669 pairs; TensorRT itself would build that."""
    with pytest.raises(
        InputError, match=r"--batch-size 669: a tensor \[669, 64, 224, 224\] .* --batch-size 668 or les"
    ):
        build(bare, precision, bare_profile(224, 669))


# ---- the tiny network


@pytest.fixture(scope="module")
def graphs(tiny_classifier: FrozenClassifier, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Files of the tiny network: `graphs(precision, form)`; form is `bare`, `input`, `embedded` or `bytes`."""
    folder, bank = tmp_path_factory.mktemp("graphs"), torch.full((2, 16, 16, 3), 8.0)

    def graph(precision: str, form: str = "bare") -> Path:
        path = folder / f"{precision}-{form}.onnx"
        if not path.exists():
            if form == "bare":
                made = bare_graph(tiny_classifier, precision)
            else:
                gather = "uint8" if form == "bytes" else "float32"
                made = occluded_graph(tiny_classifier, precision, None if form == "input" else bank, gather=gather)
            save_graph(made, path)
        return path

    return graph


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("form", ["bare", "input", "embedded"])
def test_every_form_builds_at_every_precision(graphs: Callable[..., Path], precision: str, form: str) -> None:
    profile = (
        bare_profile(16, 3) if form == "bare" else self_contained_profile(16, 7, ROWS if form == "input" else None)
    )
    report, size = build(graphs(precision, form), precision, profile)
    assert report.layer_types[TYPES[precision]] > 5
    assert size > 5_000


@pytest.mark.parametrize("form", ["bare", "embedded"])
def test_int8_builds_with_signed_conversions_around_float32_products(
    form: str, int8_classifier: FrozenClassifier, tmp_path: Path
) -> None:
    path, bank = tmp_path / "int8.onnx", torch.full((2, 16, 16, 3), 8.0)
    if form == "bare":
        made, profile = bare_graph(int8_classifier, "int8"), bare_profile(16, 3)
    else:
        made = occluded_graph(int8_classifier, "int8", bank, gather="float32")
        profile = self_contained_profile(16, 7, None)
    save_graph(made, path)
    report, size = build(path, "int8", profile, "8.9")
    assert report.layer_types["INT8"] >= 2
    assert {"HALF", "BF16", "UINT8"}.isdisjoint(report.layer_types)
    assert size > 5_000
    with pytest.raises(InputError, match=r"--precision fp32: int8\.onnx has \d+ conversions to int8"):
        build(path, "fp32", profile)


def test_a_profile_has_the_ranges_that_it_is_asked_for() -> None:
    picture = (16, 16, 3)
    assert self_contained_profile(16, 7, (2, 9)) == {
        "images": ((1, *picture), (7, *picture), (7, *picture)),
        "image_index": ((1,), (7,), (7,)),
        "occluder_index": ((1,), (7,), (7,)),
        "bank": ((2, *picture), (2, *picture), (9, *picture)),
    }
    assert "bank" not in self_contained_profile(16, 7, None)
    assert bare_profile(16, 3) == {"pictures": ((3, *picture),) * 3}


def test_a_graph_of_another_precision_is_refused(graphs: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"--precision fp16: fp32-bare\.onnx .* in HALF, and TensorRT finds \d+ FLOAT"):
        build(graphs("fp32"), "fp16", bare_profile(16, 3))


def test_a_gather_of_bytes_is_refused_with_the_way_out(graphs: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"fp32-bytes\.onnx: .*UINT8 \(Gather\)\); gather pictures as float32") as info:
        build(graphs("fp32", "bytes"), "fp32", self_contained_profile(16, 3, None))
    assert "\n" not in str(info.value)


def test_a_file_that_is_cut_off_is_refused_and_leaves_nothing(graphs: Callable[..., Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(graphs("fp32").read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"broken\.onnx: TensorRT does not take it \(.*[Pp]arse") as info:
        build(broken, "fp32", bare_profile(16, 3))
    assert "\n" not in str(info.value)
    assert list(tmp_path.iterdir()) == [broken]


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"images": bare_profile(16, 3)["pictures"]}, "takes pictures, and the profile names images"),
        ({**bare_profile(16, 3), "bank": ((1,), (1,), (1,))}, "the profile names pictures, bank"),
        (bare_profile(17, 3), r"pictures is \[-1, 16, 16, 3\], and the profile has \[3, 17, 17, 3\]"),
        ({"pictures": ((1, 16, 16), (1, 16, 16), (1, 16, 16))}, r"the profile has \[1, 16, 16\]"),
        ({"pictures": ((1, 16, 16, 3), (3, 16, 16, 3), (2, 16, 16, 3))}, "not in order"),
        (bare_profile(16, 0), "not in order"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(graphs: Callable[..., Path], profile: Profile, words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(graphs("fp32"), "fp32", profile)


def test_sizes_are_checked_at_the_largest_shapes_of_a_profile_with_a_range(graphs: Callable[..., Path]) -> None:
    most = (2**31 - 1) // (16 * 16 * 3)
    for pairs in (most, most + 1):
        profile = self_contained_profile(16, pairs, None)
        if pairs == most:
            build(graphs("fp32", "embedded"), "fp32", profile)
            continue
        with pytest.raises(InputError, match=f"use --batch-size {most} or less"):
            build(graphs("fp32", "embedded"), "fp32", profile)
    with pytest.raises(InputError, match="smaller --input-size"):
        build(graphs("fp32", "input"), "fp32", self_contained_profile(16, 4, (2, most + 1)))


# ---- targets


@pytest.mark.parametrize("target", ["9.0", "8.8", "SM89", ""])
def test_a_target_that_rtx_lacks_is_refused_with_those_it_has(graphs: Callable[..., Path], target: str) -> None:
    with pytest.raises(InputError, match=f"--compute-capability {target}: .* has 7.5, 8.0, 8.6, 8.9, 12.0") as info:
        build(graphs("fp32"), "fp32", bare_profile(16, 3), "8.9", target)
    assert ("gfo[trt]" in str(info.value)) == (target == "9.0")


def test_bf16_for_a_gpu_without_it_is_refused_in_tensorrts_words(graphs: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"cannot build it for 7\.5 \(.*sm75") as info:
        build(graphs("bf16"), "bf16", bare_profile(16, 3), "7.5")
    assert "\n" not in str(info.value)


def test_the_gpu_that_is_here_is_the_target_unless_rtx_has_nothing_for_it() -> None:
    assert choose_targets(trt, RTX, (), "8.9") == ("8.9",)
    assert choose_targets(trt, RTX, ("12.0", "8.6", "12.0"), "8.9") == ("12.0", "8.6")
    assert choose_targets(trt, RTX, (), None) == PORTABLE_TARGETS
    assert set(PORTABLE_TARGETS) <= set(rtx_targets(trt))
    with pytest.raises(EngineUnavailable, match=r"compute capability 9\.0, .* gfo\[trt\]"):
        choose_targets(trt, RTX, (), "9.0")


def test_tensorrt_builds_for_the_gpu_here_and_nothing_else() -> None:
    other: Any = SimpleNamespace(__version__="11.4")
    assert choose_targets(other, "tensorrt", (), "9.0") == ("9.0",)
    assert choose_targets(other, "tensorrt", ("9.0",), "9.0") == ("9.0",)
    with pytest.raises(InputError, match=r"--compute-capability 8\.9: tensorrt builds for the GPU here only, 9\.0"):
        choose_targets(other, "tensorrt", ("8.9",), "9.0")
    with pytest.raises(EngineUnavailable, match=r"tensorrt 11\.4 builds on the GPU .* gfo\[trt-rtx\]"):
        choose_targets(other, "tensorrt", ("8.9",), None)


# ---- the library


def test_without_a_library_both_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise {"tensorrt": OSError, RTX: ModuleNotFoundError}[name](f"no {name}")

    monkeypatch.setattr(library_module, "import_module", missing)
    with pytest.raises(EngineUnavailable, match=r"no tensorrt; no tensorrt_rtx.* gfo\[trt\] .* gfo\[trt-rtx\]"):
        tensorrt_library()


def test_tensorrt_goes_first_where_both_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"tensorrt": SimpleNamespace(__version__="11.4"), RTX: trt}
    monkeypatch.setattr(library_module, "import_module", both.__getitem__)
    assert tensorrt_library()[1:] == ("tensorrt", "11.4")
    assert tensorrt_library([RTX]) == (trt, RTX, trt.__version__)


def test_the_names_that_a_gpu_alone_would_miss_are_there() -> None:
    """What trt_runtime calls, and no machine without a GPU does."""
    module = importlib.import_module("tensorrt_rtx")
    for owner, names in {
        "Runtime": "deserialize_cuda_engine",
        "ICudaEngine": "create_execution_context create_runtime_config create_engine_inspector num_io_tensors "
        "get_tensor_name get_tensor_dtype get_tensor_mode",
        "IExecutionContext": "set_input_shape infer_shapes get_tensor_shape set_tensor_address execute_async_v3 "
        "is_stream_capturable",
        "IRuntimeConfig": "dynamic_shapes_kernel_specialization_strategy create_runtime_cache set_runtime_cache",
        "IRuntimeCache": "serialize deserialize",
        "EngineInspector": "execution_context get_engine_information",
        "DynamicShapesKernelSpecializationStrategy": "EAGER",
        "LayerInformationFormat": "JSON",
        "TensorIOMode": "INPUT",
    }.items():
        for name in names.split():
            assert hasattr(getattr(module, owner), name), f"{owner}.{name}"
