"""The cache folder, and the names under which it keeps things."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

from .errors import InputError


def cache_dir(*parts: str) -> Path:
    """Return the cache folder, `$GFO_CACHE` or `~/.cache/gfo` where that is unset or empty, or a place in it.

    What is in it is believed: run as a graph, loaded as a plan. Its checksums are no seal: whoever can write there can
    write them, too. So every folder from the cache down to the place must be this user's or root's, and not everybody
    may write into it (in the cache itself everybody may, if it is like `/tmp`, where nobody can replace what is
    another's). A link is followed, as `~/.cache` is often on another disk, if it and what it leads to are so. Folders
    above are not looked at: who could replace the cache through one would own what he puts there. The group may write,
    as each user often has one of his own. Windows has other permissions, and is not checked.

    Nothing is created; whoever writes does that.

    Raises
    ------
    InputError
        Somebody else could have put something there; or there is no home folder: no HOME, and no entry for the user in
        the system.
    """
    configured = os.environ.get("GFO_CACHE") or "~/.cache/gfo"
    try:
        folder = Path(configured).expanduser()
    except RuntimeError as error:
        raise InputError(f"GFO_CACHE: {configured} has no home folder here; set GFO_CACHE to a folder") from error
    refuse_foreign(folder, "GFO_CACHE", stat.S_ISVTX)
    for part in parts:
        folder /= part
        refuse_foreign(folder, "GFO_CACHE")
    return folder


def refuse_foreign(path: Path, setting: str, protected: int = 0) -> None:
    """Refuse a folder whose contents are believed where others could have put something; none there is fine.

    Parameters
    ----------
    setting
        Environment variable that leads elsewhere.
    protected
        Bits of a mode with which everybody may write.

    Raises
    ------
    InputError
        It, or the link that leads to it, is neither this user's nor root's, or everybody may write into it.
    """
    if sys.platform == "win32":
        return
    own = f"set {setting} to a folder of your own"
    try:
        found = (path.lstat(), path.stat())
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path}: the cache cannot be read ({error.strerror}); {own}") from error
    for status in found:
        if status.st_uid not in (os.geteuid(), 0):
            raise InputError(
                f"{path}: the cache belongs to another user (number {status.st_uid}), who may have put anything there; "
                f"remove it, or {own}"
            )
    mode = found[1].st_mode
    if mode & stat.S_IWOTH and not mode & protected:
        raise InputError(
            f"{path}: everybody may write into the cache, and may have put anything there; remove it, or chmod -R o-w "
            f"it, or {own} (one inside it will do)"
        )


def key(facts: Any) -> str:
    """Return the name of a cache entry: 32 hexadecimal digits of SHA-256 over `facts` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
