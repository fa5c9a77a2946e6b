"""Writing files and folders whole or not at all, and reading back exactly what was written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    from hashlib import _Hash

    from torch import Tensor

_PARTIAL, _SCRATCH = ".partial", ".gfo-scratch-"
_RANDOM = re.compile(r"[a-z0-9_]{8}")  # of `tempfile`
_DAY, _MINUTES = 86_400.0, 600.0

# A tensor, not metadata: safetensors writes several metadata keys in any order, and equal files should be equal.
_CHECKSUM = "sha256"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make every `OSError` from inside the block name `path`: a failed write does not say which file it was."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextlib.contextmanager
def _naming_instead_of(partial: Path, path: Path) -> Iterator[None]:
    """Make `OSError`s that name `partial`, a file in it or nothing name `path`; others keep their names."""
    try:
        yield
    except OSError as error:
        named = error.filename
        if not isinstance(named, str | Path) or Path(named).is_relative_to(partial):
            error.filename = str(path)
        raise


def usual_mode(path: Path) -> None:
    """Give a file the mode that the umask asks for: temporary ones are readable by their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield the path of a file to be written in a temporary folder beside `path`; move it into place at the end.

    Parent folders are created, and what writers of `path` that were killed have left is removed.

    Raises
    ------
    OSError
        Something cannot be written; the error names `path`. One that names another file keeps that name.
    """
    with _temporary(Path(path)) as content:
        yield content
        usual_mode(content)
        os.replace(content, path)


@contextlib.contextmanager
def atomic_folder(path: Path, *, accept: Callable[[], bool] | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; move it into place at the end, remove it on an error.

    Parent folders are created, and what writers of `path` that were killed have left is removed.

    Parameters
    ----------
    path
        The folder to write. At the end it must not be there, or be empty.
    accept
        Called if `path` cannot be moved into place; True says that what another process has put there will do, and
        this one's folder is dropped without an error.

    Raises
    ------
    OSError
        Something cannot be written, or `path` is there; the error names `path`. One that names a file elsewhere keeps
        that name.
    """
    with _temporary(Path(path)) as content:
        content.mkdir()
        yield content
        try:
            os.replace(content, path)
        except OSError:
            if accept is None or not accept():
                raise


class ScratchFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder, in the system's own or in `place`; what killed processes have left there is removed."""

    def __init__(self, place: Path | None = None) -> None:
        place = place or Path(tempfile.gettempdir())
        _remove_abandoned(place, _SCRATCH, "")

        def create() -> str:
            super(ScratchFolder, self).__init__(prefix=_SCRATCH, dir=place)
            return self.name

        _, self._claim = _locked(create)

    def cleanup(self) -> None:
        """Remove the folder."""
        super().cleanup()
        os.close(self._claim)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder beside `path`, which is locked meanwhile, and removed at the end.

    The folder has a name that nobody guesses: processes in containers may have the same number, and a link laid at a
    name that is known would lead the write elsewhere. The lock is not on the path itself: libraries put files of their
    own beside what they write, or make it anew.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        partial, claim = _locked(lambda: tempfile.mkdtemp(_PARTIAL, f".{path.name}.", path.parent))
    try:
        with _naming_instead_of(partial, path):
            yield partial / path.name
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(claim)


def _locked(create: Callable[[], str]) -> tuple[Path, int]:
    """Create a temporary folder, and return it with a descriptor that holds its lock for as long as it is open.

    Until it is locked, another process may take it for abandoned and remove it; then another one is created.
    """
    while True:
        folder = Path(create())
        with contextlib.suppress(FileNotFoundError):
            claim = os.open(folder, os.O_RDONLY)
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks: then its age protects it
                    fcntl.flock(claim, fcntl.LOCK_EX)
            if folder.exists():
                return folder, claim
            os.close(claim)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait for other processes that are in such a block with the same folder, and keep them out until it ends.

    The folder itself is locked, and no file is left. Systems and file systems without locks keep nobody out.
    """
    claim = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if claim is not None and fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(claim, fcntl.LOCK_EX)
        yield
    finally:
        if claim is not None:
            os.close(claim)


def remove_abandoned(path: Path) -> None:
    """Remove what writers of `path` that were killed have left beside it, if there is anything."""
    if path.parent.is_dir():
        _remove_abandoned(path.parent, f".{path.name}.", _PARTIAL)


def _remove_abandoned(folder: Path, prefix: str, suffix: str) -> None:
    """Remove temporary folders whose writers were killed: their locks went with them."""
    with os.scandir(folder) as entries:
        found = [e.path for e in entries if e.name.startswith(prefix) and e.name.endswith(suffix)]
    for path in found:
        middle = Path(path).name[len(prefix) : -len(suffix) or None]
        if _RANDOM.fullmatch(middle):
            with contextlib.suppress(OSError):  # just moved or removed, or of another user: left to that one
                _remove_if_abandoned(Path(path))


def _remove_if_abandoned(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        if _lockable(descriptor, status.st_mtime):
            shutil.rmtree(path)
    finally:
        os.close(descriptor)


def _lockable(descriptor: int, changed: float) -> bool:
    """Return whether nobody holds the lock; where there are no locks, whether it has not changed for a day."""
    if fcntl is None:
        return time.time() - changed > _DAY
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - changed > _DAY
    return True


def remove_old_partials(folder: Path) -> None:
    """Remove `*.partial` files below a folder that other libraries were killed over: those some minutes old."""
    for path in folder.rglob(f"*{_PARTIAL}"):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > _MINUTES and not path.is_dir():
                path.unlink()


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str] | None = None,
    hashes: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file whole or not at all, with a checksum that `load_tensors` checks.

    The checksum is one more tensor, `sha256`, uint8 [32], over the metadata and all other tensors.

    Parameters
    ----------
    hashes
        Hashes of large tensors by name, which stand for their bytes in the checksum: they need not be hashed twice.

    Raises
    ------
    OSError
        The file cannot be written; the error names `path`.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    written = {name: tensor.contiguous() for name, tensor in tensors.items()}
    checksum = torch.tensor(list(_checksum(written, metadata or {}, hashes or {})), dtype=torch.uint8)
    with atomic_path(path) as partial:
        try:
            save_file({**written, _CHECKSUM: checksum}, partial, metadata=metadata)
        except SafetensorError as error:  # safetensors reports a full disk, too, as its own kind of error
            raise OSError(errno.EIO, str(error)) from error


def load_tensors(
    path: Path,
    names: Collection[str] | None = None,
    hashes: Callable[[Mapping[str, str], Mapping[str, Tensor]], Mapping[str, str]] = lambda _metadata, _tensors: {},
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a safetensors file: its metadata, and its tensors in memory, whatever becomes of the file.

    Parameters
    ----------
    path
        A file without a checksum (from another program, or an older version) is taken as it is.
    names
        What it may hold; None for anything. Without them, damage to the checksum's name would be taken for its absence.
    hashes
        Returns those that `save_tensors` was given, from the metadata and the tensors.

    Raises
    ------
    ValueError
        The file is not what was written, or no safetensors file.
    OSError
        It cannot be read.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:  # PyTorch opens and maps the file
        raise OSError(errno.EIO, str(error).splitlines()[0], str(path)) from error
    stated = tensors.get(_CHECKSUM)
    if stated is not None and (stated.dtype == torch.uint8 or names is not None):
        del tensors[_CHECKSUM]
        read = bytes(stated.flatten().to(torch.uint8).tolist())
        # An older version hashed every tensor's bytes.
        if read != _checksum(tensors, metadata, hashes(metadata, tensors)) and read != _checksum(tensors, metadata, {}):
            raise ValueError("its checksum does not match")
    if names is not None and (foreign := sorted(set(tensors) - set(names))):
        raise ValueError(f"it holds {foreign[0]!r}, expected only {', '.join(names)}")
    return metadata, tensors


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], hashes: Mapping[str, str]) -> bytes:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    add_tensors(digest, tensors, hashes)
    return digest.digest()


def add_tensors(digest: _Hash, tensors: Mapping[str, Tensor], hashes: Mapping[str, str]) -> None:
    """Add the sorted names, dtypes, shapes and bytes of tensors to a hash; some have hashes in place of their bytes."""
    import torch

    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if name in hashes:
            digest.update(hashes[name].encode())
            continue
        content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
