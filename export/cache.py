"""The cache folder, and the names under which it keeps things."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def cache_dir() -> Path:
    """Return the cache folder: `$GFO_CACHE`, or `~/.cache/gfo` where that is unset or empty.

    The folder is not created; whoever writes into it does that.
    """
    configured = os.environ.get("GFO_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "gfo"


def key(facts: Any) -> str:
    """Return the name of a cache entry: 32 hexadecimal digits of SHA-256 over `facts` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
