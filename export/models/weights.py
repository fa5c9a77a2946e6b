"""Weights from a library's own store or a file, never unpickled, and their fit to a model."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import load_tensors
from .spec import ModelSpec

WRAPPED = "module."
"""What `DataParallel` and `DistributedDataParallel` put before the name of every weight."""

_SUFFIXES = (".safetensors", ".pth", ".pt")
_COUNT = ".num_batches_tracked"


def fetch_state(spec: ModelSpec, download: Callable[[], Mapping[str, Tensor]] | None) -> dict[str, Tensor] | None:
    """Return the state dict that `spec.weights` names; None for `random`.

    Parameters
    ----------
    spec
        Its `weights` name a file where `download` is None.
    download
        Returns the library's own weights, where `spec.weights` names some.

    Raises
    ------
    InputError
        An unknown name, an unreadable file, a download that fails.
    """
    if spec.weights == "random":
        return None
    if download is None:
        return read_state(Path(spec.weights), spec.model)
    try:
        return dict(download())
    except (URLError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--weights {spec.weights}: {spec.model} could not be downloaded ({reason}); "
            "give a .safetensors or .pth file instead"
        ) from error


def read_state(path: Path, model: str) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` or `.pth` file without running any code in it.

    `model` is for the message.

    Raises
    ------
    InputError
        No file, no state dict, or a pickle that holds more than tensors.
    """
    if path.suffix not in _SUFFIXES:
        raise InputError(
            f"--weights {path}: not a weights name of {model} nor a {', '.join(_SUFFIXES)} file; "
            "use default, random, a torchvision weights name or a file"
        )
    if not path.is_file():
        raise InputError(f"--weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_tensors(path)[1]
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"--weights {path}: holds more than tensors and is not loaded; save its state_dict()"
        ) from error
    except Exception as error:  # safetensors and torch raise many kinds for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--weights {path}: unreadable ({reason}); copy or convert it again") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"--weights {path}: not a state dict of tensors; save the model's state_dict()")
    return state


def fit_state(
    build: Callable[..., nn.Module], state: Mapping[str, Tensor], spec: ModelSpec, *, any_outputs: bool = True
) -> nn.Module:
    """Build the model and load the weights strictly.

    Parameters
    ----------
    build
        Builds the network with its usual outputs, or with `num_classes=n`.
    state
        The weights.
    spec
        Names model and weights in messages.
    any_outputs
        Build with as many outputs as fine-tuned weights have.

    Raises
    ------
    InputError
        Keys or shapes differ; the first three are named.
    """
    network = build()
    state = _as_named_by(network.state_dict(), state)
    outputs = _other_output_count(network.state_dict(), state) if any_outputs else None
    if outputs is not None:
        network = build(num_classes=outputs)
    differing = _differing(network.state_dict(), state)
    if differing:
        listed = "; ".join(differing[:3])
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"--weights {spec.weights}: does not fit {spec.model}: {listed}{more}; give this model's weights"
        )
    network.load_state_dict(dict(state))
    return network


def _as_named_by(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return weights under the network's own names, where what differs changes no weight.

    `DataParallel` puts `module.` before every name, which a network may also have of itself: it is taken away only
    where the names then fit better. PyTorch's strict loading, too, takes a BatchNorm without its count of batches.
    """
    bare = {key.removeprefix(WRAPPED): value for key, value in state.items()}
    if len(bare) == len(state) and len(set(wanted) & set(bare)) > len(set(wanted) & set(state)):
        state = bare
    counts = {key: value for key, value in wanted.items() if key.endswith(_COUNT) and key not in state}
    return {**state, **counts}


def _other_output_count(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int | None:
    """Return the number of outputs of weights that differ in nothing but the first size of the last layers."""
    if set(wanted) != set(state):
        return None
    differing = [key for key in wanted if wanted[key].shape != state[key].shape]
    if not differing or any(wanted[key].shape[1:] != state[key].shape[1:] for key in differing):
        return None
    counts: set[Any] = {(wanted[key].shape[0], state[key].shape[0]) for key in differing}
    return counts.pop()[1] if len(counts) == 1 else None  # more than one layer where heads were for training alone


def _differing(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    missing = [f"{key} is missing" for key in wanted if key not in state]
    foreign = [f"{key} is not in the model" for key in state if key not in wanted]
    shapes = [
        f"{key} is {list(state[key].shape)}, the model has {list(wanted[key].shape)}"
        for key in wanted
        if key in state and wanted[key].shape != state[key].shape
    ]
    return shapes + foreign + missing
