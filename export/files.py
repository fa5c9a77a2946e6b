"""Writing files and folders whole or not at all, and reading back exactly what was written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hashlib import _Hash

    from torch import Tensor

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
    """Give a file or folder the mode that the umask asks for: temporary ones are readable by their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` for a file; move it into place at the end, remove it on an error.

    Parent folders are created.

    Raises
    ------
    OSError
        Something cannot be written; the error names `path`. One that names another file keeps that name.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Created anew under a name that nobody guesses: processes in containers may have the same number, and a link
        # laid at a name that is known would lead the write elsewhere.
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(descriptor)
    partial = Path(name)
    try:
        with _naming_instead_of(partial, path):
            yield partial
            usual_mode(partial)
            os.replace(partial, path)
    finally:
        with naming(path):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, accept: Callable[[], bool] | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; move it into place at the end, remove it on an error.

    Parent folders are created.

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
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        with _naming_instead_of(partial, path):
            yield partial
            usual_mode(partial)
            try:
                os.replace(partial, path)
            except OSError:
                if accept is None or not accept():
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all, with a checksum that `load_tensors` checks.

    The checksum is one more tensor, `sha256`, uint8 [32], over the metadata and all other tensors.

    Raises
    ------
    OSError
        The file cannot be written; the error names `path`.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    written = {name: tensor.contiguous() for name, tensor in tensors.items()}
    checksum = torch.tensor(list(_checksum(written, metadata or {})), dtype=torch.uint8)
    with atomic_path(path) as partial:
        try:
            save_file({**written, _CHECKSUM: checksum}, partial, metadata=metadata)
        except SafetensorError as error:  # safetensors reports a full disk, too, as its own kind of error
            raise OSError(errno.EIO, str(error)) from error


def load_tensors(path: Path, names: Collection[str] | None = None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a safetensors file: its metadata, and its tensors in memory, whatever becomes of the file.

    Parameters
    ----------
    path
        A file without a checksum (from another program, or an older version) is taken as it is.
    names
        What it may hold; None for anything. Without them, damage to the checksum's name would be taken for its absence.

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
    stated = tensors.get(_CHECKSUM)
    if stated is not None and (stated.dtype == torch.uint8 or names is not None):
        del tensors[_CHECKSUM]
        if bytes(stated.flatten().to(torch.uint8).tolist()) != _checksum(tensors, metadata):
            raise ValueError("its checksum does not match")
    if names is not None and (foreign := sorted(set(tensors) - set(names))):
        raise ValueError(f"it holds {foreign[0]!r}, expected only {', '.join(names)}")
    return metadata, tensors


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    add_tensors(digest, tensors)
    return digest.digest()


def add_tensors(digest: _Hash, tensors: Mapping[str, Tensor]) -> None:
    """Add the sorted names, dtypes, shapes and bytes of tensors to a hash."""
    import torch

    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
