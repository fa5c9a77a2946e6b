"""Weights from files: which entry of a checkpoint is taken, under which names, and what is refused in one line."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gfo.export.classifier import FrozenClassifier, load_classifier
from gfo.export.errors import InputError
from gfo.export.models.spec import ModelSpec
from gfo.export.models.weights import fit_state, read_state

MODEL = "python:gfo_tiny:network"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state(tiny: ModuleType) -> State:
    return tiny.network().state_dict()


def moved(state: Mapping[str, Tensor], by: float) -> State:
    """Other weights of the same network, as a moving average is."""
    return {name: value + by if value.is_floating_point() else value for name, value in state.items()}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Any], Path]:
    def written(content: Any) -> Path:
        torch.save(content, tmp_path / "w.pth")
        return tmp_path / "w.pth"

    return written


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Entries of a checkpoint


@pytest.mark.parametrize("name", ["ema", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("plain", ["state_dict", "model"])
def test_plain_weights_are_taken_beside_an_average_and_it_is_said(
    name: str, plain: str, state: State, written: Callable[[Any], Path]
) -> None:
    path = written({name: moved(state, 0.01), plain: state, "epoch": 3, "optimizer": {"state": {0: {"m": state}}}})
    found, doubt = read_state(path, MODEL)
    assert same(found, state)
    assert doubt == f"--weights {path}: took {plain}; --weights-key chooses another: {name}"


def test_a_key_chooses_an_entry_and_nothing_is_doubtful(state: State, written: Callable[[Any], Path]) -> None:
    average = moved(state, 0.01)
    path = written({"state_dict": state, "ema": {"state_dict": average, "decay": 0.9}})
    found, doubt = read_state(path, MODEL, "ema.state_dict")
    assert same(found, average)
    assert doubt is None


def test_a_classifier_has_the_weights_of_its_key_and_the_doubt_of_its_file(
    state: State, tiny_classifier: FrozenClassifier, written: Callable[[Any], Path]
) -> None:
    path = written({"state_dict": moved(state, 0.01), "ema": state})
    plain, chosen = (load_classifier(ModelSpec(MODEL, str(path), weights_key=key)) for key in (None, "ema"))
    assert chosen.weights_hash == tiny_classifier.weights_hash != plain.weights_hash
    assert chosen.doubt is None
    assert plain.doubt is not None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 1},
        lambda state: {"model": {"state_dict": state}, "args": {"lr": 0.1}},
        lambda state: {"state_dict": {"model": state}},
    ],
)
def test_a_file_with_one_state_dict_leaves_no_choice(
    wrap: Callable[[State], Any], state: State, written: Callable[[Any], Path]
) -> None:
    assert read_state(written(wrap(state)), MODEL)[1] is None


def test_the_first_plain_entry_is_taken(state: State, written: Callable[[Any], Path]) -> None:
    path = written({"model": moved(state, 1), "state_dict": state})
    found, doubt = read_state(path, MODEL)
    assert same(found, state)
    assert doubt == f"--weights {path}: took state_dict; --weights-key chooses another: model"


@pytest.mark.parametrize(
    ("wrap", "key", "named"),
    [
        (lambda s: {"ema": s, "net": s}, None, r"none under state_dict or model; choose .* --weights-key: ema, net$"),
        (
            lambda s: {"ema": s, "net": s},
            "model",
            r"--weights-key model: .*w\.pth has no such entry .* it has ema, net$",
        ),
        (lambda s: {"state_dict": s, "epoch": 3}, "epoch", "--weights-key epoch: .* it has state_dict$"),
        (lambda s: s, "head.weight", "it is a state dict itself; leave the option out"),
        (lambda s: {f"e{i}": s for i in range(9)}, "x", r"it has e0, e1, e2, e3, e4, e5, … \(9 in all\)"),
    ],
)
def test_what_entries_there_are_is_listed(
    wrap: Callable[[State], Any], key: str | None, named: str, state: State, written: Callable[[Any], Path]
) -> None:
    with pytest.raises(InputError, match=named):
        read_state(written(wrap(state)), MODEL, key)


@pytest.mark.parametrize("weights", ["default", "random", "IMAGENET1K_V1", "w.safetensors"])
def test_a_key_needs_a_file_with_entries(weights: str) -> None:
    with pytest.raises(InputError, match=f"--weights-key ema: --weights {weights} has no entries"):
        ModelSpec(MODEL, weights, weights_key="ema")


# Names


class Inner(nn.Module):
    """A network with attributes that are called as wrappers call their own."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 4)
        self._orig_mod = nn.Linear(4, 5)


@pytest.mark.parametrize("before", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("build", [Inner, lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_wrappers_put_before_names_is_taken_away_where_the_names_then_fit(
    build: Callable[[], nn.Module], before: str, suffix: str, tmp_path: Path
) -> None:
    own, path = build().state_dict(), tmp_path / f"w{suffix}"
    given = {before + name: value.clone() for name, value in own.items()}
    (save_file if suffix == ".safetensors" else torch.save)(given, path)
    loaded = fit_state(build, read_state(path, "mine")[0], ModelSpec("mine", str(path))).state_dict()
    assert same(loaded, own)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_batchnorm_needs_no_count_of_its_batches(suffix: str, state: State, tiny: ModuleType, tmp_path: Path) -> None:
    given, path = {k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / f"w{suffix}"
    assert len(given) < len(state)
    (save_file if suffix == ".safetensors" else torch.save)(given, path)
    loaded = fit_state(tiny.network, read_state(path, "mine")[0], ModelSpec("mine", str(path)))
    assert same(loaded.state_dict(), state)


def test_names_of_other_networks_are_named_as_they_are_and_before_missing_ones(state: State) -> None:
    given = {f"_orig_mod.{name}": value for name, value in state.items() if name != "head.bias"}
    given |= {f"_orig_mod.tail.{'x' * 200}": torch.zeros(1)}
    with pytest.raises(InputError) as caught:
        fit_state(lambda: nn.Sequential(nn.Linear(3, 4)), {"module.a": torch.zeros(1)}, ModelSpec("mine", "w.pth"))
    assert "mine: module.a is not in the model; 0.weight is missing; 0.bias is missing" in str(caught.value)
    with pytest.raises(InputError, match=r"tail\.x{75}… is not in the model; head\.bias is missing"):
        fit_state(lambda: tiny_network(state), given, ModelSpec("mine", "w.pth"))


def tiny_network(state: State) -> nn.Module:
    """Something with the names and shapes of a state dict."""
    network = nn.Module()
    for name, value in state.items():
        *path, last = name.split(".")
        owner = network
        for part in path:
            owner.add_module(part, owner._modules.get(part) or nn.Module())
            owner = owner.get_submodule(part)
        owner.register_buffer(last, value.clone())
    return network


# Files of something else


def odd(change: Callable[[Tensor], Any]) -> Callable[[State], Any]:
    return lambda state: {**state, "head.weight": change(state["head.weight"])}


def nested(depth: int) -> Callable[[State], Any]:
    def nested(state: State) -> Any:
        content: Any = state
        for _ in range(depth):
            content = {"state_dict": content}
        return content

    return nested


def itself(state: State) -> Any:
    content: dict[str, Any] = {"epoch": 3}
    content["state_dict"] = content
    return content


@pytest.mark.filterwarnings("ignore:.*(TypedStorage|sparse|Sparse|quantiz)")
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (lambda state: dict(enumerate(state.values())), "not a state dict of tensors by name"),
        (lambda state: {**state, 3: torch.zeros(1)}, "not a state dict of tensors by name"),
        (lambda state: {("a", "b"): torch.zeros(1)}, "not a state dict of tensors by name"),
        (lambda state: {**state, "epoch": 3}, "not a state dict of tensors by name"),
        (lambda state: {}, "not a state dict of tensors by name"),
        (lambda state: 3, "not a state dict of tensors by name"),
        (itself, "not a state dict of tensors by name"),
        (nested(300), "not a state dict of tensors by name"),
        (odd(lambda t: t.to_sparse()), "head.weight is not dense; expected"),
        (odd(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), "head.weight is quantized"),
        (odd(lambda t: t.to(torch.complex64)), "head.weight is complex"),
        (odd(lambda t: t.to("meta")), "head.weight is without values"),
        (odd(lambda t: (100 * t).to(torch.int8)), "head.weight holds int8, the model has float32"),
        (odd(lambda t: t > 0), "head.weight holds bool, the model has float32"),
        (odd(lambda t: t[0, 0].expand(2**40, 32)), r"head.weight is \[1099511627776, 32\], the model has \[5, 32\]"),
        (lambda state: {**state, "x": torch.zeros(1).expand(2**60)}, "x is not in the model"),
    ],
)
def test_contents_that_are_no_weights_are_one_line(
    content: Callable[[State], Any], named: str, state: State, written: Callable[[Any], Path]
) -> None:
    path = written(content(state))
    with pytest.raises(InputError, match=named) as caught:
        load_classifier(ModelSpec(MODEL, str(path)))
    assert str(path) in str(caught.value)


def test_outputs_beyond_a_files_memory_are_not_made(written: Callable[[Any], Path]) -> None:
    """A view of one number has the shape of fine-tuned weights with a trillion outputs, for which nothing is built."""
    built: list[int] = []

    def build(num_classes: int = 7) -> nn.Module:
        built.append(num_classes)
        return nn.Sequential(nn.Linear(4, num_classes))

    state = {"0.weight": torch.zeros(1).expand(2**40, 4), "0.bias": torch.zeros(1).expand(2**40)}
    with pytest.raises(InputError, match=r"0\.weight is \[1099511627776, 4\], the model has \[7, 4\]"):
        fit_state(build, read_state(written(state), "mine")[0], ModelSpec("mine", "w.pth"))
    assert built == [7]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    torch.jit.script(nn.ReLU()).save(str(tmp_path / "w.pth"))
    with pytest.raises(InputError, match=r"w\.pth: is a TorchScript archive; save torch\.jit\.load"):
        read_state(tmp_path / "w.pth", MODEL)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", pickle.dumps({"a": 1}), b"<!DOCTYPE html>"]
)
def test_bytes_that_are_no_weights_are_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"w\.pth: (unreadable|holds more than tensors)"):
        read_state(tmp_path / "w.pth", MODEL)
