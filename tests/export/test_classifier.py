"""The frozen classifier against the library's own network: same logits, nothing left to fold or to train, same hash."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from gfo.export.classifier import FrozenClassifier, load_classifier
from gfo.export.errors import InputError
from gfo.export.models.digits_networks import DIGITS_NETWORKS
from gfo.export.models.spec import ModelSpec
from gfo.export.models.torchvision import Torchvision
from gfo.export.models.weights import fit_state
from gfo.export.preprocessing import Preprocessing


def googlenet(num_classes: int = 1000) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # about another initialisation to come
        return torchvision.models.googlenet(aux_logits=False, transform_input=True, num_classes=num_classes)


def vgg11_bn() -> nn.Module:
    """torchvision's, without the half gigabyte of its hidden linear layers."""
    with torch.device("meta"):
        network = torchvision.models.vgg11_bn(init_weights=False)
    network.features.to_empty(device="cpu")
    for module in network.features.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
    network.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 10))
    return network


BUILDERS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "torchvision/resnet18": (torchvision.models.resnet18, 64),
    "torchvision/googlenet": (googlenet, 64),
    "torchvision/vgg11_bn": (vgg11_bn, 32),
    "timm/tf_efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0"), 64),
    "gfo/digits-resnet": (DIGITS_NETWORKS["digits-resnet"], 32),
    "gfo/digits-vgg": (DIGITS_NETWORKS["digits-vgg"], 32),
}


def seeded(build: Callable[..., nn.Module]) -> nn.Module:
    """A network in evaluation mode whose BatchNorm statistics are not 0 and 1, so that folding has something to do.

    Its weights let pictures through: GoogLeNet's own initialisation gives every picture the same logits.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build()
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return network.eval()


@pytest.fixture(scope="module", params=list(BUILDERS))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, FrozenClassifier]:
    """The library's network, and ours from a file of its weights (VGG: from the network itself)."""
    build, size = BUILDERS[request.param]
    network = seeded(build)
    if build is vgg11_bn:
        return network, FrozenClassifier.from_module(network, Preprocessing(size, size))
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return network, load_classifier(ModelSpec(request.param, str(path), input_size=size))


@torch.no_grad()
def test_logits_are_the_librarys(pair: tuple[nn.Module, FrozenClassifier]) -> None:
    network, frozen = pair
    size = frozen.preprocessing.input_size
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    ours, theirs = frozen.network(x.contiguous(memory_format=torch.channels_last)), network(x)
    truth = network.double()(x.double())
    network.float()
    error = float((theirs - truth).abs().max())
    assert theirs.std(dim=0).mean() > 0.01 * theirs.abs().max()  # the case says something: pictures differ
    assert (ours - truth).abs().max() <= 3 * error + 1e-6 * truth.abs().max()
    assert frozen.num_classes == theirs.shape[1]


def test_nothing_is_left_to_fold_or_to_train(pair: tuple[nn.Module, FrozenClassifier]) -> None:
    network, frozen = pair
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.network.modules())
    assert not any(module.training for module in frozen.network.modules())
    assert not any(parameter.requires_grad for parameter in frozen.network.parameters())
    convolutions = [m.weight for m in frozen.network.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)
    assert any(not w.is_contiguous() for w in convolutions)


def test_the_users_module_is_not_touched() -> None:
    network = seeded(DIGITS_NETWORKS["digits-resnet"]).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    FrozenClassifier.from_module(network, Preprocessing(32, 32))
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class ReadTwice(nn.Module):
    """The convolution's own result is needed, too: folding would change it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((y + self.bn(y)).mean(dim=(2, 3)))


@torch.no_grad()
def test_a_network_that_cannot_be_folded_stays_as_it_is() -> None:
    network = seeded(ReadTwice)
    with pytest.warns(UserWarning, match="^module: BatchNorm left as it is, "):
        frozen = FrozenClassifier.from_module(network, Preprocessing(8, 8))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(frozen.network(x), network(x))


def test_the_precision_is_that_of_all_weights(tiny_classifier: FrozenClassifier) -> None:
    assert {p.dtype for p in tiny_classifier.network_as("bf16").parameters()} == {torch.bfloat16}
    assert {p.dtype for p in tiny_classifier.network.parameters()} == {torch.float32}


@pytest.mark.parametrize("wrap", [False, True])
def test_hash_and_logits_do_not_depend_on_the_file_format(wrap: bool, tmp_path: Path) -> None:
    state = seeded(DIGITS_NETWORKS["digits-vgg"]).state_dict()
    save_file(dict(state), tmp_path / "w.safetensors")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3} if wrap else state, tmp_path / "w.pth"
    )
    one, other = (load_classifier(ModelSpec("gfo/digits-vgg", str(tmp_path / n))) for n in ("w.safetensors", "w.pth"))
    assert one.weights_hash == other.weights_hash
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one.network(x), other.network(x))
    state["0.weight"][0, 0, 0, 0] += 1e-3
    torch.save(state, tmp_path / "w.pth")
    assert load_classifier(ModelSpec("gfo/digits-vgg", str(tmp_path / "w.pth"))).weights_hash != one.weights_hash


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/tf_efficientnet_lite0"])
def test_fine_tuned_weights_bring_their_number_of_outputs(name: str, tmp_path: Path) -> None:
    family, _, short = name.partition("/")
    build = torchvision.models.resnet18 if family == "torchvision" else lambda **k: timm.create_model(short, **k)
    save_file(seeded(lambda: build(num_classes=7)).state_dict(), tmp_path / "w.safetensors")
    assert load_classifier(ModelSpec(name, str(tmp_path / "w.safetensors"), input_size=64)).num_classes == 7


@torch.no_grad()
def test_googlenet_takes_files_with_and_without_its_training_heads(tmp_path: Path) -> None:
    network = seeded(googlenet)
    heads = torchvision.models.googlenet(aux_logits=True, transform_input=True, init_weights=False)
    heads.load_state_dict(network.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    truth = copy.deepcopy(network).double()(x.double())
    # Folding reorders float32 sums: at most as far from float64 as the network as it was, twice over.
    allowed = 2 * float((network(x).double() - truth).abs().max()) + 1e-6 * float(truth.abs().max())
    for state in (network.state_dict(), heads.state_dict()):
        torch.save(state, tmp_path / "w.pth")
        frozen = load_classifier(ModelSpec("torchvision/googlenet", str(tmp_path / "w.pth"), input_size=64))
        assert float((frozen.network(x).double() - truth).abs().max()) <= allowed


def test_googlenet_with_its_training_heads_may_be_fine_tuned_and_wrapped(tmp_path: Path) -> None:
    network = torchvision.models.googlenet(num_classes=20, aux_logits=True, init_weights=False)
    save_file({f"module.{k}": v for k, v in network.state_dict().items()}, tmp_path / "w.safetensors")
    frozen = load_classifier(ModelSpec("torchvision/googlenet", str(tmp_path / "w.safetensors"), input_size=64))
    assert frozen.num_classes == 20


def test_weights_that_do_not_fit_name_the_first_keys(tmp_path: Path) -> None:
    state = {k: v for k, v in seeded(DIGITS_NETWORKS["digits-vgg"]).state_dict().items() if k != "1.weight"}
    state["0.weight"] = torch.zeros(16, 3, 5, 5)
    save_file(state | {"further": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load_classifier(ModelSpec("gfo/digits-vgg", str(tmp_path / "w.safetensors")))
    message = str(caught.value)
    assert "w.safetensors: does not fit gfo/digits-vgg" in message
    for named in ("0.weight is [16, 3, 5, 5], the model has [16, 3, 3, 3]", "1.weight is missing", "further is not in"):
        assert named in message
    with pytest.raises(InputError, match=r"; and \d+ more; give this model's weights"):
        fit_state(torchvision.models.resnet18, state, ModelSpec("torchvision/resnet18", "w.safetensors"))


class Exploit:
    """Runs a function when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, ("raise SystemExit('ran')",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    if legacy:
        path.write_bytes(pickle.dumps({"x": Exploit()}))
    else:
        torch.save({"x": Exploit()}, path)
    with pytest.raises(InputError, match=r"w\.pth: (holds more than tensors|unreadable)"):
        load_classifier(ModelSpec("gfo/digits-vgg", str(path)))


def write_list(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


@pytest.mark.parametrize(
    ("name", "write", "named"),
    [
        ("missing.pth", None, "no such file"),
        ("IMAGENET1K_V9", None, "not a weights name of torchvision/resnet18"),
        ("empty.safetensors", lambda path: path.write_bytes(b""), "unreadable"),
        ("text.pth", lambda path: path.write_text("text"), "unreadable|more than tensors"),
        ("list.pth", write_list, "not a state dict"),
    ],
)
def test_weights_files_that_are_none(
    name: str, write: Callable[[Path], None] | None, named: str, tmp_path: Path
) -> None:
    if write:
        write(tmp_path / name)
    with pytest.raises(InputError, match=named):
        load_classifier(ModelSpec("torchvision/resnet18", str(tmp_path / name) if write else name))


def test_a_download_that_fails_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> Mapping[str, Tensor]:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    for weights in ("default", "IMAGENET1K_V1"):
        with pytest.raises(InputError, match=r"no route to host.*give a \.safetensors or \.pth file"):
            load_classifier(ModelSpec("torchvision/resnet18", weights))


def test_timms_default_without_a_network_is_bad_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="could not be downloaded"):
        load_classifier(ModelSpec("timm/resnet18"))


def test_random_weights_are_seeded_and_leave_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    hashes = [load_classifier(ModelSpec("gfo/digits-resnet", "random", seed=seed)).weights_hash for seed in (3, 3, 4)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_librarys_preprocessing_is_taken_and_overridden() -> None:
    spec = ModelSpec("torchvision/resnet18", "random", input_size=64)
    ours = load_classifier(spec).preprocessing
    assert (ours.input_size, ours.resize, ours.interpolation) == (64, 73, "bilinear")
    changed = load_classifier(replace(spec, resize=64, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)))
    assert changed.preprocessing == Preprocessing(64, 64, "bicubic", (0, 0, 0), (1, 1, 1))
    assert load_classifier(ModelSpec("timm/tf_efficientnet_lite1", "random", 157)).preprocessing.resize == 178


def test_a_users_own_function_with_and_without_weights(
    tmp_path: Path, tiny_classifier: FrozenClassifier, tiny: ModuleType
) -> None:
    assert tiny_classifier.preprocessing == tiny.PREPROCESSING
    assert tiny_classifier.num_classes == tiny.OUTPUTS
    save_file(tiny.network().state_dict(), tmp_path / "w.safetensors")
    from_file = load_classifier(ModelSpec("python:gfo_tiny:network", str(tmp_path / "w.safetensors")))
    assert from_file.weights_hash == tiny_classifier.weights_hash
    save_file(seeded(tiny.TinyCnn).state_dict(), tmp_path / "w.safetensors")
    other = load_classifier(ModelSpec("python:gfo_tiny:network", str(tmp_path / "w.safetensors")))
    assert other.weights_hash != tiny_classifier.weights_hash


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("resnet50", "use torchvision/<name>"),
        ("torchvision/", "use torchvision/<name>"),
        ("torchvision/resnet51", "no classifier of that name"),
        ("torchvision/fcn_resnet50", "no classifier of that name"),
        ("timm/resnet51", "no model of that name"),
        ("gfo/digits-mlp", "gfo/digits-resnet, gfo/digits-vgg"),
        ("gfo/digits-resnet", "run gfo-demo once"),
        ("python:gfo_tiny", "python:module:function"),
        ("python:gfo_nowhere:network", "must be importable"),
        ("python:gfo_tiny:nothing", "must be importable"),
        ("python:gfo_tiny:no_module", "expected a torch.nn.Module"),
        ("python:torch.nn:Identity", "--input-size, --mean and --std"),
    ],
)
def test_models_that_are_none(model: str, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        load_classifier(ModelSpec(model))
    assert model in str(caught.value)


@pytest.mark.parametrize(("size", "named"), [(0, "--input-size"), (8, "does not run on a 8×8")])
def test_input_sizes_that_do_not_go(size: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        load_classifier(ModelSpec("torchvision/squeezenet1_1", "random", input_size=size))


class Answers(nn.Module):
    """Gives what a function makes of good logits."""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        return self.answer(x.flatten(1)[:, :9])


def raising(error: BaseException) -> Callable[[Tensor], object]:
    def answer(_logits: Tensor) -> object:
        raise error

    return answer


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda y: y[:, :1], r"got \[2, 1\] for P = 2"),
        (lambda y: y[..., None], r"got \[2, 9, 1\]"),
        (lambda y: y.long(), "got int64"),
        (lambda y: y > 0, "got bool"),
        (lambda y: y.to(torch.complex64), "got complex"),
        (lambda y: y.to_sparse(), "got not dense"),
        (lambda y: y.to("meta"), "got without values"),
        (lambda y: (y, y), "got a tuple"),
        (lambda y: None, "got a NoneType"),
        (raising(KeyError("conv")), r"does not run on a 8×8 RGB input \(KeyError: 'conv'\)"),
        (raising(SystemExit(0)), r"does not run on a 8×8 RGB input \(SystemExit: 0\)"),
        (raising(ZeroDivisionError()), r"does not run on a 8×8 RGB input \(ZeroDivisionError\)"),
    ],
)
def test_what_gives_no_logits_is_refused(answer: Callable[[Tensor], object], named: str) -> None:
    with pytest.raises(InputError, match=f"^mine: .*{named}"):
        FrozenClassifier.from_module(Answers(answer), Preprocessing(8, 8), model="mine")


def with_buffer(value: Tensor) -> nn.Module:
    network = Answers(lambda y: y)
    network.register_buffer("table", value)
    return network


class Stateful(Answers):
    """State beside its tensors, which is not in the weights' hash."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}


class Locked(Answers):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__(lambda y: y)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(9)), "1.weight is without values"),
        (lambda: with_buffer(torch.zeros(2, device="meta")), "table is without values"),
        (lambda: with_buffer(torch.eye(2).to_sparse()), "table is not dense"),
        (lambda: with_buffer(torch.zeros(2, dtype=torch.complex64)), "table is complex"),  # bf16 would drop a part
        (lambda: Stateful(lambda y: y), "_extra_state is a dict"),
        (Locked, r"cannot be copied \(TypeError: cannot pickle"),
    ],
)
def test_what_cannot_be_frozen_is_refused(build: Callable[[], nn.Module], named: str) -> None:
    with pytest.raises(InputError, match=f"^mine: {named}"):
        FrozenClassifier.from_module(build(), Preprocessing(8, 8), model="mine")


def test_the_accuracy_that_torchvision_publishes_is_that_of_its_own_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, state = "torchvision/squeezenet1_1", torchvision.models.squeezenet1_1().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(state))
    save_file(state, tmp_path / "w.safetensors")
    for weights, accuracy in (("default", 0.58178), ("random", None), (str(tmp_path / "w.safetensors"), None)):
        assert Torchvision().load("squeezenet1_1", ModelSpec(name, weights)).accuracy == accuracy


class Chance(nn.Module):
    """Dropout that evaluation mode does not switch off."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x.flatten(1)[:, :9], 0.5)


class Neighbours(nn.Module):
    """BatchNorm on the statistics of the batch, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x).flatten(1)[:, :9]


class Place(nn.Module):
    """An answer that hangs on the place in the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :9] + torch.arange(len(x))[:, None]


class Standardised(nn.Module):
    """Without a spread, one picture alone gives NaN."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.flatten(1)[:, :9]
        return (y - y.mean(0)) / y.std(0)


class Squeezed(nn.Module):
    """Logits of one picture without their first dimension."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :9].squeeze()


class Together(nn.Sequential):
    """BatchNorm that refuses a single value."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.BatchNorm1d(192, track_running_stats=False))


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize(
    ("module", "named"),
    [
        (Chance(), "gives the same pictures different answers in two passes"),
        (Neighbours(), "depends on the other"),
        (Place(), "depends on the other"),
        (Standardised(), "returns NaN or infinity"),
        (Squeezed(), r"got \[9\] for P = 1"),
        (Together(), "does not run on a single 8×8 RGB input"),
    ],
)
def test_a_network_that_is_no_function_of_its_picture_is_refused(module: nn.Module, named: str) -> None:
    with pytest.raises(InputError, match=f"mine: .*{named}"):
        FrozenClassifier.from_module(module, Preprocessing(8, 8), model="mine")
