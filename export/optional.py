"""Import of optional libraries, the extras of gfo."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import EngineUnavailable


def optional(module: str, asked: str, extra: str) -> Any:
    """Import and return a module.

    Parameters
    ----------
    module
        Its absolute name.
    asked
        The option that needs it, as `--engine openvino`; the error message begins with it.
    extra
        The extra of gfo that installs it.

    Raises
    ------
    EngineUnavailable
        The module cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise EngineUnavailable(f"{asked}: {module} is not installed; pip install gfo[{extra}]") from error
