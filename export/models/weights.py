"""Weights from a library's own store or a file, never unpickled, and their fit to a model."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import InputError, in_short
from ..files import load_tensors
from .spec import CHECKPOINTS, ModelSpec

_SUFFIXES = (".safetensors", *CHECKPOINTS)
_COUNT = ".num_batches_tracked"
_WRAPPER = re.compile(r"^(module|_orig_mod)\.")
"""What `DataParallel` (and its distributed kin) and `torch.compile` put before the name of every weight."""
_NESTED_WRAPPERS = 3
_PLAIN = ("state_dict", "model")
"""Entries of a checkpoint that hold the weights as they were trained, in the order in which they are looked for."""
_NESTING = 2  # of entries: `ema.state_dict`
_SHOWN, _LISTED = 80, 6  # characters of a name from a file, and names in a message


def fetch_state(
    spec: ModelSpec, download: Callable[[], Mapping[str, Tensor]] | None
) -> tuple[dict[str, Tensor] | None, str | None]:
    """Return the state dict that `spec.weights` names, None for `random`, and the doubt of `read_state`.

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
        return None, None
    if download is None:
        return read_state(Path(spec.weights), spec.model, spec.weights_key)
    try:
        return dict(download()), None
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"--weights {spec.weights}: {spec.model} could not be downloaded ({in_short(error)}); "
            "give a .safetensors or .pth file instead"
        ) from error


def read_state(path: Path, model: str, key: str | None = None) -> tuple[dict[str, Tensor], str | None]:
    """Read a state dict from a `.safetensors` or `.pth` file without running any code in it.

    Parameters
    ----------
    path
        The file.
    model
        Name of the model, for the message.
    key
        The entry that holds the weights; None takes the file itself, or the first of `_PLAIN` that it has.

    Returns
    -------
    dict
        The weights by their names in the file.
    str or None
        A line that says which entry was taken, where the file has several and `key` names none.

    Raises
    ------
    InputError
        No file, no state dict, no such entry, or a pickle that holds more than tensors.
    """
    if path.suffix not in _SUFFIXES:
        raise InputError(
            f"--weights {path}: not a weights name of {model} nor a {', '.join(_SUFFIXES)} file; "
            "use default, random, a torchvision weights name or a file"
        )
    if not path.is_file():
        raise InputError(f"--weights {path}: no such file")
    entries = _entries(_read(path), path)
    chosen = _chosen(entries, path, key)
    check_tensors(entries[chosen], f"--weights {path}")
    others = [name for name in entries if name != chosen]
    if key is not None or not others:
        return entries[chosen], None
    return entries[chosen], f"--weights {path}: took {chosen}; --weights-key chooses another: {_listed(others)}"


def _read(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_tensors(path)[1]
        with warnings.catch_warnings():  # about formats; what is in the file is judged below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"--weights {path}: holds more than tensors and is not loaded; save its state_dict()"
        ) from error
    except Exception as error:  # safetensors and torch raise many kinds for a broken file
        if "TorchScript" in str(error):
            raise InputError(
                f"--weights {path}: is a TorchScript archive; save torch.jit.load(…).state_dict() of it"
            ) from error
        raise InputError(f"--weights {path}: unreadable ({in_short(error)}); copy or convert it again") from error


def _entries(content: object, path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of tensors in a file by their dotted names; its own has none."""
    if _is_state(content):
        return {"": content}
    entries = dict(_inside(content))
    if not entries:
        raise InputError(f"--weights {path}: not a state dict of tensors by name; save the model's state_dict()")
    return entries


def _inside(content: object, before: str = "", depth: int = 1) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for key, value in content.items() if isinstance(content, dict) else ():
        if not isinstance(key, str) or not isinstance(value, dict):
            continue
        if _is_state(value):
            yield before + key, value
        elif depth < _NESTING:
            yield from _inside(value, f"{before}{key}.", depth + 1)


def _is_state(content: object) -> TypeGuard[dict[str, Tensor]]:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _chosen(entries: Mapping[str, object], path: Path, key: str | None) -> str:
    """Return the entry that `key` names, or the one to take without it."""
    if key is not None:
        if key in entries and key:
            return key
        there = "it is a state dict itself; leave the option out" if "" in entries else f"it has {_listed(entries)}"
        raise InputError(f"--weights-key {key}: {path} has no such entry with a state dict; {there}")
    if "" in entries:
        return ""
    plain = [name for name in entries if set(name.split(".")) <= set(_PLAIN)]
    if not plain:
        raise InputError(
            f"--weights {path}: no state dict itself, and has none under {' or '.join(_PLAIN)}; choose one of its "
            f"entries with --weights-key: {_listed(entries)}"
        )
    return min(plain, key=lambda name: [_PLAIN.index(part) for part in name.split(".")])


def _listed(names: Iterable[str]) -> str:
    shown = [_shown(name) for name in names]
    return ", ".join(shown[:_LISTED]) + (f", … ({len(shown)} in all)" if len(shown) > _LISTED else "")


def _shown(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"


def check_tensors(state: Mapping[str, object], where: str) -> None:
    """Raise `InputError` unless a state dict holds ordinary tensors; `where` begins the message."""
    for name, value in state.items():
        kind = unusable(value)
        if kind is not None:
            raise InputError(f"{where}: {_shown(name)} is {kind}; expected dense tensors of real numbers, with values")


def unusable(value: object) -> str | None:
    """Return what a value is in place of a dense tensor of real numbers in memory, as `complex`; None if it is one."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if is_lazy(value) or value.is_meta:
        return "without values"
    if value.is_nested or value.layout != torch.strided:
        return "not dense"
    return "quantized" if value.is_quantized else "complex" if value.is_complex() else None


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
    check_tensors(network.state_dict(), f"--model {spec.model}")
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


def bare_name(name: str, times: int = _NESTED_WRAPPERS) -> str:
    """Return the name of a weight without what at most `times` wrappers of the network have put before it."""
    for _ in range(times):
        name = _WRAPPER.sub("", name)
    return name


def _as_named_by(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return weights under the network's own names, where what differs changes no weight.

    Wrappers put a prefix before every name, which a network may also have of itself: as few are taken away as let the
    most names fit. PyTorch's strict loading, too, takes a BatchNorm without its count of batches.
    """
    forms = [{bare_name(key, times): value for key, value in state.items()} for times in range(1 + _NESTED_WRAPPERS)]
    whole = [form for form in forms if len(form) == len(state)]  # no two names have become one
    state = max(whole, key=lambda form: len(form.keys() & wanted.keys()))
    counts = {key: value for key, value in wanted.items() if key.endswith(_COUNT) and key not in state}
    return {**state, **counts}


def _other_output_count(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int | None:
    """Return the number of outputs of weights that differ in nothing but the first size of the last layers."""
    if set(wanted) != set(state):
        return None
    differing = [key for key in wanted if wanted[key].shape != state[key].shape]
    if not differing or any(wanted[key].shape[1:] != state[key].shape[1:] for key in differing):
        return None
    if any(state[key].nbytes > state[key].untyped_storage().nbytes() for key in differing):  # a view of any size
        return None
    counts: set[Any] = {(wanted[key].shape[0], state[key].shape[0]) for key in differing}
    return counts.pop()[1] if len(counts) == 1 else None  # more than one layer where heads were for training alone


def _differing(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Name what keeps weights from being the network's: shapes, numbers of another kind, foreign and missing names."""
    common = [key for key in wanted if key in state]
    shapes = [
        f"{key} is {list(state[key].shape)}, the model has {list(wanted[key].shape)}"
        for key in common
        if wanted[key].shape != state[key].shape
    ]
    kinds = [
        f"{key} holds {dtype_name(state[key])}, the model has {dtype_name(wanted[key])}"
        for key in common
        if wanted[key].is_floating_point() and not state[key].is_floating_point()
    ]
    foreign = [f"{_shown(key)} is not in the model" for key in state if key not in wanted]
    missing = [f"{key} is missing" for key in wanted if key not in state]
    return shapes + kinds + foreign + missing


def dtype_name(tensor: Tensor) -> str:
    """Return the type of a tensor's numbers, as `int64`."""
    return str(tensor.dtype).removeprefix("torch.")
