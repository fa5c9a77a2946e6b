"""The frozen classifier: a CNN from torchvision, timm, the demo or the user, to be looked through but not changed."""

from __future__ import annotations

import copy
import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from .errors import InputError, in_short
from .files import add_tensors
from .models import FAMILIES, model_forms
from .models.base import Family
from .models.spec import ModelSpec
from .models.weights import check_tensors, dtype_name, unusable
from .preprocessing import Preprocessing
from .rewrites import rewritten

if TYPE_CHECKING:
    from .int8 import Int8Network

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Those that the weights of a network in PyTorch can have."""
INT8 = "int8"
GRAPH_PRECISIONS = (*PRECISIONS, INT8)
"""Those that a graph can have: int8 is made of a network by `quantise`, with pictures, and not by a cast."""
# What enters and leaves an int8 network is float32; it holds the conversions itself.
DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    INT8: torch.float32,
}
UNNAMED = "module"
"""The model of a network that is handed over in memory."""

# Relative to the largest logit: another batch size adds the same float32 numbers in another order.
_ROUNDING = 1e-3
_FAMILY_AND_NAME = re.compile(r"([^/:]+)([/:])(.+)")


@dataclass(frozen=True)
class FrozenClassifier:
    """A network in evaluation mode, float32, without parameter gradients, `rewritten`, channels-last.

    Attributes
    ----------
    network
        Maps normalised [P, 3, S, S] to logits [P, C].
    model, weights
        As `--model` and `--weights` name them.
    weights_hash
        `hash_state` of the state dict as loaded, so that the same weights in another file format have the same hash.
    preprocessing
        What a picture goes through before occlusion, and the normalisation after it.
    num_classes
        C, at least 2.
    origin
        Library and version that the network's code comes from; empty for a user's own.
    accuracy, doubt
        See `Loaded`.
    int8
        The network as an int8 graph, once `quantise` has made it; without it the classifier has no int8.
    """

    network: nn.Module
    model: str
    weights: str
    weights_hash: str
    preprocessing: Preprocessing
    num_classes: int
    origin: str = ""
    accuracy: float | None = None
    doubt: str | None = None
    int8: Int8Network | None = None

    @property
    def name(self) -> str:
        """See `Subject.name`."""
        return self.model

    @property
    def format(self) -> None:
        """None: a classifier is in memory, see `Subject`."""
        return

    @property
    def exported_precision(self) -> None:
        """None: a classifier runs at every precision, see `Subject`."""
        return

    @property
    def key(self) -> None:
        """None: a classifier has no files, see `Subject`."""
        return

    @property
    def parity(self) -> None:
        """None: nothing was exported, see `Subject`."""
        return

    def embedded_bank(self) -> None:
        """Return None: a classifier takes its bank with each call, see `Subject`."""
        return

    def network_as(self, precision: str) -> nn.Module:
        """Return a copy of the network with weights in `precision` (autocast would convert them in every pass)."""
        return copy.deepcopy(self.network).to(DTYPES[precision])

    def int8_network(self) -> Int8Network:
        """Return the network as an int8 graph. Raises `InputError` where none has been made."""
        if self.int8 is None:
            raise InputError(
                f"--precision {INT8}: {self.model} has no int8 form until training pictures have set its ranges; "
                f"gfo-export --precision {INT8} writes an artefact that has, and gfo-eval --artefact runs it"
            )
        return self.int8

    @classmethod
    def from_module(
        cls, module: nn.Module, preprocessing: Preprocessing, *, model: str = UNNAMED, weights: str = "own"
    ) -> FrozenClassifier:
        """Freeze a copy of a user's own network, which maps normalised [P, 3, S, S] to logits [P, C].

        Raises
        ------
        InputError
            The network cannot be copied, does not run on such an input, returns something else than finite logits, or
            its logits depend on more than the picture.
        """
        network, weights_hash = _copied(module, model)
        _undo_slow_inplace(network)
        network = network.to(memory_format=torch.channels_last)
        size = preprocessing.input_size
        example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        example = example.to(memory_format=torch.channels_last)
        logits = _checked_logits(network, example, model)
        _check_fixed(network, example, logits, model)
        network = rewritten(network, example, logits, model)
        return cls(network, model, weights, weights_hash, preprocessing, logits.shape[1])


def _copied(module: nn.Module, model: str) -> tuple[nn.Module, str]:
    """Return a frozen float32 copy of a network, and the hash of its weights as they are."""
    try:
        state = module.state_dict()
        check_tensors(state, model)
        return copy.deepcopy(module).float().cpu().eval().requires_grad_(False), hash_state(state)
    except InputError:
        raise
    except Exception as error:  # the network's own code raises any kind
        raise InputError(
            f"{model}: cannot be copied ({in_short(error)}); expected a torch.nn.Module that copy.deepcopy takes and "
            "that is not TorchScript"
        ) from error


@torch.no_grad()
def _checked_logits(network: nn.Module, pictures: Tensor, model: str) -> Tensor:
    """Run the network once; raise `InputError` unless it returns finite logits [P, C]."""
    count, size = len(pictures), pictures.shape[-1]
    try:
        logits = network(pictures)
    except (Exception, SystemExit) as error:  # the network's own code raises any kind
        where, fix = (
            (f"a {size}×{size}", "set --input-size")
            if count > 1
            else (
                f"a single {size}×{size}",
                "let it take any number of pictures",
            )
        )
        raise InputError(f"{model}: does not run on {where} RGB input ({in_short(error)}); {fix}") from error
    got = unusable(logits) or (list(logits.shape) if logits.is_floating_point() else dtype_name(logits))
    if not isinstance(got, list) or len(got) != 2 or got[0] != count or got[1] < 2:
        raise InputError(f"{model}: expected logits [P, C ≥ 2] in evaluation mode, got {got} for P = {count}")
    if not bool(logits.isfinite().all()):
        raise InputError(f"{model}: returns NaN or infinity on random pictures; check the weights")
    return logits.clone()  # a network may return the same memory each time


def _check_fixed(network: nn.Module, example: Tensor, logits: Tensor, model: str) -> None:
    """Raise `InputError` if the logits of a picture depend on chance, on its place, or on what is beside it."""
    allowed = _ROUNDING * float(logits.abs().max())

    def same(again: Tensor) -> bool:
        return again.shape == logits.shape and float((again - logits).abs().max()) <= allowed

    order = torch.arange(len(example) - 1, -1, -1)
    turned = _checked_logits(network, example[order], model)[order]
    alone = torch.cat([_checked_logits(network, picture, model) for picture in example.split(1)])
    if same(turned) and same(alone):
        return
    if not same(_checked_logits(network, example, model)):
        raise InputError(
            f"{model}: gives the same pictures different answers in two passes; make it deterministic in evaluation "
            "mode (F.dropout takes training=self.training)"
        )
    raise InputError(
        f"{model}: its answer to a picture depends on the other pictures of the batch; turn batch statistics off in "
        "evaluation mode (BatchNorm needs track_running_stats)"
    )


def _undo_slow_inplace(network: nn.Module) -> None:
    # In-place ReLU6 is a clamp and a copy back: out of place EfficientNet-Lite0 runs a third faster on CPU.
    for module in network.modules():
        if isinstance(module, nn.Hardtanh):
            module.inplace = False


def hash_state(state: Mapping[str, Tensor]) -> str:
    """Return `sha256:…` over the sorted names, dtypes, shapes and bytes of a state dict."""
    digest = hashlib.sha256()
    add_tensors(digest, state, {})
    return f"sha256:{digest.hexdigest()}"


def load_classifier(spec: ModelSpec) -> FrozenClassifier:
    """Build the model, load its weights and freeze it.

    Raises
    ------
    InputError
        An unknown model or weights name, weights that are not there or do not fit, preprocessing out of range.
    """
    family, name = _family(spec.model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(spec.seed)
        warnings.filterwarnings("ignore", message="The default weight initialization of", category=FutureWarning)
        loaded = family.load(name, spec)
    weights, preprocessing = family.weights_name(name, spec), _overridden(loaded.preprocessing, spec)
    made = FrozenClassifier.from_module(loaded.network, preprocessing, model=spec.model, weights=weights)
    return replace(made, origin=family.origin(), accuracy=loaded.accuracy, doubt=loaded.doubt)


def _family(model: str) -> tuple[Family, str]:
    """Return the family that a `--model` names, and the rest of it."""
    parts = _FAMILY_AND_NAME.fullmatch(model)
    if parts is not None and parts[1] in FAMILIES.names:
        family = FAMILIES[parts[1]]()
        if parts[2] == family.separator:
            return family, parts[3]
    raise InputError(f"--model {model}: not a model; use {model_forms()}")


def _overridden(preprocessing: Preprocessing, spec: ModelSpec) -> Preprocessing:
    if spec.input_size is not None:
        if spec.input_size < 1:
            raise InputError(f"--input-size {spec.input_size}: must be at least 1")
        preprocessing = preprocessing.resized(spec.input_size)
    given = {key: getattr(spec, key) for key in ("resize", "interpolation", "mean", "std")}
    return replace(preprocessing, **{key: value for key, value in given.items() if value is not None})
