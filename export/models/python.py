"""A network of the user's own, returned by a function that can be imported."""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..errors import InputError, in_short
from .base import Family, Loaded

if TYPE_CHECKING:
    from torch import nn

    from ..preprocessing import Preprocessing
    from .spec import ModelSpec


class UserFunction(Family):
    """`python:module:function`; what the function returns has the default weights."""

    forms: ClassVar[tuple[str, ...]] = ("python:module:function",)
    separator: ClassVar[str] = ":"

    def load(self, name: str, spec: ModelSpec) -> Loaded:
        """See `Family.load`. The module is searched in the working directory, too."""
        from torch import nn

        from .weights import fetch_state, fit_state

        module_name, _, function_name = name.partition(":")
        if "" in (module_name, function_name):
            raise InputError(f"--model {spec.model}: expected python:module:function")
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        with _one_line(spec.model, "the module must be importable from here"):
            function = getattr(importlib.import_module(module_name), function_name)

        def build() -> nn.Module:
            with _one_line(spec.model, "it is called without arguments and returns a torch.nn.Module"):
                network = function()
            if not isinstance(network, nn.Module):
                raise InputError(f"--model {spec.model}: returned {type(network).__name__}, expected a torch.nn.Module")
            return network

        state, doubt = (None, None) if spec.weights == "default" else fetch_state(spec, None)
        network = build() if state is None else fit_state(build, state, spec, any_outputs=False)
        return Loaded(network, _preprocessing(network, spec), doubt)


@contextlib.contextmanager
def _one_line(model: str, wanted: str) -> Iterator[None]:
    """Turn whatever a user's code raises, an exit among it, into an `InputError` that ends with what is `wanted`."""
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = f"{in_short(error)}{_place(error)}"
        raise InputError(f"--model {model}: {reason}; {wanted}") from error


def _place(error: BaseException) -> str:
    """Return the line of the user's module that raised an error, or that called what did; empty where none did."""
    ours = (__file__, importlib.__file__)
    frames = traceback.extract_tb(error.__traceback__)
    found = next((f for f in frames if f.filename not in ours and not f.filename.startswith("<")), None)
    return "" if found is None else f" ({Path(found.filename).name}, line {found.lineno})"


def _preprocessing(network: nn.Module, spec: ModelSpec) -> Preprocessing:
    """Return the network's attribute `preprocessing`, or that of the options."""
    from ..preprocessing import Preprocessing

    own = getattr(network, "preprocessing", None)
    if isinstance(own, Preprocessing):
        return own
    if spec.input_size is None or spec.mean is None or spec.std is None:
        raise InputError(
            f"--model {spec.model}: its preprocessing is not known; give --input-size, --mean and --std (and "
            "--resize), or give the module an attribute `preprocessing` of type gfo.export.Preprocessing"
        )
    resize = spec.resize or spec.input_size
    return Preprocessing(spec.input_size, resize, spec.interpolation or "bilinear", spec.mean, spec.std)
