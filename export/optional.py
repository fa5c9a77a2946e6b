"""Import of optional libraries, the extras of gfo, none of which tells its makers that it is used."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from .errors import EngineUnavailable, in_short


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
        The module is not installed, or cannot be loaded.
    """
    silence()
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise EngineUnavailable(f"{asked}: {module} is not installed; pip install gfo[{extra}]") from error
    except ImportError as error:
        raise EngineUnavailable(f"{asked}: {module} is there but cannot be loaded ({in_short(error)})") from error


def silence() -> None:
    """Switch off what libraries, once they are imported, write into the home folder and send to their makers.

    What has been set or imported already stays as it is.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # OpenVINO has no switch, but a stub of its own for where this package is not installed.
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
