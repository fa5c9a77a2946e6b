"""The frozen classifier: a CNN from torchvision, timm, the demo or the user, to be looked through but not changed."""

from __future__ import annotations

import copy
import hashlib
import importlib
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .errors import InputError
from .fold import fold_batchnorm
from .models.digits import (
    DIGITS_INPUT_SIZE,
    DIGITS_INTERPOLATION,
    DIGITS_MEAN,
    DIGITS_NETWORKS,
    DIGITS_RESIZE,
    DIGITS_STD,
    digits_weights_path,
)
from .models.spec import ModelSpec
from .preprocessing import Preprocessing, preprocessing_from_timm, preprocessing_from_torchvision
from .weights import fetch_state, fit_state

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
UNNAMED = "module"  # the model of a network that is handed over in memory
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class FrozenClassifier:
    """A network in evaluation mode, float32, without parameter gradients, BatchNorm folded, channels-last.

    `network` maps [P, 3, S, S], normalised, to logits [P, C]. `weights_hash` covers names, types, shapes and values of
    the state dict as loaded, so that the same weights in another file format have the same hash.
    """

    network: nn.Module
    model: str
    weights: str
    weights_hash: str
    preprocessing: Preprocessing
    num_classes: int
    origin: str = ""
    """Library and version that the network's code comes from; empty for a user's own."""

    def network_as(self, precision: str) -> nn.Module:
        """A copy of the network with weights converted once to `precision` (autocast would convert them every pass)."""
        return copy.deepcopy(self.network).to(DTYPES[precision])

    @classmethod
    def from_module(
        cls, module: nn.Module, preprocessing: Preprocessing, *, model: str = UNNAMED, weights: str = "own"
    ) -> FrozenClassifier:
        """Freeze a user's own network, which maps normalised [P, 3, S, S] to logits [P, C].

        Raises
        ------
        InputError
            The network does not run on such an input or gives something else.
        """
        weights_hash = hash_state(module.state_dict())
        network = copy.deepcopy(module).float().cpu().eval().requires_grad_(False)
        _undo_slow_inplace(network)
        network = network.to(memory_format=torch.channels_last)
        size = preprocessing.input_size
        example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        example = example.to(memory_format=torch.channels_last)
        with torch.no_grad():
            try:
                logits = network(example)
            except (RuntimeError, ValueError, TypeError, AssertionError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(
                    f"{model}: does not run on a {size}×{size} RGB input ({reason}); set --input-size"
                ) from error
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"{model}: expected logits [P, C ≥ 2] in evaluation mode, got {got}")
        if not bool(logits.isfinite().all()):
            raise InputError(f"{model}: gives NaN or infinity on random pictures; check the weights")
        network = fold_batchnorm(network, example, model)
        return cls(network, model, weights, weights_hash, preprocessing, logits.shape[1])


def _undo_slow_inplace(network: nn.Module) -> None:
    # In-place ReLU6 is a clamp and a copy back: out of place EfficientNet-Lite0 runs a third faster on CPU.
    for module in network.modules():
        if isinstance(module, nn.Hardtanh):
            module.inplace = False


def hash_state(state: Mapping[str, Tensor]) -> str:
    """`sha256:…` over the sorted names, dtypes, shapes and bytes of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def load_classifier(spec: ModelSpec) -> FrozenClassifier:
    """Build the model, load its weights and freeze it.

    Raises
    ------
    InputError
        An unknown model or weights name, weights that are not there or do not fit, preprocessing out of range.
    """
    family, _, name = spec.model.partition(":" if spec.model.startswith("python:") else "/")
    if family not in _FAMILIES or not name:
        known = "torchvision/<name>, timm/<name>, gfo/digits-resnet, gfo/digits-vgg or python:module:function"
        raise InputError(f"--model {spec.model}: not a model; use {known}")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(spec.seed)
        warnings.filterwarnings("ignore", message="The default weight initialization of", category=FutureWarning)
        network, preprocessing = _FAMILIES[family](name, spec)
    weights = _default_weights(name) if (family, spec.weights) == ("torchvision", "default") else spec.weights
    made = FrozenClassifier.from_module(network, _overridden(preprocessing, spec), model=spec.model, weights=weights)
    return made if family == "python" else replace(made, origin=f"{family} {version(family)}")


def _default_weights(name: str) -> str:
    """Which weights torchvision's default are, so that the record says it: it changes between versions."""
    from torchvision.models import get_model_weights

    return get_model_weights(name)["DEFAULT"].name


def _overridden(preprocessing: Preprocessing, spec: ModelSpec) -> Preprocessing:
    if spec.input_size is not None:
        if spec.input_size < 1:
            raise InputError(f"--input-size {spec.input_size}: must be at least 1")
        preprocessing = preprocessing.resized(spec.input_size)
    given = {key: getattr(spec, key) for key in ("resize", "interpolation", "mean", "std")}
    return replace(preprocessing, **{key: value for key, value in given.items() if value is not None})


def _from_torchvision(name: str, spec: ModelSpec) -> tuple[nn.Module, Preprocessing]:
    from torchvision.models import get_model, get_model_weights, list_models

    if name not in list_models(module=sys.modules["torchvision.models"]):
        raise InputError(f"--model {spec.model}: torchvision has no classifier of that name; see torchvision.models")
    members = get_model_weights(name)
    weights_name = spec.weights if spec.weights in members.__members__ else None
    if spec.weights == "default":
        weights_name = _default_weights(name)
    state = fetch_state(spec, (lambda: members[weights_name].get_state_dict(check_hash=True)) if weights_name else None)

    options: dict[str, bool] = {}
    if name in ("googlenet", "inception_v3"):
        # Pretrained Inception networks normalise once more inside; the library's builder sets it with the weights.
        auxiliary = state is not None and any(key.lower().startswith("aux") for key in state)
        options = {"transform_input": True, "init_weights": False, "aux_logits": auxiliary}

    def build(**sizes: Any) -> nn.Module:
        return get_model(name, weights=None, **options, **sizes)

    network = build() if state is None else fit_state(build, state, spec)
    if state is None and options:
        _keep_signal(network)
    for head in ("aux1", "aux2", "AuxLogits"):
        if getattr(network, head, None) is not None:
            setattr(network, "aux_logits", False)  # noqa: B010 (nn.Module types its attributes as modules)
            setattr(network, head, None)
    return network, preprocessing_from_torchvision(name, weights_name)


def _keep_signal(network: nn.Module) -> None:
    # With the Inception networks' own initialisation (σ = 0.01 or 0.1) logits hardly depend on the picture, so that
    # random weights could not tell a right engine from a wrong one. What torchvision does for its other networks:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _from_timm(name: str, spec: ModelSpec) -> tuple[nn.Module, Preprocessing]:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise InputError(f"--model {spec.model}: timm has no model of that name; see timm.list_models()")

    def fetch() -> dict[str, Tensor]:
        return dict(timm.create_model(name, pretrained=True).state_dict())

    state = fetch_state(spec, fetch if spec.weights == "default" else None)

    def build(**sizes: Any) -> nn.Module:
        try:
            return timm.create_model(name, pretrained=False, **sizes)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"--model {spec.model}: {error}; see timm.list_pretrained()") from error

    network = build() if state is None else fit_state(build, state, spec)
    return network, preprocessing_from_timm(network.pretrained_cfg, spec.model, spec.input_size)  # type: ignore[arg-type]


def _from_gfo(name: str, spec: ModelSpec) -> tuple[nn.Module, Preprocessing]:
    if name not in DIGITS_NETWORKS:
        raise InputError(
            f"--model {spec.model}: the demo's networks are {', '.join(f'gfo/{n}' for n in DIGITS_NETWORKS)}"
        )
    if spec.weights == "default":
        path = digits_weights_path(name)
        if not path.is_file():
            raise InputError(f"--weights default: {spec.model}: {path} is not there yet; run gfo-demo once")
        spec = replace(spec, weights=str(path))
    state = fetch_state(spec, None)
    build = DIGITS_NETWORKS[name]
    network = build() if state is None else fit_state(build, state, spec, any_outputs=False)
    return network, Preprocessing(DIGITS_INPUT_SIZE, DIGITS_RESIZE, DIGITS_INTERPOLATION, DIGITS_MEAN, DIGITS_STD)


def _from_python(name: str, spec: ModelSpec) -> tuple[nn.Module, Preprocessing]:
    module_name, _, function_name = name.partition(":")
    if "" in (module_name, function_name):
        raise InputError(f"--model {spec.model}: write python:module:function")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--model {spec.model}: {error}; the module must be importable from here") from error
    if spec.weights == "default":
        network = function()  # what the function returns is what the user calls the default
    else:
        state = fetch_state(spec, None)
        network = function() if state is None else fit_state(function, state, spec, any_outputs=False)
    if not isinstance(network, nn.Module):
        raise InputError(f"--model {spec.model}: returned {type(network).__name__}, expected a torch.nn.Module")
    preprocessing = getattr(network, "preprocessing", None)
    if isinstance(preprocessing, Preprocessing):
        return network, preprocessing
    if spec.input_size is None or spec.mean is None or spec.std is None:
        raise InputError(
            f"--model {spec.model}: say how pictures are prepared: --input-size, --mean and --std (and --resize), or "
            "give the module an attribute `preprocessing` of type gfo.export.Preprocessing"
        )
    resize = spec.resize or spec.input_size
    return network, Preprocessing(spec.input_size, resize, spec.interpolation or "bilinear", spec.mean, spec.std)


_FAMILIES = {"torchvision": _from_torchvision, "timm": _from_timm, "gfo": _from_gfo, "python": _from_python}
