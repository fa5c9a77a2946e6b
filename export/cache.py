"""Where trained demo networks and, later, built engines are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: `$GFO_CACHE`, or `~/.cache/gfo` where that is unset or empty.

    It is not made here; whoever writes into it does that.
    """
    configured = os.environ.get("GFO_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "gfo"
