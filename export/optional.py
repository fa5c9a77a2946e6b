"""Libraries that are extras: imported where they are used, and a word on what to install where they are not."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import EngineUnavailable


def optional(module: str, asked: str, extra: str) -> Any:
    """The module; `EngineUnavailable` where it cannot be imported.

    Parameters
    ----------
    asked
        The option that needs it, as `--engine openvino`.
    extra
        Of gfo, which installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise EngineUnavailable(f"{asked}: {module} is not installed; pip install gfo[{extra}]") from error
