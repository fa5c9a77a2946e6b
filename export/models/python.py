"""A network of the user's own, returned by a function that can be imported."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..errors import InputError
from .base import Family

if TYPE_CHECKING:
    from torch import nn

    from ..preprocessing import Preprocessing
    from .spec import ModelSpec


class UserFunction(Family):
    """`python:module:function`; what the function returns has the default weights."""

    forms: ClassVar[tuple[str, ...]] = ("python:module:function",)
    separator: ClassVar[str] = ":"

    def load(self, name: str, spec: ModelSpec) -> tuple[nn.Module, Preprocessing]:
        """See `Family.load`. The module is searched in the working directory, too."""
        from torch import nn

        from .weights import fetch_state, fit_state

        module_name, _, function_name = name.partition(":")
        if "" in (module_name, function_name):
            raise InputError(f"--model {spec.model}: expected python:module:function")
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            function = getattr(import_module(module_name), function_name)
        except (ImportError, AttributeError) as error:
            raise InputError(f"--model {spec.model}: {error}; the module must be importable from here") from error
        if spec.weights == "default":
            network = function()
        else:
            state = fetch_state(spec, None)
            network = function() if state is None else fit_state(function, state, spec, any_outputs=False)
        if not isinstance(network, nn.Module):
            raise InputError(f"--model {spec.model}: returned {type(network).__name__}, expected a torch.nn.Module")
        return network, _preprocessing(network, spec)


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
